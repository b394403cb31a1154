//! A request after validation: owned, complete, nothing optional.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::RequestId;

/// What a client asked for, ready to run. Made by `frontend::validate` only.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Made by the coordinator's side, 128 random bits.
    pub id: RequestId,
    /// The served model's name.
    pub model: String,
    /// Whose request it is; keys the prefix cache.
    pub tenant: String,
    /// The prompt, never empty.
    pub tokens: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// When a choice ends.
    pub stop: Stop,
    /// How many answers (`n`), at least 1.
    pub choices: u32,
    /// Whether tokens carry their log-probability.
    pub logprobs: bool,
    /// How many alternatives tokens carry, 0 to 20.
    pub top_logprobs: u32,
    /// What is told of the prompt's own tokens, if anything is.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Set: an embedding of the prompt is wanted, made so, and no answer; its one choice has no tokens.
    pub embedding: Option<Pooling>,
    /// Time left until the answer must have ended.
    pub deadline: Duration,
    /// `traceparent` (W3C Trace Context) of the span whose parts its work is; empty if nobody traces it.
    pub trace: String,
}

/// Log-probabilities of the tokens of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// The first token that is told of, and all behind it are; at least 1, since nothing
    /// comes before token 0 that it could follow from.
    pub from: u32,
    /// How many alternatives each carries, 0 to 20.
    pub top: u32,
}

/// How the rows of a prompt behind the model's last norm become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token.
    Last,
}

/// What a reader should wait at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Until the first token.
    pub ttft: Duration,
    /// Between tokens.
    pub itl: Duration,
}

/// How the next token is drawn from logits. Order of application: logit bias,
/// penalties, grammar, temperature, top-k, top-p, min-p, then a draw by a counter-based
/// generator keyed by (seed, choice, position).
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides (multiplies) positive (negative) logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens seen in the answer.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the answer.
    pub frequency_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<LogitBias>,
    /// Key of the generator; chosen at random when the client gave none.
    pub seed: u64,
    /// What the answer must be.
    pub grammar: Option<Arc<Grammar>>,
}

/// What an answer must be, as its author wrote it. Where an answer stands in it follows from
/// the answer's tokens, so that it travels with the request and nothing else has to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grammar {
    /// The language of `source`.
    pub kind: GrammarKind,
    /// At most [`MAX_BYTES`](Self::MAX_BYTES).
    pub source: String,
}

/// Languages of grammars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrammarKind {
    /// A JSON Schema; the answer is a JSON text that it accepts.
    Json,
    /// A regular expression that matches the whole answer.
    Regex,
    /// A grammar in Lark's syntax.
    Lark,
}

/// One entry of `logit_bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitBias {
    /// The token.
    pub token: u32,
    /// Added to its logit, -100 to 100.
    pub bias: f32,
}

/// When a choice ends. Stop strings are the frontend's, since they need text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// At most this many tokens are generated, at least 1.
    pub max_tokens: u32,
    /// Stop tokens are not drawn before this many.
    pub min_tokens: u32,
    /// Whether end-of-sequence tokens of the model are ordinary tokens.
    pub ignore_eos: bool,
    /// Tokens that end the answer besides the model's own (which the engine knows).
    pub token_ids: Vec<u32>,
}

// === impl Request ===

impl Request {
    /// Whether rows of its prompt are read, which only who computes them has.
    pub fn reads_prompt(&self) -> bool {
        self.prompt_logprobs.is_some() || self.embedding.is_some()
    }

    /// The first row of its prompt that has to be computed, whatever is cached, for what is read;
    /// none: any will do.
    pub fn first_read(&self) -> Option<usize> {
        let told = self.prompt_logprobs.map(|asked| asked.from as usize - 1);
        self.embedding.map_or(told, |pooling| Some(pooling.first_row(self.tokens.len())))
    }
}

// === impl Pooling ===

impl Pooling {
    /// The first row that it reads of so many.
    pub const fn first_row(self, rows: usize) -> usize {
        match self {
            Self::Mean => 0,
            Self::Last => rows - 1,
        }
    }
}

// === impl Grammar ===

impl Grammar {
    /// Longest source that a node takes; frontends have lower limits of their own.
    pub const MAX_BYTES: usize = 1 << 20;
}

// === impl Sampling ===

impl Default for Sampling {
    /// Plain sampling at temperature 1, as OpenAI's API defines its defaults.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            grammar: None,
        }
    }
}

impl Sampling {
    /// The likeliest token every time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}
