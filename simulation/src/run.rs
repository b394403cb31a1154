//! One run, from the seed to what was found: requests under faults, then peace,
//! in which all must come to rest, then requests that must be answered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use baton_kv_transfer::{FaultsConfig, TransferConfig, TransportKind, Wanted, transport::Checksum};
use baton_protocol::Role;
use fastrand::Rng;
use turmoil::{Builder, Sim};

use crate::{
    clients::{self, Ask, Outcome},
    faults::{self, Fault, Kind},
    node::Identity,
    registry::Kept,
    system,
    trace::Trace,
    world::{COORDINATOR, DECODES, PREFILLS, World},
};

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// Everything that must not be; empty is good.
    pub wrong: Vec<String>,
    /// How requests ended, counted.
    pub outcomes: BTreeMap<String, usize>,
    /// What happened to them.
    pub faults: Vec<Fault>,
    /// Of all that was logged.
    pub hash: String,
    /// On the run's clock.
    pub lasted: Duration,
}

/// Time of one turn of all hosts.
const TICK: Duration = Duration::from_millis(5);

/// Requests begin within this time.
const ASKED: Duration = Duration::from_secs(26);

/// When everything has ended that was drawn: the last deadline is over.
const PEACE: Duration = Duration::from_secs(52);

/// Until all pages must be free: silence of peers, leases and a second look included.
const REST: Duration = Duration::from_secs(35);

/// Time of an answer that nothing is in the way of: some 50 steps of 40 ms, and up to 4 s before
/// them until the first handoff over a data socket that hangs has asked in vain and ends its session.
const PROMPT: Duration = Duration::from_secs(7);

/// Requests that must be answered, after which the run is over.
const LAST: Duration = Duration::from_secs(10);

struct Run {
    sim: Sim<'static>,
    world: Arc<World>,
    asks: Arc<Vec<Ask>>,
    /// What the store was like when a fault began that will bring it back.
    kept: BTreeMap<usize, Kept>,
}

/// Runs a seed, in a process that has begun with [`system::begin`] and nothing else: what tokio
/// draws follows from how often it has drawn before. `is_guarded`: whether frames of KV have
/// checksums; without, many are damaged, which must be found.
///
/// # Errors
/// When the simulation itself cannot go on.
pub fn run(seed: u64, trace: &Trace, is_guarded: bool) -> turmoil::Result<Report> {
    let mut random = Rng::with_seed(seed);
    fastrand::seed(random.u64(..));
    let faults = faults::draw(&mut random);
    let mut run = Run::begin(&mut random, is_guarded)?;
    tracing::info!(seed, ?faults, "begins");
    run.suffer(&faults)?;
    run.rest()?;
    run.until(run.sim.elapsed() + LAST)?;
    run.judge(faults.is_empty());
    let mut outcomes = BTreeMap::new();
    for outcome in run.world.outcomes().values() {
        *outcomes.entry(format!("{outcome:?}")).or_default() += 1;
    }
    let (wrong, lasted) = (run.world.all_wrong(), run.sim.elapsed());
    Ok(Report { wrong, outcomes, faults, hash: trace.hash(), lasted })
}

fn draw_asks(random: &mut Rng) -> Vec<Ask> {
    let begin = Duration::from_secs(1);
    let mut asks: Vec<_> = (0..random.usize(8..48))
        .map(|number| {
            let at = begin + Duration::from_millis(random.u64(..(ASKED - begin).as_millis() as u64));
            clients::draw(random, number, at)
        })
        .collect();
    let last = PEACE + REST + Duration::from_secs(1);
    let peaceful = (asks.len()..asks.len() + 3).map(|number| Ask {
        leaves_after: None,
        within: Some(PROMPT),
        ..clients::draw(random, number, last + Duration::from_millis(number as u64 * 10))
    });
    asks.extend(peaceful.collect::<Vec<_>>());
    asks
}

fn others(host: &str) -> impl Iterator<Item = &'static str> {
    let nodes = PREFILLS.into_iter().chain(DECODES).map(|(name, _)| name);
    nodes.chain([COORDINATOR]).filter(move |other| *other != host)
}

// === impl Run ===

