//! What happens in a run, drawn from its seed.

use std::{ops::Range, time::Duration};

use fastrand::Rng;

use crate::world::{COORDINATOR, DECODES, PREFILLS};

/// Something that begins, and mostly ends.
#[derive(Clone, Debug)]
pub struct Fault {
    /// When it begins, and ends.
    pub during: Range<Duration>,
    /// What.
    pub kind: Kind,
}

/// Two hosts.
pub type Pair = (&'static str, &'static str);

/// What can happen.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing gets through either way, nor ever will.
    Partition(Pair),
    /// Nothing gets through from the first to the second.
    OneWay(Pair),
    /// Everything waits, and gets through in the end.
    Held(Pair),
    /// Everything takes so long.
    Late(Pair, Duration),
    /// A share of what is sent is lost, with what is under way just then.
    Lossy(Pair, f64),
    /// Each step of a node takes so much longer.
    Slow(&'static str, Duration),
    /// The process dies, its sockets are closed, and it is started again in the end.
    Crash(&'static str),
    /// The node's machine is gone without a word, and back in the end.
    PowerLoss(&'static str),
    /// The registry's store is out of everybody's reach.
    StoreAway,
    /// It is out of one process's reach.
    StoreCutOff(&'static str),
    /// Every lease ends, at the beginning.
    LeasesExpire,
    /// The store goes back, in the end, to what it was at the beginning.
    StoreRestored,
    /// The clock on the wall goes so many seconds forward or back.
    ClockJumps(i64),
}

/// Faults begin and end within this time.
pub const WHILE: Range<Duration> = Duration::from_secs(3)..Duration::from_secs(28);

/// The faults of a run. One seed in eight has none.
pub fn draw(random: &mut Rng) -> Vec<Fault> {
    let most = if random.u32(..8) == 0 { 1 } else { 7 };
    let mut faults: Vec<_> = (1..random.usize(1..=most)).map(|_| fault(random)).collect();
    faults.sort_by_key(|fault| fault.during.start);
    faults
}

fn fault(random: &mut Rng) -> Fault {
    let millis = |random: &mut Rng, range: Range<u64>| Duration::from_millis(random.u64(range));
    let begin = millis(random, WHILE.start.as_millis() as u64..24_000);
    let long = match random.u32(..3) {
        0 => millis(random, 20..500),
        1 => millis(random, 500..4_000),
        _ => millis(random, 4_000..15_000),
    };
    let kind = match random.u32(..15) {
        0 | 1 => Kind::Partition(pair(random)),
        2 | 3 => Kind::OneWay(pair(random)),
        4 => Kind::Held(pair(random)),
        5 => Kind::Late(pair(random), millis(random, 20..800)),
        6 => Kind::Lossy(pair(random), random.f64() * 0.1),
        7 => Kind::Slow(node(random), millis(random, 20..1_500)),
        8 | 9 => Kind::Crash(if random.u32(..8) == 0 { COORDINATOR } else { node(random) }),
        10 => Kind::StoreAway,
        11 => Kind::StoreCutOff(host(random)),
        12 if random.bool() => Kind::LeasesExpire,
        12 => Kind::StoreRestored,
        13 => Kind::PowerLoss(node(random)),
        _ => Kind::ClockJumps(random.i64(-7_200..7_200)),
    };
    Fault { during: begin..(begin + long).min(WHILE.end), kind }
}

fn node(random: &mut Rng) -> &'static str {
    let (name, _) = [PREFILLS, DECODES].concat()[random.usize(..4)];
    name
}

fn host(random: &mut Rng) -> &'static str {
    if random.u32(..4) == 0 { COORDINATOR } else { node(random) }
}

/// Most pairs are those over which something goes.
fn pair(random: &mut Rng) -> Pair {
    let ((prefill, _), (decode, _)) = (PREFILLS[random.usize(..2)], DECODES[random.usize(..2)]);
    let (one, other) = match random.u32(..5) {
        0..3 => (prefill, decode),
        3 => (COORDINATOR, decode),
        _ => (COORDINATOR, prefill),
    };
    if random.bool() { (one, other) } else { (other, one) }
}
