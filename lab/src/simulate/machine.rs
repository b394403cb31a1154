//! What a node is: how long its steps take, what it holds, how fast KV leaves it.

use baton_protocol::{KvShape, StepCost, StepModel};
use serde::{Deserialize, Serialize};

/// A node's machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Shape of its KV.
    pub kv: KvShape,
    /// Of steps with prompts.
    pub prefill: StepCost,
    /// Of steps in which answers go on.
    pub decode: StepCost,
    /// How it fills steps, and what it holds.
    pub limits: Limits,
    /// How KV and words travel.
    pub link: Link,
}

/// How a machine fills steps, and what it holds; see `engine.scheduler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Pages of its pool; 0: what the card has left beside the weights.
    pub pages: usize,
    /// New tokens of a step.
    pub max_batch_tokens: usize,
    /// How long a step of prompts and answers may take, in milliseconds; 0: no limit.
    pub mixed_step_ms: f64,
    /// Answers computed at the same time.
    pub max_sequences: usize,
}

/// How KV and words travel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Of a node, in either direction.
    pub bytes_per_second: f64,
    /// Of a message between two processes, in seconds.
    pub hop: f64,
    /// From a first token until its answer may go on, beside what KV takes to travel: checks, and
    /// whoever has to wake up.
    pub handoff: f64,
    /// Before a request is routed, and from a first token to its reader, together, in seconds.
    pub front: f64,
}

/// Prompt tokens of a step for each answer that goes on, at least; as in the scheduler.
const PROMPT_TOKENS_BESIDE: usize = 4;
/// Groups of layers in which a prompt is sent, by default.
pub(crate) const LAYER_GROUPS: f64 = 4.0;

// === impl Machine ===

impl Machine {
    /// As a node publishes it.
    pub fn steps(&self) -> StepModel {
        StepModel { prefill: Some(self.prefill), decode: Some(self.decode) }
    }

    /// Prompt tokens of a step in which so many answers go on: the scheduler's rule.
    pub fn prompt_share(&self, generating: usize) -> usize {
        let page = self.kv.page_tokens as usize;
        let most = self.limits.max_batch_tokens.saturating_sub(generating).max(page);
        if generating == 0 || self.limits.mixed_step_ms <= 0.0 {
            return most;
        }
        let fair = (PROMPT_TOKENS_BESIDE * generating).max(page);
        let pace = self.prefill.unit + self.prefill.base / most as f64;
        let within = (self.limits.mixed_step_ms / 1e3 / pace.max(1e-12)) as usize;
        within.saturating_sub(generating).clamp(fair.min(most), most)
    }

    /// Seconds of a step: its prompt tokens and what these attend to, its answers and their lengths.
    /// None is shorter than one that reads the weights.
    pub fn step(&self, prompts: (f64, f64), answers: (f64, f64)) -> f64 {
        let beside = |steps| self.decode.seconds(steps, answers.0, answers.1);
        if prompts.0 > 0.0 {
            self.prefill.seconds(1.0, prompts.0, prompts.1).max(self.decode.base) + beside(0.0)
        } else {
            beside(1.0)
        }
    }

    /// Seconds that a prompt of which so many tokens are cached takes an idle node.
    pub fn prompt(&self, tokens: usize, cached: usize) -> f64 {
        let lacking = tokens.saturating_sub(cached).max(1);
        let steps = lacking.div_ceil(self.limits.max_batch_tokens.max(1)) as f64;
        let context = (tokens + cached) as f64 / 2.0;
        self.prefill.seconds(steps, lacking as f64, lacking as f64 * context)
    }

    /// Seconds that KV of so many tokens travels.
    pub fn transfer(&self, tokens: usize) -> f64 {
        (tokens * self.kv.token_bytes()) as f64 / self.link.bytes_per_second
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { pages: 0, max_batch_tokens: 8192, mixed_step_ms: 45.0, max_sequences: 256 }
    }
}

// === impl Link ===

impl Default for Link {
    /// 400 Gbit/s of which nine tenths are payload.
    fn default() -> Self {
        Self { bytes_per_second: 45e9, hop: 1e-4, handoff: 5e-4, front: 1e-3 }
    }
}
