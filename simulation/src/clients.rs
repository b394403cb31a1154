//! Requests to the coordinator, and whether their answers are right: the mock
//! backend's answer follows from prompt, seed and choice alone.

use std::{sync::Arc, time::Duration};

use baton_coordinator::{Answer, Coordinator, CoordinatorConfig, Wishes};
use baton_engine::backend::mock::expected;
use baton_protocol::{ErrorCode, Event, Failure, FinishReason, Request, RequestId, Sampling, Stop};
use fastrand::Rng;
use futures::StreamExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    registry::SimulatedRegistry,
    system,
    world::{COORDINATOR, World},
};

/// One request of a run.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When, on the run's clock.
    pub at: Duration,
    /// What.
    pub request: Request,
    /// Its client leaves after so many tokens.
    pub leaves_after: Option<usize>,
    /// It must be answered, and in this time: nothing is in its way.
    pub within: Option<Duration>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every choice was answered, rightly.
    Done,
    /// With one failure, and nothing wrong before it.
    Failed(ErrorCode),
    /// The client left.
    Left,
    /// The process with the coordinator and the client died.
    Cut,
}

/// What was seen of an answer so far.
struct Reader<'a> {
    ask: &'a Ask,
    tokens: Vec<usize>,
    has_finished: Vec<bool>,
    failure: Option<Failure>,
}

/// Time after its deadline in which a request must have ended.
const GRACE: Duration = Duration::from_secs(5);

/// A number of a [`Request`]'s prompt of which no two runs of one seed differ.
pub fn draw(random: &mut Rng, number: usize, at: Duration) -> Ask {
    // Every fourth prompt has a beginning that others have.
    let shared = if random.u32(..4) == 0 { 40 } else { 0 };
    let own = random.usize(1..200);
    let tokens = (0..shared)
        .chain(shared..shared + own)
        .map(|place| if place < shared { 32 + (place % 90) as u32 } else { 32 + random.u32(..90) });
    let tokens = tokens.collect();
    let max_tokens = random.u32(1..48);
    let request = Request {
        id: RequestId(number as u128 + 1),
        model: "mock".to_owned(),
        tenant: format!("tenant-{}", random.u32(..2)),
        tokens,
        sampling: Sampling { seed: random.u64(..), ..Sampling::default() },
        stop: Stop { max_tokens, min_tokens: 0, ignore_eos: false, token_ids: Vec::new() },
        choices: 1 + u32::from(random.u32(..5) == 0),
        logprobs: false,
        top_logprobs: 0,
        prompt_logprobs: None,
        embedding: None,
        trace: String::new(),
        deadline: Duration::from_secs(20),
    };
    let leaves = random.u32(..6) == 0;
    let leaves_after = leaves.then(|| random.usize(0..=max_tokens as usize));
    Ask { at, request, leaves_after, within: None }
}

/// A coordinator, and the clients of those requests that are still to come.
///
/// # Errors
/// Never; it runs until its host dies.
pub async fn run(world: Arc<World>, asks: Arc<Vec<Ask>>) -> turmoil::Result {
    let registry = Arc::new(SimulatedRegistry::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(registry.clone().follow(world.store.clone(), COORDINATOR.to_owned()));
    let config = CoordinatorConfig { models: vec!["mock".to_owned()], ..CoordinatorConfig::default() };
    let (coordinator, _background) = Coordinator::new(config, registry, world.trust.clone());
    let now = system::elapsed();
    let later = asks.iter().enumerate().filter(|(_, ask)| ask.at > now);
    for (number, ask) in later {
        let (world, coordinator, ask) = (world.clone(), coordinator.clone(), ask.clone());
        tasks.spawn(async move {
            sleep(ask.at - now).await;
            let (limit, began) = (ask.request.deadline + GRACE, Instant::now());
            match timeout(limit, answer(&coordinator, &ask)).await {
                Ok(Ok(outcome)) => {
                    let took = began.elapsed();
                    if ask.within.is_some_and(|within| outcome != Outcome::Done || took > within) {
                        world.wrong(&format!("request {number} is {outcome:?} after {took:?} of peace"));
                    }
                    world.ended(number, outcome);
                }
                Ok(Err(wrong)) => world.wrong(&format!("request {number}: {wrong}")),
                Err(_) => world.wrong(&format!("request {number} hangs past its deadline")),
            }
        });
    }
    std::future::pending().await
}

/// One request's whole way; or what is wrong with its answer.
async fn answer(coordinator: &Coordinator, ask: &Ask) -> Result<Outcome, String> {
    let choices = ask.request.choices as usize;
    let mut reader =
        Reader { ask, tokens: vec![0; choices], has_finished: vec![false; choices], failure: None };
    let mut answer: Answer = match coordinator.dispatch(ask.request.clone(), Wishes::default()).await {
        Ok(answer) => answer,
        Err(failure) => return reader.failed(&failure),
    };
    while let Some(event) = answer.next().await {
        reader.take(&event)?;
        if ask.leaves_after.is_some_and(|most| reader.tokens.iter().sum::<usize>() > most) {
            return Ok(Outcome::Left);
        }
    }
    match reader.failure.take() {
        Some(failure) => reader.failed(&failure),
        None if reader.has_finished.iter().all(|finished| *finished) => Ok(Outcome::Done),
        None => Err("the answer stopped without an end".to_owned()),
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn take(&mut self, event: &Event) -> Result<(), String> {
        let after_end = self.failure.is_some() || self.has_finished.iter().all(|finished| *finished);
        if after_end {
            return Err(format!("{event:?} after the end"));
        }
        match event {
            Event::Token(token) => {
                let (choice, place) = (token.choice as usize, token.position as usize);
                if self.has_finished[choice] || place != self.tokens[choice] {
                    return Err(format!("{token:?} instead of token {}", self.tokens[choice]));
                }
                let request = &self.ask.request;
                let right = expected(&request.tokens, &request.sampling, token.choice, place + 1);
                if right.last() != Some(&token.id) {
                    return Err(format!("{token:?} instead of {:?}", right.last()));
                }
                self.tokens[choice] += 1;
            }
            Event::Finished { choice, reason } => {
                let choice = *choice as usize;
                let most = self.ask.request.stop.max_tokens as usize;
                let is_whole = *reason == FinishReason::Length && self.tokens[choice] == most;
                if self.has_finished[choice] || !is_whole {
                    return Err(format!(
                        "choice {choice} finished ({reason:?}) after {} tokens",
                        self.tokens[choice]
                    ));
                }
                self.has_finished[choice] = true;
            }
            Event::Failed(failure) => self.failure = Some(failure.clone()),
            _ => {}
        }
        Ok(())
    }

    /// A failure must be of a kind that faults of the cluster can be the reason of.
    fn failed(&self, failure: &Failure) -> Result<Outcome, String> {
        let is_quarantined =
            failure.code == ErrorCode::Internal && failure.message.starts_with("nodes failed on");
        let may_be = failure.code.is_retryable() || failure.code == ErrorCode::DeadlineExceeded;
        if may_be || is_quarantined {
            Ok(Outcome::Failed(failure.code))
        } else {
            Err(format!("failed: {}: {failure}", failure.code))
        }
    }
}
