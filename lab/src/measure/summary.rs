//! The figures of a run.

use serde::{Deserialize, Serialize};

use super::{Record, Run, Spread};
use crate::traffic::Class;

/// Of all requests, and of those of each class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Of all.
    pub all: Figures,
    /// By name, where there are several classes.
    pub classes: Vec<Figures>,
}

/// Figures of some requests. Times are in seconds, those to the first token and
/// to the end from when a request was to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Whose they are.
    pub name: String,
    /// Sent, or meant to be.
    pub requests: usize,
    /// With all of their answer.
    pub answered: usize,
    /// Told that there is no room.
    pub refused: usize,
    /// Ended in any other way.
    pub failed: usize,
    /// Answered with another number of tokens than asked for.
    pub other_length: usize,
    /// From the first request to the last end, of all classes.
    pub seconds: f64,
    /// Answered requests a second.
    pub requests_per_second: f64,
    /// Output tokens a second: throughput.
    pub output_per_second: f64,
    /// Tokens of prompts and answers a second.
    pub tokens_per_second: f64,
    /// Tokens of the prompts of answered requests.
    pub prompt_tokens: usize,
    /// Of these, not computed anew.
    pub cached_tokens: usize,
    /// Tokens of answers.
    pub output_tokens: usize,
    /// Time to first token.
    pub ttft: Spread,
    /// Times between tokens, of all answers together.
    pub itl: Spread,
    /// Times per output token after the first, one an answer.
    pub tpot: Spread,
    /// Latency from end to end.
    pub e2e: Spread,
    /// Share of requests that kept every budget of their class.
    pub attainment: f64,
    /// Those requests a second.
    pub goodput: f64,
}

// === impl Summary ===

impl Summary {
    /// Of a run of these classes.
    pub fn of(run: &Run, classes: &[Class]) -> Self {
        let all = Figures::of("all", run, classes, |_| true);
        let by_class = classes
            .iter()
            .enumerate()
            .map(|(index, class)| Figures::of(&class.name, run, classes, |record| record.class == index));
        let classes = if classes.len() > 1 { by_class.collect() } else { Vec::new() };
        Self { all, classes }
    }

    /// All, then the classes.
    pub fn rows(&self) -> impl Iterator<Item = &Figures> {
        std::iter::once(&self.all).chain(&self.classes)
    }
}

// === impl Figures ===

impl Figures {
    fn of(name: &str, run: &Run, classes: &[Class], belongs: impl Fn(&Record) -> bool) -> Self {
        let records: Vec<&Record> = run.records.iter().filter(|record| belongs(record)).collect();
        let answered: Vec<&Record> = records.iter().filter(|record| record.is_answered()).copied().collect();
        let count = |holds: fn(&Record) -> bool| records.iter().filter(|record| holds(record)).count();
        let sum = |tokens: fn(&Record) -> usize| answered.iter().map(|record| tokens(record)).sum::<usize>();
        let (prompt_tokens, output_tokens) =
            (sum(|record| record.prompt_tokens.unwrap_or(0)), sum(|record| record.output_tokens));
        let keeps =
            |record: &&&Record| classes.get(record.class).is_none_or(|class| record.keeps(&class.budgets));
        let kept = records.iter().filter(keeps).count() as f64;
        let a_second = |count: f64| if run.seconds > 0.0 { count / run.seconds } else { 0.0 };
        Self {
            name: name.to_owned(),
            requests: records.len(),
            answered: answered.len(),
            refused: count(Record::is_refused),
            failed: count(|record| !record.is_answered() && !record.is_refused()),
            other_length: count(Record::has_other_length),
            seconds: run.seconds,
            requests_per_second: a_second(answered.len() as f64),
            output_per_second: a_second(output_tokens as f64),
            tokens_per_second: a_second((prompt_tokens + output_tokens) as f64),
            prompt_tokens,
            cached_tokens: sum(|record| record.cached_tokens.unwrap_or(0)),
            output_tokens,
            ttft: Spread::of(answered.iter().filter_map(|record| record.ttft)),
            itl: Spread::of(answered.iter().flat_map(|record| record.gaps.iter().map(|&gap| f64::from(gap)))),
            tpot: Spread::of(answered.iter().filter_map(|record| record.tpot())),
            e2e: Spread::of(answered.iter().map(|record| record.e2e())),
            attainment: if records.is_empty() { 0.0 } else { kept / records.len() as f64 },
            goodput: a_second(kept),
        }
    }
}