impl Run {
    fn begin(random: &mut Rng, is_guarded: bool) -> turmoil::Result<Self> {
        let frames = FaultsConfig {
            seed: random.u64(..),
            drop_probability: 0.02,
            corrupt_probability: if is_guarded { 0.02 } else { 0.5 },
            reorder_probability: 0.02,
            ..FaultsConfig::default()
        };
        let transfer = TransferConfig {
            transport: Wanted::Only(TransportKind::Tcp),
            frame_bytes: 2048,
            probe_bytes: 0,
            faults: (random.u32(..3) == 0 || !is_guarded).then_some(frames),
            checksum: if is_guarded { Checksum::Crc32c } else { Checksum::None },
            ..TransferConfig::default()
        };
        let world = World::new(transfer, Duration::from_millis(random.u64(5..40)));
        let asks = Arc::new(draw_asks(random));
        let mut sim = Builder::new()
            .rng_seed(random.u64(..))
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(random.u64(5..60)))
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        for (role, hosts) in [(Role::Prefill, PREFILLS), (Role::Decode, DECODES)] {
            for (name, port) in hosts {
                let (node, world) = (Identity { name, port, role }, world.clone());
                sim.host(name, move || node.run(world.clone()));
            }
        }
        {
            let (world, asks) = (world.clone(), asks.clone());
            sim.host(COORDINATOR, move || clients::run(world.clone(), asks.clone()));
        }
        Ok(Self { sim, world, asks, kept: BTreeMap::new() })
    }

    /// Lets the faults begin and end, each at its time, and then time pass until peace.
    fn suffer(&mut self, faults: &[Fault]) -> turmoil::Result {
        let mut turns: Vec<_> = faults
            .iter()
            .enumerate()
            .flat_map(|(number, fault)| {
                [(fault.during.start, number, true), (fault.during.end, number, false)]
            })
            .collect();
        turns.sort();
        for (at, number, begins) in turns {
            self.until(at)?;
            let kind = &faults[number].kind;
            tracing::info!(?kind, begins, "fault");
            if begins { self.strike(number, kind) } else { self.mend(number, kind) }
        }
        self.until(PEACE)
    }

    fn until(&mut self, time: Duration) -> turmoil::Result {
        while self.sim.elapsed() < time {
            system::set_elapsed(self.sim.elapsed());
            self.sim.step()?;
            for (node, engine) in self.world.engines() {
                let counts = engine.pool().counts();
                if !counts.sums_to_total() {
                    self.world.wrong(&format!("pages of {node} do not sum up: {counts:?}"));
                }
            }
        }
        Ok(())
    }

    fn strike(&mut self, number: usize, kind: &Kind) {
        let sim = &mut self.sim;
        match *kind {
            Kind::Partition((one, other)) => sim.partition(one, other),
            Kind::OneWay((from, to)) => sim.partition_oneway(from, to),
            Kind::Held((one, other)) => sim.hold(one, other),
            Kind::Late((one, other), by) => sim.set_link_latency(one, other, by),
            Kind::Lossy((one, other), share) => sim.set_link_fail_rate(one, other, share),
            Kind::Slow(node, by) => self.world.set_slow(node, Some(by)),
            Kind::Crash(host) => {
                sim.crash(host);
                self.world.crashed(host);
                if host == COORDINATOR {
                    self.cut();
                }
            }
            Kind::PowerLoss(host) => {
                others(host).for_each(|other| sim.partition(host, other));
                sim.crash(host);
                self.world.crashed(host);
            }
            Kind::StoreAway => self.world.store.set_away(true),
            Kind::StoreCutOff(host) => self.world.store.set_cut_off(host, true),
            Kind::LeasesExpire => self.world.store.expire(),
            Kind::StoreRestored => {
                self.kept.insert(number, self.world.store.kept());
            }
            Kind::ClockJumps(seconds) => system::jump(seconds),
        }
    }

    fn mend(&mut self, number: usize, kind: &Kind) {
        let sim = &mut self.sim;
        match *kind {
            Kind::Partition((one, other)) => sim.repair(one, other),
            Kind::OneWay((from, to)) => sim.repair_oneway(from, to),
            Kind::Held((one, other)) => sim.release(one, other),
            Kind::Late((one, other), _) => sim.set_link_latency(one, other, Duration::from_millis(1)),
            Kind::Lossy((one, other), _) => sim.set_link_fail_rate(one, other, 0.0),
            Kind::Slow(node, _) => self.world.set_slow(node, None),
            Kind::Crash(host) => {
                if !sim.is_host_running(host) {
                    sim.bounce(host);
                    if host == COORDINATOR {
                        self.cut();
                    }
                }
            }
            Kind::PowerLoss(host) => {
                others(host).for_each(|other| sim.repair(host, other));
                if !sim.is_host_running(host) {
                    sim.bounce(host);
                }
            }
            Kind::StoreAway => self.world.store.set_away(false),
            Kind::StoreCutOff(host) => self.world.store.set_cut_off(host, false),
            Kind::StoreRestored => {
                if let Some(kept) = self.kept.remove(&number) {
                    self.world.store.restore(kept);
                }
            }
            Kind::LeasesExpire | Kind::ClockJumps(_) => {}
        }
    }

    /// Requests whose client died with the coordinator, or had none to ask.
    fn cut(&self) {
        let (now, ended) = (self.sim.elapsed(), self.world.outcomes());
        for (number, _) in self.asks.iter().enumerate().filter(|(_, ask)| ask.at <= now) {
            if !ended.contains_key(&number) {
                self.world.ended(number, Outcome::Cut);
            }
        }
    }

    /// Peace: every page must come free.
    fn rest(&mut self) -> turmoil::Result {
        self.until(PEACE + REST)?;
        for (node, engine) in self.world.engines() {
            let counts = engine.pool().counts();
            if !counts.is_idle() {
                self.world.wrong(&format!("pages of {node} are still held: {counts:?}"));
            }
            if let Err(error) = engine.pool().check_integrity() {
                self.world.wrong(&format!("the books of {node}: {error:?}"));
            }
        }
        let running = self.world.engines().len();
        if running != PREFILLS.len() + DECODES.len() {
            self.world.wrong(&format!("only {running} nodes run"));
        }
        Ok(())
    }

    /// Every request has ended once; with an answer, if there was nothing but peace.
    fn judge(&self, was_peaceful: bool) {
        let outcomes = self.world.outcomes();
        for number in 0..self.asks.len() {
            match outcomes.get(&number) {
                None => self.world.wrong(&format!("request {number} has not ended")),
                Some(Outcome::Failed(code)) if was_peaceful => {
                    self.world.wrong(&format!("request {number} failed in peace: {code}"));
                }
                Some(_) => {}
            }
        }
    }
}
