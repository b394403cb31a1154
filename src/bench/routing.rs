//! Conversations whose turns begin with all that was said before, after one of a
//! few system prompts, under policies of routing that take turns run by run. Four
//! prefill and two decode nodes in one process, mock backend.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::join_all;

use super::{
    call::{Called, Caller},
    median,
    process::ServerProcess,
    shown,
};
use crate::{args, client::quantile, terminal::say};

/// A token of a prompt takes 0.3 ms; a pool holds some 20 conversations.
const SETTINGS: [&str; 7] = [
    "cluster=routing",
    "model=mock",
    "nodes=[{id='p1',roles=['prefill']},{id='p2',roles=['prefill']},{id='p3',roles=['prefill']},\
     {id='p4',roles=['prefill']},{id='d1',roles=['decode']},{id='d2',roles=['decode']},\
     {id='c',roles=['coordinator']}]",
    "engine.backend=mock",
    "engine.pages=4096",
    "engine.page_tokens=16",
    "engine.mock={prefill_us_per_token=300,step_us_base=1000,decode_us_per_sequence=100}",
];

/// A conversation without its answers.
struct Conversation {
    system: Vec<u32>,
    /// What is said in each turn, and the tokens of its answer.
    turns: Vec<(Vec<u32>, usize)>,
}

/// What came of a run.
struct Run {
    calls: Vec<Called>,
    seconds: f64,
}

/// Prints the table.
///
/// # Errors
/// When a server does not start, or an answer does not come.
pub fn run(args: &args::BenchRouting) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let trace = trace(args);
    let budget = Duration::from_millis(args.ttft_ms);
    let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    for _ in 0..args.runs.max(1) {
        for policy in &args.policy {
            let mut set: Vec<String> = SETTINGS.map(str::to_owned).into();
            set.push(format!("coordinator.policy={policy}"));
            let server = ServerProcess::start(&args::Settings { set, ..args::Settings::default() })?;
            let caller = Caller::new(server.addr())?;
            let run = runtime.block_on(replay(&caller, &trace, args.clients));
            let unanswered = run.calls.iter().filter(|call| !call.is_whole).count();
            ensure!(unanswered == 0, "{policy}: {unanswered} turns were not answered");
            runs.entry(policy).or_default().push(run);
        }
    }
    say(format_args!(
        "| policy | turns/s | of these in {} ms | ratio to {}, pairs | TTFT p50/p99 ms |",
        args.ttft_ms, args.policy[0]
    ));
    say("|---|---|---|---|---|");
    for policy in &args.policy {
        let good = |policy: &str| runs[policy].iter().map(|run| run.good(budget)).collect::<Vec<_>>();
        let pairs: Vec<f64> =
            good(policy).iter().zip(good(&args.policy[0])).map(|(one, first)| one / first).collect();
        let of = &runs[policy.as_str()];
        let first: Vec<_> =
            of.iter().flat_map(|run| run.calls.iter().filter_map(|call| call.first)).collect();
        let ms = |share| quantile(&first, share).as_secs_f64() * 1e3;
        let rates: Vec<f64> = of.iter().map(|run| run.calls.len() as f64 / run.seconds).collect();
        say(format_args!(
            "| {policy} | {} | {} | {:.2} | {:.0} / {:.0} |",
            shown(&rates),
            shown(&good(policy)),
            median(&pairs),
            ms(0.5),
            ms(0.99)
        ));
    }
    Ok(())
}

/// The same for the same seed.
fn trace(args: &args::BenchRouting) -> Vec<Conversation> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let words = |random: &mut fastrand::Rng, tokens: usize| -> Vec<u32> {
        (0..tokens).map(|_| random.u32(32..127)).collect()
    };
    let systems: Vec<_> = (0..8).map(|_| words(&mut random, 512)).collect();
    let conversations = (0..args.conversations).map(|_| {
        let turns = (0..args.turns).map(|_| {
            let said = random.usize(128..384);
            (words(&mut random, said), random.usize(16..48))
        });
        let turns = turns.collect();
        Conversation { system: systems[random.usize(0..systems.len())].clone(), turns }
    });
    conversations.collect()
}

/// Clients who hold one conversation after the other.
async fn replay(caller: &Caller, trace: &[Conversation], clients: usize) -> Run {
    let next = AtomicUsize::new(0);
    let client = async || {
        let mut calls = Vec::new();
        while let Some(conversation) = trace.get(next.fetch_add(1, Ordering::Relaxed)) {
            calls.extend(conversation.hold(caller).await);
        }
        calls
    };
    let began = Instant::now();
    let calls = join_all((0..clients).map(|_| client())).await;
    Run { calls: calls.concat(), seconds: began.elapsed().as_secs_f64() }
}

// === impl Conversation ===

impl Conversation {
    /// Says everything and hears every answer.
    async fn hold(&self, caller: &Caller) -> Vec<Called> {
        let (mut prompt, mut calls) = (self.system.clone(), Vec::new());
        for (said, tokens) in &self.turns {
            prompt.extend(said);
            let called = caller.complete(&prompt, *tokens).await;
            // Tokens of the mock are bytes.
            prompt.extend(called.text.bytes().map(u32::from));
            calls.push(called);
        }
        calls
    }
}

// === impl Run ===

impl Run {
    /// Turns a second whose first token came in time.
    fn good(&self, budget: Duration) -> f64 {
        let in_time = |call: &&Called| call.first.is_some_and(|first| first <= budget);
        self.calls.iter().filter(in_time).count() as f64 / self.seconds
    }
}
