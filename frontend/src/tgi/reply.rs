//! The answer to a generate call.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;

use super::error::ErrorBody;
use crate::{
    ask::Parameters,
    error::ApiError,
    generation::{Delta, End, TokenWords, Used},
    openai::finite,
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    /// The object in an array of its own.
    Array,
    Stream,
}

/// Writes it.
pub struct GenerateReply {
    form: Form,
    details: bool,
    /// The prompt, to be shown before the answer.
    full_text: Option<String>,
    /// Whether tokens are drawn, so that the seed means something.
    samples: bool,
    /// Whether tokens have alternatives.
    top: bool,
    /// Of a stream so far.
    sent: Sent,
}

#[derive(Default)]
struct Sent {
    text: String,
    tokens: u32,
    prompt_tokens: u32,
    /// The last token there may be, which waits for the end that it is sent with.
    last: Option<(TokenWords, String)>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TgiGenerated")]
pub struct Generated<'a> {
    generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

/// Of one choice; the best one's has the others'.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TgiDetails")]
struct Details<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    generated_text: Option<String>,
    finish_reason: &'static str,
    generated_tokens: usize,
    seed: Option<u64>,
    /// Details of the prompt, which are not supported.
    prefill: [(); 0],
    tokens: Vec<TokenShape<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<Vec<TokenShape<'a>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_of_sequences: Option<Vec<Details<'a>>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TgiTokenShape")]
struct TokenShape<'a> {
    id: u32,
    text: Cow<'a, str>,
    /// null: not known, of the token that ended the answer.
    logprob: Option<f32>,
    special: bool,
}

#[derive(Serialize)]
struct Step<'a> {
    index: u32,
    token: TokenShape<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_tokens: Option<Vec<TokenShape<'a>>>,
    generated_text: Option<String>,
    details: Option<StepDetails>,
}

#[derive(Serialize)]
struct StepDetails {
    finish_reason: &'static str,
    generated_tokens: u32,
    input_length: u32,
    seed: Option<u64>,
}

// === impl GenerateReply ===

impl GenerateReply {
    pub fn new(form: Form, details: bool, full_text: Option<String>, parameters: &Parameters) -> Self {
        let samples = parameters.sampling.temperature > 0.0;
        let top = parameters.logprobs.is_some_and(|top| top > 0);
        Self { form, details, full_text, samples, top, sent: Sent::default() }
    }

    fn text(&self, answer: &str) -> String {
        self.full_text.clone().unwrap_or_default() + answer
    }

    fn seed(&self, facts: &Facts) -> Option<u64> {
        self.samples.then_some(facts.seed)
    }

    fn details<'a>(&self, facts: &Facts, choice: &'a Choice) -> Details<'a> {
        let top = |token: &'a TokenWords| token.top.iter().map(|top| shape(facts, top, top.text())).collect();
        Details {
            generated_text: None,
            finish_reason: choice.end.as_ref().map_or("length", finish_word),
            generated_tokens: choice.ids.len(),
            seed: self.seed(facts),
            prefill: [],
            tokens: choice.tokens.iter().map(|token| shape(facts, token, token.text())).collect(),
            top_tokens: self.top.then(|| choice.tokens.iter().map(top).collect()),
            best_of_sequences: None,
        }
    }

    fn write(
        &self,
        facts: &Facts,
        (token, text): (&TokenWords, &str),
        end: Option<&End>,
        events: &mut Events,
    ) -> serde_json::Result<()> {
        let top = || token.top.iter().map(|top| shape(facts, top, top.text())).collect();
        events.data(&Step {
            index: self.sent.tokens,
            token: shape(facts, token, Cow::Borrowed(text)),
            top_tokens: self.top.then(top),
            generated_text: end.map(|_| self.text(&self.sent.text)),
            details: end.map(|end| self.step_details(facts, end)),
        })
    }

    /// Ends a stream whose last token is sent already: by one that is not shown.
    fn write_end(&self, facts: &Facts, text: &str, end: &End, events: &mut Events) -> serde_json::Result<()> {
        let id = facts.text.eos_tokens().first().copied().unwrap_or_default();
        events.data(&Step {
            index: self.sent.tokens + 1,
            token: TokenShape { id, text: Cow::Borrowed(text), logprob: None, special: true },
            top_tokens: None,
            generated_text: Some(self.text(&self.sent.text)),
            details: Some(self.step_details(facts, end)),
        })
    }

    fn step_details(&self, facts: &Facts, end: &End) -> StepDetails {
        StepDetails {
            finish_reason: finish_word(end),
            generated_tokens: self.sent.tokens,
            input_length: self.sent.prompt_tokens,
            seed: self.seed(facts),
        }
    }
}

impl Reply for GenerateReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let Some((best, others)) = answer.choices.split_first() else { return Ok(Vec::new()) };
        let others = others.iter().map(|choice| Details {
            generated_text: Some(self.text(&choice.text)),
            ..self.details(facts, choice)
        });
        let others: Vec<_> = others.collect();
        let best_of_sequences = (!others.is_empty()).then_some(others);
        let generated = Generated {
            generated_text: self.text(&best.text),
            details: self.details.then(|| Details { best_of_sequences, ..self.details(facts, best) }),
        };
        match self.form {
            Form::Array => serde_json::to_vec(&[generated]),
            Form::Object | Form::Stream => serde_json::to_vec(&generated),
        }
    }

    fn begin(&mut self, _: &Facts, used: &[Used], _: &mut Events) -> serde_json::Result<()> {
        self.sent.prompt_tokens = used.iter().map(|used| used.prompt_tokens).sum();
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        self.sent.text.push_str(&delta.text);
        if let Some(token) = &delta.token {
            self.sent.tokens += 1;
            if delta.end.is_none() && self.sent.tokens == facts.max_tokens {
                self.sent.last = Some((token.clone(), delta.text.clone()));
                return Ok(());
            }
            return self.write(facts, (token, &delta.text), delta.end.as_ref(), events);
        }
        let Some(end) = &delta.end else { return Ok(()) };
        match self.sent.last.take() {
            Some((token, text)) => self.write(facts, (&token, &(text + &delta.text)), Some(end), events),
            None => self.write_end(facts, &delta.text, end, events),
        }
    }

    fn end(&mut self, _: &Facts, _: &[Used], _: &mut Events) -> serde_json::Result<()> {
        Ok(())
    }

    fn fail(&mut self, _: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.data(&ErrorBody::of(error))
    }
}

fn shape<'a>(facts: &Facts, token: &TokenWords, text: Cow<'a, str>) -> TokenShape<'a> {
    let special = facts.text.is_control(token.id);
    TokenShape { id: token.id, text, logprob: Some(finite(token.logprob)), special }
}

fn finish_word(end: &End) -> &'static str {
    match end {
        End::Model | End::Calls => "eos_token",
        End::StopString(_) => "stop_sequence",
        End::Length => "length",
    }
}
