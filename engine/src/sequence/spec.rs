//! What is submitted to an engine.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::{KvShape, Pooling, PromptLogprobs, RequestId, Sampling, Stop};

use crate::{SubmitError, kv::PageRef};

/// One request to an engine.
#[derive(Clone, Debug)]
pub struct SequenceSpec {
    /// Whose it is; for logs.
    pub request: RequestId,
    /// Keys the prefix cache.
    pub tenant: String,
    /// What all choices have in common: the prompt, and what of the answer they share.
    pub tokens: Arc<[u32]>,
    /// How many of `tokens` are the client's prompt. The rest counts as answer.
    pub prompt_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// When a choice ends.
    pub stop: Stop,
    /// Whether tokens carry their log-probability.
    pub logprobs: bool,
    /// How many alternatives tokens carry.
    pub top_logprobs: u32,
    /// What is told of the prompt's tokens. What comes from the prefix cache cannot be told of,
    /// and so is computed again.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// What to do with it.
    pub goal: Goal,
    /// Where its KV is.
    pub start: StartFrom,
    /// When it fails.
    pub deadline: Option<Instant>,
    /// Time between tokens that its reader was promised; none: as it comes.
    pub itl: Option<Duration>,
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Goal {
    /// Generate these choices to their ends.
    Generate {
        /// The choices that have not ended yet.
        choices: Vec<ChoiceSpec>,
    },
    /// Compute the common tokens, draw the next token of each named choice, and end.
    /// The pages stay with whoever took them from `Started`.
    Prefill {
        /// Choices to draw for.
        sample: Vec<u32>,
    },
    /// Compute the tokens, make a vector of their rows, and end.
    Embed {
        /// Of which rows.
        pooling: Pooling,
    },
}

/// One answer of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChoiceSpec {
    /// Its number; keys its draws.
    pub choice: u32,
    /// Its tokens after the common ones that are known already. They are computed, not emitted.
    pub generated: Vec<u32>,
}

/// Where the KV of a request is.
#[derive(Clone, Debug)]
pub enum StartFrom {
    /// Wherever the prefix cache has it; the rest is computed.
    Cold,
    /// KV of the first `tokens` common tokens is in these pages, in order.
    /// Pages beyond are used for what follows.
    Adopted {
        /// From the first token on.
        pages: Vec<PageRef>,
        /// How many tokens' KV is there.
        tokens: usize,
    },
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) vocab_tokens: usize,
    pub(crate) context_tokens: usize,
    /// Whether grammars can be followed.
    pub(crate) has_text: bool,
}

// === impl SequenceSpec ===

impl SequenceSpec {
    /// Refuses what could never run.
    pub(crate) fn check(&self, limits: &Limits, shape: &KvShape) -> Result<(), SubmitError> {
        let invalid = |message: String| Err(SubmitError::Invalid(message));
        let known = self.tokens.len();
        if self.prompt_tokens == 0 || self.prompt_tokens > known {
            return invalid(format!("{} prompt tokens of {known} tokens", self.prompt_tokens));
        }
        let longest =
            self.goal.choices().map(|(_, generated)| known + generated.len()).max().unwrap_or(known);
        if longest > limits.context_tokens {
            return invalid(format!("{longest} tokens, at most {}", limits.context_tokens));
        }
        if let Some(token) = self.all_tokens().find(|token| *token as usize >= limits.vocab_tokens) {
            return invalid(format!("token {token} is outside of the vocabulary of {}", limits.vocab_tokens));
        }
        if self.sampling.grammar.is_some() && !limits.has_text {
            return invalid("this node has no text of the model to follow a grammar with".to_owned());
        }
        let mut numbers = BTreeSet::new();
        if let Some((choice, _)) = self.goal.choices().find(|(choice, _)| !numbers.insert(*choice)) {
            return invalid(format!("choice {choice} is there twice"));
        }
        if matches!(self.goal, Goal::Generate { .. }) && numbers.is_empty() {
            return invalid("no choices to generate".to_owned());
        }
        let is_cold = matches!(self.start, StartFrom::Cold);
        let is_answered = matches!(self.goal, Goal::Generate { .. });
        if self.prompt_logprobs.is_some_and(|asked| asked.from == 0 || !is_cold || !is_answered) {
            return invalid(
                "a prompt's log-probabilities come from where it is computed and answered".to_owned(),
            );
        }
        match &self.start {
            StartFrom::Adopted { .. } if self.goal.pooling().is_some() => {
                invalid("an embedding is made of rows, which are not adopted".to_owned())
            }
            StartFrom::Adopted { .. } if self.goal.is_prefill() => {
                invalid("a prefill for another node starts from this node's cache".to_owned())
            }
            StartFrom::Adopted { pages, tokens }
                if *tokens > known || pages.len() < shape.pages_for(*tokens) =>
            {
                invalid(format!("{tokens} of {known} tokens in {} pages", pages.len()))
            }
            StartFrom::Adopted { .. } | StartFrom::Cold => Ok(()),
        }
    }

    fn all_tokens(&self) -> impl Iterator<Item = u32> {
        let biased = self.sampling.logit_bias.iter().map(|entry| entry.token);
        let generated = self.goal.choices().flat_map(|(_, generated)| generated.iter().copied());
        self.tokens.iter().copied().chain(generated).chain(biased)
    }
}

// === impl Goal ===

impl Goal {
    /// The choices and their known tokens.
    pub(crate) fn choices(&self) -> Box<dyn Iterator<Item = (u32, &[u32])> + '_> {
        match self {
            Self::Generate { choices } => {
                Box::new(choices.iter().map(|choice| (choice.choice, choice.generated.as_slice())))
            }
            Self::Embed { .. } => Box::new(std::iter::empty()),
            Self::Prefill { sample } => Box::new(sample.iter().map(|choice| (*choice, [].as_slice()))),
        }
    }

    pub(crate) fn pooling(&self) -> Option<Pooling> {
        if let Self::Embed { pooling } = self { Some(*pooling) } else { None }
    }

    pub(crate) fn is_prefill(&self) -> bool {
        matches!(self, Self::Prefill { .. })
    }
}
