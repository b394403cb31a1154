//! A storm: a cluster that callers keep at work, and faults of the table one after another, some of them two
//! at once, each to a request that is looked for in a phase. What is drawn follows from a seed; whom it meets,
//! from the moment. Everything is checked all the time: every answer against what it must be, that each
//! request ends once, the pages of every node against its pool; and, when callers pause, that all pages are
//! free, that nobody is in flight, and that no process has grown, panicked or said a prompt.

use std::{
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures::FutureExt;
use serde_json::Value;
use tokio::task::JoinSet;

use super::{
    callers::{Cuts, Sky, Strike, Tally, words},
    case::CANARY,
    cell::bring_back,
    faults::{Does, Fault, Who},
    members::MEMBERS,
    phases::{CLUSTER, HANGS_BY, PHASES},
    rows::FAULTS,
};
use crate::{
    counts::{counts, env_number},
    sandbox::{Cluster, Held, Plan, Within, enter, eventually},
};

/// What a storm was like.
struct Storm {
    seed: u64,
    random: Rng,
    until: Instant,
    has_network: bool,
    tally: Arc<Mutex<Tally>>,
    /// Looks at the sums of pages.
    looks: Arc<AtomicU64>,
    /// Faults by row and phase.
    strikes: BTreeMap<(usize, char), u32>,
    /// Those to a cluster that had another one.
    doubled: u32,
    calms: u32,
    longest_free: Duration,
    /// The most that a process held when nothing ran.
    most: Held,
}

/// Its number among networks.
const NETWORK: u8 = 200;
const CALLERS: u64 = 8;
/// Faults between two calms.
const ROUNDS: u32 = 8;
/// One in so many has another one behind it before anybody is back.
const DOUBLES: u32 = 4;
/// Between two looks at pages.
const LOOK: Duration = Duration::from_millis(250);
/// How long somebody is looked for in a phase.
const SEARCH: Duration = Duration::from_secs(3);
/// Until all pages are free; the promise is 35 s, on a machine that does nothing else.
const FREE_WITHIN: Duration = Duration::from_secs(120);
/// What no process holds when nothing runs, whatever has been.
const RESIDENT: usize = 256 << 20;
const FDS: usize = 256;
/// After so many wrongs it is known that something is.
const ENOUGH: usize = 20;

const SETTINGS: &str = r#"
model = "mock"

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[coordinator]
max_running = 6
max_wait_ms = 60000
local_prefill_below_tokens = 100

[transfer]
transport = "tcp"
frame_bytes = 1024

[transfer.faults]
seed = 1
delay_probability = 0.3
max_delay_ms = 40
drop_probability = 0.002
corrupt_probability = 0.002
reorder_probability = 0.01

[engine]
backend = "mock"
pages = 512
page_tokens = 16
step_limit_ms = 5000
"#;

#[test]
fn a_storm_of_faults_breaks_no_promise() {
    let within = enter("chaos::storm::a_storm_of_faults_breaks_no_promise");
    if within == Within::Done {
        return;
    }
    let seconds = env_number("BATON_STORM_SECONDS").unwrap_or(counts().storm_seconds);
    let seed = env_number("BATON_STORM_SEED").unwrap_or(1);
    let mut storm = Storm {
        seed,
        random: Rng::with_seed(seed),
        until: Instant::now() + Duration::from_secs(seconds),
        has_network: within == Within::Own,
        tally: Arc::default(),
        looks: Arc::default(),
        strikes: BTreeMap::new(),
        doubled: 0,
        calms: 0,
        longest_free: Duration::ZERO,
        most: Held::default(),
    };
    tokio::runtime::Runtime::new().unwrap().block_on(storm.run());
    println!("{storm}");
    let tally = storm.tally.lock().unwrap();
    assert!(tally.wrong.is_empty(), "{} wrong:\n{}", tally.wrong.len(), tally.wrong.join("\n"));
    assert!(tally.requests.get("whole").is_some_and(|count| *count > 0));
}

// === impl Storm ===

impl Storm {
    /// One cluster after another: where something broke, the next one is new.
    async fn run(&mut self) {
        while self.goes_on() {
            let settings = format!(
                "cluster = \"{CLUSTER}\"\n{SETTINGS}\n[engine.mock]\nprefill_us_per_token = 2000\n\
                 step_us_base = 8000\nhangs_by = \"{HANGS_BY}\"\n"
            );
            let plan = Plan { settings, prefill: 2, decode: 2 };
            let mut cluster = if self.has_network {
                Cluster::start_apart(&plan, (CLUSTER, NETWORK), &MEMBERS).await
            } else {
                Cluster::start(&plan).await
            };
            self.rage(&mut cluster).await;
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until && self.tally.lock().unwrap().wrong.len() < ENOUGH
    }

    async fn rage(&mut self, cluster: &mut Cluster) {
        let (sky, stop, mut tasks) =
            (Arc::new(Sky::over(cluster)), Arc::new(AtomicBool::new(false)), JoinSet::new());
        for caller in 0..CALLERS {
            let (sky, stop, tally) = (Arc::clone(&sky), Arc::clone(&stop), Arc::clone(&self.tally));
            let mut random = self.random.fork();
            let first = random.u64(..1 << 40) << 20;
            tasks.spawn(async move {
                for turn in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    sky.call(first + caller + turn * CALLERS, &mut random, &tally).await;
                }
            });
        }
        let (looking, stopped) = (Arc::clone(&sky), Arc::clone(&stop));
        let (tally, looks) = (Arc::clone(&self.tally), Arc::clone(&self.looks));
        tasks.spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                look(&looking, &tally, &looks).await;
                tokio::time::sleep(LOOK).await;
            }
        });
        let raged = AssertUnwindSafe(self.strike_on(cluster, &sky)).catch_unwind().await;
        stop.store(true, Ordering::SeqCst);
        if let Err(panic) = raged {
            self.tally.lock().unwrap().add(words(panic));
            for (name, process) in &cluster.nodes {
                println!("--- {name} ---\n{}", process.output());
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Faults until it is over, and calms between them.
    async fn strike_on(&mut self, cluster: &mut Cluster, sky: &Sky) {
        let workers = cluster.nodes.len() - 1;
        for round in 1.. {
            let mut gone = self.strike(cluster, sky, &[]).await;
            let is_seen = !gone.iter().any(|node| node == "coordinator");
            if is_seen && self.random.u32(..DOUBLES) == 0 {
                let more = self.strike(cluster, sky, &gone).await;
                gone.extend(more);
                self.doubled += 1;
            }
            overhear(cluster, &self.tally);
            bring_back(cluster, &gone, workers).await;
            sky.end(cluster);
            let goes_on = self.goes_on();
            if round % ROUNDS == 0 || !goes_on {
                self.calm(cluster, sky).await;
            }
            if !goes_on {
                return;
            }
        }
    }

    /// Draws a fault and a phase, and does the one to a request in the other. Who is gone by that.
    async fn strike(&mut self, cluster: &mut Cluster, sky: &Sky, gone: &[String]) -> Vec<String> {
        let (row, fault) = loop {
            let row = self.random.usize(..FAULTS.len());
            let is_possible =
                FAULTS[row].is_of_storms() && (self.has_network || !FAULTS[row].is_of_network());
            if is_possible && (gone.is_empty() || FAULTS[row].takes_one()) {
                break (row, &FAULTS[row]);
            }
        };
        let wanted = loop {
            let column = self.random.usize(..PHASES.len());
            if fault.then.chars().nth(column) != Some('-') {
                break PHASES[column].letter;
            }
        };
        let (phase, request) = someone(sky, wanted, &mut self.random).await;
        if fault.meets(&request).any(|node| gone.contains(&node)) {
            return Vec::new();
        }
        *self.strikes.entry((row, phase)).or_default() += 1;
        let begun = Instant::now();
        let strike = Strike { name: fault.name, begun, over: None, hurts: fault.hurts(), cuts: fault.cuts() };
        sky.begin(strike);
        let gone = match &fault.does {
            // It may have ended.
            Does::Cancel => {
                drop(sky.operator().does(&["cancel", request["id"].as_str().unwrap()]).await);
                Vec::new()
            }
            _ => fault.strike(cluster, &request).await,
        };
        println!("{} × {phase}, took {:.1?}", fault.name, begun.elapsed());
        gone
    }

    /// Nobody asks anything: everything is free, and nothing has grown.
    async fn calm(&mut self, cluster: &Cluster, sky: &Sky) {
        let _gate = sky.gate.write().await;
        let begun = Instant::now();
        cluster.wait_until_idle(FREE_WITHIN).await;
        self.longest_free = self.longest_free.max(begun.elapsed());
        self.calms += 1;
        eventually("nobody to be in flight", || async {
            sky.operator().requests(sky.http()).await?.is_empty().then_some(())
        })
        .await;
        for (name, process) in &cluster.nodes {
            let held = process.held();
            self.most = self.most.or_more(held);
            assert!(held.resident < RESIDENT && held.fds < FDS, "{name} has grown: {held:?}");
        }
        overhear(cluster, &self.tally);
    }
}

/// What processes say: nothing of prompts, and no panic.
pub fn overhear(cluster: &Cluster, tally: &Mutex<Tally>) {
    for (name, process) in &cluster.nodes {
        let said = process.output();
        let wrong = said.lines().find(|line| line.contains("panicked at") || line.contains(CANARY));
        if let Some(line) = wrong {
            tally.lock().unwrap().add(format!("{name} said {line:?}"));
        }
    }
}

/// Whether the pages of each node sum to its pool, as its coordinator has heard last.
async fn look(sky: &Sky, tally: &Mutex<Tally>, looks: &AtomicU64) {
    let Some(nodes) = sky.operator().nodes(sky.http()).await else { return };
    for node in nodes {
        let pages = |state: &str| node["pages"][state].as_u64().unwrap_or(0);
        let states = ["free", "cached", "running", "receiving", "sending", "quarantined"];
        let sum: u64 = states.into_iter().map(pages).sum();
        looks.fetch_add(1, Ordering::SeqCst);
        if sum != pages("total") {
            tally.lock().unwrap().add(format!("pages do not sum to the pool: {node}"));
        }
    }
}

/// A request in the wanted phase, or in another if there is none for a while.
pub async fn someone(sky: &Sky, wanted: char, random: &mut Rng) -> (char, Value) {
    let begun = Instant::now();
    loop {
        let operator = sky.operator();
        let (requests, nodes) = tokio::join!(operator.requests(sky.http()), operator.nodes(sky.http()));
        let mut requests = requests.unwrap_or_default();
        random.shuffle(&mut requests);
        let placed = requests
            .into_iter()
            .filter_map(|request| Some((phase_of(&request, nodes.as_deref().unwrap_or_default())?, request)));
        let placed: Vec<_> = placed.collect();
        let is_late = begun.elapsed() > SEARCH;
        if let Some(found) = placed.into_iter().find(|(phase, _)| *phase == wanted || is_late) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where a request stands, by the letters of the table.
fn phase_of(request: &Value, nodes: &[Value]) -> Option<char> {
    let tokens = request["tokens"].as_u64().unwrap_or(0);
    let receives = || {
        let on = nodes.iter().find(|node| node["id"] == request["decode"]);
        on.is_some_and(|node| node["pages"]["receiving"].as_u64() > Some(0))
    };
    match request["stage"].as_str()? {
        "queued" => Some('Q'),
        "prefill" if tokens == 0 && request["prefill"].is_null() => Some('D'),
        "prefill" if tokens == 0 => Some('P'),
        "prefill" | "decode" if tokens > 0 => Some(if tokens < 20 && receives() { 'T' } else { 'S' }),
        _ => None,
    }
}

impl Fault {
    /// Whether it is done to whoever is there. Callers leave, and have deadlines, of themselves; frames are
    /// disturbed all the time; and who would be killed twice may have been answered meanwhile.
    fn is_of_storms(&self) -> bool {
        !matches!(
            self.does,
            Does::Leave
                | Does::Deadline
                | Does::Frames(_)
                | Does::KillTwice
                | Does::Choke(..)
                | Does::Nameless(_)
        ) && !self.cuts_off_etcd()
    }

    /// Whether ways to an etcd of one member are cut. Here it has three, which other faults split.
    fn cuts_off_etcd(&self) -> bool {
        matches!(&self.does, Does::Cut(ways, _) if ways.iter().any(|(from, to)| from.is_etcd() || to.is_etcd()))
    }

    /// Whether it takes one process alone, so that it may be done while others are gone.
    fn takes_one(&self) -> bool {
        matches!(
            self.does,
            Does::Kill([Who::Prefill | Who::Decode]) | Does::Stop(Who::Prefill | Who::Decode, _)
        )
    }

    /// Whom it meets, if it takes one process alone.
    fn meets(&self, request: &Value) -> impl Iterator<Item = String> {
        let who = match &self.does {
            Does::Kill([who]) | Does::Stop(who, _) => Some(who.name(request)),
            _ => None,
        };
        who.into_iter()
    }

    /// How many decode nodes it takes from a request.
    pub(super) fn hurts(&self) -> u32 {
        let takes =
            |ways: &[(Who, Who)]| ways.iter().any(|(from, to)| from.is_of_streams() && to.is_of_streams());
        match &self.does {
            Does::Kill(them) => them.iter().filter(|who| matches!(who, Who::Decode)).count() as u32,
            Does::Stop(Who::Decode | Who::Coordinator, _) | Does::Hang(Who::Decode) => 1,
            Does::Term(Who::Decode)
            | Does::Choke(Who::Decode, _)
            | Does::Lone(Who::Decode, _)
            | Does::Starve(Who::Decode, _) => 1,
            Does::Rough { who, .. } => u32::from(who.iter().any(Who::is_of_streams)),
            Does::DecodeKilledWithoutEtcd(_) => 1,
            Does::Cut(ways, _) => u32::from(takes(ways)),
            Does::Renew => 2,
            _ => 0,
        }
    }

    fn cuts(&self) -> Cuts {
        match &self.does {
            Does::Kill([Who::Coordinator]) => Cuts::All,
            Does::Term(Who::Coordinator) => Cuts::Later,
            _ => Cuts::None,
        }
    }
}

impl Who {
    fn is_etcd(&self) -> bool {
        matches!(self, Self::Etcd)
    }

    /// Whether a request's stream goes there.
    fn is_of_streams(&self) -> bool {
        matches!(self, Self::Decode | Self::Coordinator)
    }
}

// === for people ===

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = self.tally.lock().unwrap();
        let (requests, strikes) = (tally.requests.values().sum::<u64>(), self.strikes.values().sum::<u32>());
        let by_outcome: Vec<_> =
            tally.requests.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        let letters = PHASES.iter().map(|phase| {
            let here = self.strikes.iter().filter(|((_, letter), _)| *letter == phase.letter);
            format!("{} {}", here.map(|(_, count)| count).sum::<u32>(), phase.name)
        });
        let letters: Vec<_> = letters.collect();
        writeln!(
            f,
            "storm {}: {requests} requests ({}), {} tokens",
            self.seed,
            by_outcome.join(", "),
            tally.tokens
        )?;
        writeln!(f, "{strikes} faults ({}), {} of them on top of another", letters.join(", "), self.doubled)?;
        let looks = self.looks.load(Ordering::SeqCst);
        let (calms, free, longest) = (self.calms, self.longest_free, tally.longest);
        writeln!(f, "{looks} sums of pages; {calms} calms, all pages free after {free:.1?} at most")?;
        writeln!(f, "longest request {longest:.1?}; at rest a process held {} at most", self.most)?;
        for (row, fault) in FAULTS.iter().enumerate().filter(|(_, fault)| fault.is_of_storms()) {
            let count = |letter| self.strikes.get(&(row, letter)).copied().unwrap_or(0).to_string();
            let counts: Vec<_> = PHASES.iter().map(|phase| count(phase.letter)).collect();
            writeln!(f, "| {} | {} |", fault.name, counts.join(" | "))?;
        }
        Ok(())
    }
}
