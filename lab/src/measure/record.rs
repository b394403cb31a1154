//! What came of one request.

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::budgets::Budgets;

/// A request and its times, in seconds from the start of its run where no
/// other beginning is named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Index of its class.
    pub class: usize,
    /// Number of its session.
    pub session: usize,
    /// Its place in the session, from 0.
    pub turn: usize,
    /// When it was to be sent.
    pub intended: f64,
    /// When it was sent: later if the client is late, or too many are under way.
    pub sent: f64,
    /// When nothing more came.
    pub end: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// From `intended` to the first text; none: none came, or the answer came whole.
    pub ttft: Option<f64>,
    /// Seconds between events with text.
    pub gaps: Vec<f32>,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<usize>,
    /// Of these, not computed anew.
    pub cached_tokens: Option<usize>,
    /// Tokens of the answer, as the server counts them, else its events.
    pub output_tokens: usize,
    /// Tokens that were asked for.
    pub wanted_tokens: usize,
    /// Where the server says that its time went.
    pub phases: Option<Phases>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// With all of its answer.
    Answered,
    /// The server has no room (429 or 503).
    Refused {
        /// HTTP's.
        status: u16,
        /// Whether it told when to come back (`Retry-After`).
        says_when: bool,
        /// Its words.
        body: String,
    },
    /// In any other way.
    Failed {
        /// The server's words, or the system's.
        why: String,
    },
}

/// Milliseconds of a request by what the server did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Before anything.
    pub queue_ms: f64,
    /// Computing the prompt.
    pub prefill_ms: f64,
    /// Moving its KV pages, most of it meanwhile.
    pub transfer_ms: f64,
    /// Of that, what was waited for.
    pub wait_ms: f64,
    /// Generating.
    pub decode_ms: f64,
}

// === impl Record ===

impl Record {
    /// A request of class, session and turn that is sent at its time, and of which nothing has come.
    pub(crate) fn begun(
        (class, session, turn): (usize, usize, usize),
        at: f64,
        wanted_tokens: usize,
    ) -> Self {
        Self {
            class,
            session,
            turn,
            intended: at,
            sent: at,
            end: at,
            outcome: Outcome::Answered,
            ttft: None,
            gaps: Vec::new(),
            prompt_tokens: None,
            cached_tokens: None,
            output_tokens: 0,
            wanted_tokens,
            phases: None,
        }
    }

    /// Notes what came; `at` makes seconds of times.
    pub(super) fn note(&mut self, answer: &Answer, at: impl Fn(tokio::time::Instant) -> f64) {
        self.end = at(answer.end);
        self.outcome = answer.outcome.clone();
        self.ttft = answer.first.map(|first| at(first) - self.intended);
        self.gaps = answer.gaps.iter().map(std::time::Duration::as_secs_f32).collect();
        self.prompt_tokens = answer.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.cached_tokens = answer.usage.as_ref().and_then(super::answer::Usage::cached_tokens);
        self.output_tokens = answer.usage.as_ref().map_or(self.events(), |usage| usage.completion_tokens);
        self.phases = answer.phases;
    }

    /// Events with text.
    pub fn events(&self) -> usize {
        self.gaps.len() + usize::from(self.ttft.is_some())
    }

    /// Whether all of its answer came.
    pub fn is_answered(&self) -> bool {
        self.outcome == Outcome::Answered
    }

    /// Whether the server said that it has no room.
    pub fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused { .. })
    }

    /// Whether it was answered with another number of tokens than asked for: that is other work.
    pub fn has_other_length(&self) -> bool {
        self.is_answered() && self.output_tokens != self.wanted_tokens
    }

    /// Seconds from when it was to be sent to its end.
    pub fn e2e(&self) -> f64 {
        self.end - self.intended
    }

    /// Mean seconds of an output token after the first.
    pub fn tpot(&self) -> Option<f64> {
        let after_first = self.gaps.iter().map(|&gap| f64::from(gap)).sum::<f64>();
        (self.output_tokens > 1 && self.ttft.is_some()).then(|| after_first / (self.output_tokens - 1) as f64)
    }

    /// Whether it was answered within its budgets.
    pub fn keeps(&self, budgets: &Budgets) -> bool {
        let within = |seconds: Option<f64>, ms: Option<f64>| {
            ms.is_none_or(|ms| seconds.is_some_and(|seconds| seconds * 1e3 <= ms))
        };
        // Nothing lies between the tokens of an answer that has one.
        let worst_gap = || (self.gaps.len().max(1) as f64 * 0.99).ceil() as usize - 1;
        let itl = || {
            let mut sorted = self.gaps.clone();
            sorted.sort_by(f32::total_cmp);
            self.ttft.map(|_| sorted.get(worst_gap()).copied().map_or(0.0, f64::from))
        };
        self.is_answered()
            && within(self.ttft, budgets.ttft_ms)
            && within(Some(self.e2e()), budgets.e2e_ms)
            && (budgets.itl_ms.is_none() || within(itl(), budgets.itl_ms))
            && (budgets.tpot_ms.is_none() || within(self.tpot().or(self.ttft.map(|_| 0.0)), budgets.tpot_ms))
    }
}
