//! What each model is asked for of late. Pure: the clock is passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use baton_protocol::{Bill, Budgets, Request};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::outlook::{Asked, Demand};

/// By model. Only models that nodes have served are entered, so that there are few.
#[derive(Debug, Default)]
pub struct Demands(Mutex<BTreeMap<String, Record>>);

#[derive(Debug)]
struct Record {
    since: Instant,
    at: Instant,
    /// Requests that came, each counting less the longer ago.
    arrived: f64,
    /// The last of them, answered or not: what is hard to answer is missing among the answered.
    asked: VecDeque<Asked>,
    prompt: Mean,
    computed: Mean,
    answers: Mean,
}

/// A mean of what came last.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    count: u32,
    value: f64,
}

/// What a request was when it had ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Those that a prefill node computed.
    pub computed_tokens: usize,
    /// Tokens of all its answers.
    pub answer_tokens: usize,
}

/// A request counts for a third after so long.
const MEMORY: Duration = Duration::from_secs(30);
/// Means are of about so many of the last requests.
const MOST: u32 = 200;
/// So many are held against their budgets one by one.
const ASKED: usize = 64;
/// From so many on they are believed.
const ENOUGH: u32 = 10;

// === impl Demands ===

impl Demands {
    /// A request came, whatever becomes of it.
    pub fn arrived(&self, model: &str, asked: Asked, now: Instant) {
        let mut records = self.0.lock();
        let record = match records.get_mut(model) {
            Some(record) => record,
            None => records.entry(model.to_owned()).or_insert_with(|| Record::new(now)),
        };
        record.fade(now);
        record.arrived += 1.0;
        record.asked.truncate(ASKED - 1);
        record.asked.push_front(asked);
    }

    /// A request was answered.
    pub fn ended(&self, model: &str, ended: Ended) {
        let mut records = self.0.lock();
        let Some(record) = records.get_mut(model) else { return };
        record.prompt.take(ended.prompt_tokens as f64);
        record.computed.take(ended.computed_tokens as f64);
        record.answers.take(ended.answer_tokens as f64);
    }

    /// What a model is asked for now; none until enough of its requests were answered.
    pub fn of(&self, model: &str, now: Instant) -> Option<Demand> {
        let mut records = self.0.lock();
        let record = records.get_mut(model)?;
        record.fade(now);
        let memory = MEMORY.as_secs_f64();
        let known =
            memory * (1.0 - (-now.saturating_duration_since(record.since).as_secs_f64() / memory).exp());
        (record.prompt.count >= ENOUGH && known > 0.0).then(|| Demand {
            requests: record.arrived / known,
            asked: record.asked.iter().copied().collect(),
            computed: record.computed.value / record.prompt.value.max(1.0),
            answers: record.answers.value,
            waiting: 0.0,
        })
    }
}

// === impl Asked ===

impl Asked {
    /// A request with these budgets.
    pub(crate) fn of(request: &Request, budgets: Budgets) -> Self {
        Self { prompt: request.tokens.len() as f64, budgets }
    }
}

// === impl Ended ===

impl Ended {
    /// By what it came to.
    pub(crate) fn billed(prompt_tokens: usize, answer_tokens: usize, bill: &Bill) -> Self {
        let computed_tokens = match bill.prefill_node {
            Some(_) => prompt_tokens.saturating_sub(bill.cached_tokens as usize),
            None => 0,
        };
        Self { prompt_tokens, computed_tokens, answer_tokens }
    }
}

// === impl Record ===

impl Record {
    fn new(now: Instant) -> Self {
        let mean = Mean::default();
        Self {
            since: now,
            at: now,
            arrived: 0.0,
            asked: VecDeque::with_capacity(ASKED),
            prompt: mean,
            computed: mean,
            answers: mean,
        }
    }

    fn fade(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.arrived *= (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
    }
}

// === impl Mean ===

impl Mean {
    fn take(&mut self, value: f64) {
        self.count = (self.count + 1).min(MOST);
        self.value += (value - self.value) / f64::from(self.count);
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::NodeId;

    use super::*;

    const BUDGETS: Budgets = Budgets { ttft: Duration::from_millis(500), itl: Duration::from_millis(50) };
    const ASKED: Asked = Asked { prompt: 100.0, budgets: BUDGETS };

    #[test]
    fn arrivals_are_a_rate_and_fade() {
        let (demands, start) = (Demands::default(), Instant::now());
        let bill = Bill { prefill_node: Some(NodeId::from("p")), cached_tokens: 60, ..Bill::default() };
        let ended = Ended::billed(100, 7, &bill);
        demands.ended("m", ended);
        for at in 0..200 {
            let now = start + Duration::from_millis(100 * at);
            demands.arrived("m", ASKED, now);
            assert_eq!(demands.of("m", now).is_some(), at >= u64::from(ENOUGH));
            demands.ended("m", ended);
        }
        let now = start + Duration::from_secs(20);
        let demand = demands.of("m", now).unwrap();
        assert!((9.0..11.0).contains(&demand.requests), "{demand:?}");
        assert_eq!((demand.prompt(), demand.computed, demand.answers), (100.0, 0.4, 7.0));
        assert_eq!(demand.asked, [ASKED; super::ASKED]);
        let later = demands.of("m", now + 10 * MEMORY).unwrap();
        assert!(later.requests < 0.01 && later.prompt() == 100.0, "{later:?}");
        assert!(demands.of("other", now).is_none());
    }

    #[test]
    fn a_prompt_that_ran_where_it_is_decoded_is_no_work_of_prefill_nodes() {
        let (demands, now) = (Demands::default(), Instant::now());
        demands.arrived("m", ASKED, now);
        let bill = Bill::default();
        (0..ENOUGH).for_each(|_| demands.ended("m", Ended::billed(100, 7, &bill)));
        let demand = demands.of("m", now + Duration::from_secs(1)).unwrap();
        assert_eq!((demand.prompt(), demand.computed), (100.0, 0.0));
    }
}
