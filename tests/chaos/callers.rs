//! Callers of a storm: each asks one thing after another, for as long as it lasts, and judges every answer
//! by what was going on meanwhile.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Mutex,
    time::{Duration, Instant},
};

use fastrand::Rng;
use futures::FutureExt;
use tokio::sync::RwLock;

use super::case::{Case, client};
use crate::sandbox::{Cluster, Operator, Outcome, StreamedAnswer, complete_until};

/// What callers, those who look and the faults have in common.
pub struct Sky {
    /// Held by every request, so that who takes all of it finds none in flight.
    pub gate: RwLock<()>,
    doors: Mutex<(String, Operator)>,
    strikes: Mutex<Vec<Strike>>,
    patient: reqwest::Client,
    hurried: reqwest::Client,
}

/// A fault, and what requests that were there with it need not survive.
#[derive(Clone, Debug)]
pub struct Strike {
    pub name: &'static str,
    pub begun: Instant,
    /// When everybody was back.
    pub over: Option<Instant>,
    /// How many decode nodes it took. A request that two were taken from may fail, since it may be the cause.
    pub hurts: u32,
    pub cuts: Cuts,
}

/// Whose connections break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuts {
    None,
    /// Those of requests that came afterwards: their coordinator is about to end.
    Later,
    /// The same and of those in flight.
    All,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests by how they ended.
    pub requests: BTreeMap<&'static str, u64>,
    pub tokens: u64,
    /// Longest time of a request.
    pub longest: Duration,
    /// What broke a promise.
    pub wrong: Vec<String>,
}

/// Texts that several prompts begin with.
const BEGINNINGS: u64 = 12;
/// Their tokens: three pages.
const BEGINNING: usize = 48;
/// Of a caller between two requests, at most.
const PAUSE: Duration = Duration::from_millis(400);
/// The same when nobody was there to be asked.
const AFTER_NOBODY: Duration = Duration::from_millis(200);

/// What a caller does but listen to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Listen,
    /// It leaves behind so many characters.
    Leave(usize),
    /// It has next to no time.
    Hurry,
}

// === impl Sky ===

impl Sky {
    pub fn over(cluster: &Cluster) -> Self {
        Self {
            gate: RwLock::new(()),
            doors: Mutex::new((cluster.url.clone(), Operator::of(cluster))),
            strikes: Mutex::default(),
            patient: client(true),
            hurried: client(false),
        }
    }

    pub fn operator(&self) -> Operator {
        self.doors.lock().unwrap().1.clone()
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.patient
    }

    pub fn begin(&self, strike: Strike) {
        self.strikes.lock().unwrap().push(strike);
    }

    /// Everybody is back, maybe elsewhere.
    pub fn end(&self, cluster: &Cluster) {
        *self.doors.lock().unwrap() = (cluster.url.clone(), Operator::of(cluster));
        let mut strikes = self.strikes.lock().unwrap();
        strikes.iter_mut().filter(|strike| strike.over.is_none()).for_each(|s| s.over = Some(Instant::now()));
    }

    /// Asks one thing; what came of it is judged.
    pub async fn call(&self, number: u64, random: &mut Rng, tally: &Mutex<Tally>) {
        let gate = self.gate.read().await;
        let (case, does) = draw(number, random);
        let (url, begun) = (self.doors.lock().unwrap().0.clone(), Instant::now());
        let http = if does == Does::Hurry { &self.hurried } else { &self.patient };
        let leaves = |answer: &StreamedAnswer| matches!(does, Does::Leave(at) if answer.texts.iter().any(|text| text.len() > at));
        let asked = AssertUnwindSafe(complete_until(http, &url, &case.body, leaves)).catch_unwind().await;
        let judged = asked.map_err(words).and_then(|answer| {
            let tokens: usize = answer.texts.iter().map(String::len).sum();
            self.judge((&case, &answer), does, begun).map(|outcome| (outcome, tokens as u64))
        });
        drop(gate);
        let nobody = matches!(judged, Ok(("cut", _) | ("nobody there", _)));
        tally.lock().unwrap().take(judged, begun.elapsed(), number);
        tokio::time::sleep(if nobody { AFTER_NOBODY } else { PAUSE.mul_f64(random.f64()) }).await;
    }

    /// What became of a request, in words, or what is wrong with that.
    fn judge(
        &self,
        (case, answer): (&Case, &StreamedAnswer),
        does: Does,
        begun: Instant,
    ) -> Result<&'static str, String> {
        case.begins(answer)?;
        let met: Vec<_> = self.strikes.lock().unwrap().iter().filter(|s| s.met(begun)).cloned().collect();
        let is_all = |strike: &Strike| strike.cuts == Cuts::All;
        let is_later = |strike: &Strike| strike.cuts == Cuts::Later && begun >= strike.begun;
        let is_cut = met.iter().any(|strike| is_all(strike) || is_later(strike));
        let hurts: u32 = met.iter().map(|strike| strike.hurts).sum();
        let names = || met.iter().map(|strike| strike.name).collect::<Vec<_>>().join("; ");
        match &answer.outcome {
            Outcome::Done => case.is_whole(answer).map(|()| "whole"),
            Outcome::Left if matches!(does, Does::Leave(_)) => Ok("left"),
            Outcome::Error(504, _) if does == Does::Hurry => Ok("out of time"),
            Outcome::Error(200 | 429, words) if does == Does::Hurry && is_of_time(words) => Ok("out of time"),
            Outcome::Error(499 | 200, words) if words == "an operator cancelled the request" => {
                Ok("cancelled")
            }
            Outcome::Broken if is_cut => Ok("cut"),
            Outcome::Error(503, _) if is_cut => Ok("nobody there"),
            Outcome::Error(_, words) if hurts >= 2 && !words.is_empty() => Ok("failed by two losses"),
            _ => Err(format!("{answer:?} after {:.1?} and [{}]", begun.elapsed(), names())),
        }
    }
}

fn is_of_time(words: &str) -> bool {
    ["deadline", "the request's time is", "free in time"].iter().any(|said| words.contains(said))
}

fn draw(number: u64, random: &mut Rng) -> (Case, Does) {
    let mut beginning = Rng::with_seed(random.u64(..BEGINNINGS));
    let beginning: Vec<_> = (0..BEGINNING).map(|_| beginning.u32(32..122)).collect();
    let beginning = if random.bool() { &beginning[..] } else { &[] };
    let sizes = (random.usize(70..260), random.usize(5..160), random.u32(1..3));
    let does = match random.u8(..16) {
        0..2 => Does::Leave(random.usize(..60)),
        2 => Does::Hurry,
        _ => Does::Listen,
    };
    (Case::behind(beginning, number, sizes), does)
}

/// What somebody who panicked said.
pub fn words(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => panic.downcast_ref().map_or_else(String::new, |words: &&str| (*words).to_owned()),
    }
}

// === impl Strike ===

impl Strike {
    /// Whether a request that began then, and ends now, was there with it.
    fn met(&self, begun: Instant) -> bool {
        self.over.is_none_or(|over| over >= begun)
    }
}

// === impl Tally ===

impl Tally {
    fn take(&mut self, judged: Result<(&'static str, u64), String>, took: Duration, number: u64) {
        self.longest = self.longest.max(took);
        match judged {
            Ok((outcome, tokens)) => {
                *self.requests.entry(outcome).or_default() += 1;
                self.tokens += tokens;
            }
            Err(wrong) => self.add(format!("request {number}: {wrong}")),
        }
    }

    /// A promise was broken.
    pub fn add(&mut self, wrong: String) {
        println!("WRONG: {wrong}");
        self.wrong.push(wrong);
    }
}
