//! An answer as one object, when it is complete.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use super::{Facts, Reply, timing::timing};
use crate::{
    error::ApiError,
    generation::{Delta, End, Generation, TokenWords, Used},
    parts::Call,
};

/// An answer that is complete.
pub struct Whole {
    /// Of all prompts, one after another; if only the best are shown, these, the likeliest first.
    pub choices: Vec<Choice>,
    /// By prompt.
    pub used: Vec<Used>,
}

/// One choice, collected.
#[derive(Clone, Default)]
pub struct Choice {
    pub text: String,
    pub thoughts: String,
    pub calls: Vec<Call>,
    /// Tokens in which nothing was there but thoughts.
    pub thought_tokens: u32,
    pub ids: Vec<u32>,
    /// As many as `ids`, or none.
    pub tokens: Vec<TokenWords>,
    /// Of them those up to the last in which something was thought.
    pub before_text: usize,
    pub end: Option<End>,
}

/// Waits for the end of a generation and puts it into one response.
///
/// # Errors
/// When the generation fails.
pub async fn whole(
    mut generation: Generation,
    facts: Facts,
    reply: Box<dyn Reply>,
) -> Result<Response, ApiError> {
    let mut choices = vec![Choice::default(); facts.choices as usize];
    while let Some(delta) = generation.next().await? {
        choices[delta.index as usize].push(delta);
    }
    if let Some(best) = facts.best {
        choices = likeliest(&choices, (facts.choices / facts.prompts) as usize, best as usize);
    }
    let used = generation.settle().await;
    let timing = timing(&used);
    let bytes = reply
        .whole(&facts, &Whole { choices, used })
        .map_err(|_| ApiError::internal("the answer cannot be written as JSON"))?;
    Ok(([(CONTENT_TYPE, "application/json")], timing.unwrap_or_default(), bytes).into_response())
}

/// Of each group of choices those of the highest mean log-probability, in that order.
fn likeliest(choices: &[Choice], group: usize, best: usize) -> Vec<Choice> {
    let groups = choices.chunks(group.max(1)).flat_map(|group| {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        group.truncate(best);
        group
    });
    groups.collect()
}

// === impl Choice ===

impl Choice {
    /// Takes of its next step what is not shown.
    pub fn note(&mut self, delta: &Delta) {
        let is_thought = !delta.thoughts.is_empty() && delta.text.is_empty() && delta.calls.is_empty();
        self.thought_tokens += u32::from(is_thought && delta.id.is_some());
        self.end.clone_from(&delta.end);
    }

    /// Takes its next step.
    pub fn push(&mut self, delta: Delta) {
        self.note(&delta);
        self.text.push_str(&delta.text);
        self.thoughts.push_str(&delta.thoughts);
        for part in delta.calls {
            if let Some(name) = part.name {
                self.calls.push(Call { name, arguments: String::new() });
            }
            if let Some(call) = self.calls.last_mut() {
                call.arguments.push_str(&part.arguments);
            }
        }
        self.ids.extend(delta.id);
        self.tokens.extend(delta.token);
        if !delta.thoughts.is_empty() {
            self.before_text = self.tokens.len();
        }
    }

    /// Of its tokens; of no tokens the highest there is.
    fn mean_logprob(&self) -> f32 {
        let sum: f32 = self.tokens.iter().map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f32
    }
}
