//! The answer to a generate call.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::ApiError,
    generation::{Delta, End, PromptWord, TokenWords, Used},
    openai::finite,
    reply::{Choice, Events, Facts, Reply, Whole},
};

/// Writes it.
pub struct GenerateReply {
    /// How the client calls its request.
    rid: Option<String>,
    /// Whether answers stand in an array, and events say whose they are.
    many: bool,
    /// How tokens are told, if they are.
    logprobs: Option<Logs>,
    /// Of a stream so far: every event tells its choice from the start.
    choices: Vec<Choice>,
    used: Vec<Used>,
}

/// How log-probabilities are told.
#[derive(Clone, Copy)]
pub struct Logs {
    /// With the tokens' texts.
    pub spells: bool,
    /// From which token of the prompt on; none: of its last one the id alone.
    pub start: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SglangAnswer")]
pub struct Answer<'a> {
    text: &'a str,
    output_ids: &'a [u32],
    meta_info: Meta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SglangMeta")]
struct Meta<'a> {
    id: String,
    finish_reason: Option<Value>,
    prompt_tokens: u32,
    completion_tokens: usize,
    cached_tokens: u32,
    #[serde(flatten)]
    logprobs: Option<Logprobs<'a>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SglangLogprobs")]
struct Logprobs<'a> {
    /// Of the prompt; its first token has none, nor has any if only those of the answer are told.
    input_token_logprobs: Vec<Input<'a>>,
    input_top_logprobs: Vec<Option<Vec<Triple<'a>>>>,
    output_token_logprobs: Vec<Triple<'a>>,
    output_top_logprobs: Vec<Vec<Triple<'a>>>,
}

/// Log-probability, token, and its text if that is wanted.
type Triple<'a> = (f32, u32, Option<Cow<'a, str>>);

/// The same of a token of the prompt.
type Input<'a> = (Option<f32>, u32, Option<Cow<'a, str>>);

// === impl GenerateReply ===

impl GenerateReply {
    pub fn new(rid: Option<String>, many: bool, logprobs: Option<Logs>) -> Self {
        Self { rid, many, logprobs, choices: Vec::new(), used: Vec::new() }
    }

    fn answer<'a>(
        &self,
        facts: &Facts,
        choice: &'a Choice,
        (index, used): (usize, &'a [Used]),
    ) -> Answer<'a> {
        let of_prompt = (facts.choices / facts.prompts) as usize;
        let used = used.get(index / of_prompt.max(1));
        let id = self.rid.clone().unwrap_or_else(|| facts.id.to_string());
        Answer {
            text: &choice.text,
            output_ids: &choice.ids,
            meta_info: Meta {
                id,
                finish_reason: choice.end.as_ref().map(|end| finish(end, choice.ids.len())),
                prompt_tokens: used.map_or(0, |used| used.prompt_tokens),
                completion_tokens: choice.ids.len(),
                cached_tokens: used.map_or(0, |used| used.cached_tokens),
                logprobs: self.logprobs.map(|logs| {
                    Logprobs::of(used.map_or(&[][..], |used| used.prompt.as_slice()), &choice.tokens, logs)
                }),
            },
            index: self.many.then_some(index as u32),
        }
    }
}

impl Reply for GenerateReply {
    fn whole(&self, facts: &Facts, answer: &Whole) -> serde_json::Result<Vec<u8>> {
        let answers = answer.choices.iter().enumerate();
        let answers: Vec<_> =
            answers.map(|(index, choice)| self.answer(facts, choice, (index, &answer.used))).collect();
        match answers.as_slice() {
            [only] if !self.many => serde_json::to_vec(only),
            all => serde_json::to_vec(all),
        }
    }

    fn begin(&mut self, facts: &Facts, used: &[Used], _: &mut Events) -> serde_json::Result<()> {
        self.choices = vec![Choice::default(); facts.choices as usize];
        self.used = used.to_vec();
        Ok(())
    }

    fn step(&mut self, facts: &Facts, delta: &Delta, events: &mut Events) -> serde_json::Result<()> {
        let index = delta.index as usize;
        self.choices[index].push(delta.clone());
        events.data(&self.answer(facts, &self.choices[index], (index, &self.used)))
    }

    fn end(&mut self, _: &Facts, _: &[Used], events: &mut Events) -> serde_json::Result<()> {
        events.done();
        Ok(())
    }

    fn fail(&mut self, _: &Facts, error: &ApiError, events: &mut Events) -> serde_json::Result<()> {
        events.data(&error.body())
    }
}

fn finish(end: &End, tokens: usize) -> Value {
    match end {
        End::Model | End::Calls => json!({ "type": "stop", "matched": null }),
        End::StopString(stop) => json!({ "type": "stop", "matched": &**stop }),
        End::Length => json!({ "type": "length", "length": tokens }),
    }
}

// === impl Logprobs ===

impl<'a> Logprobs<'a> {
    fn of(prompt: &'a [PromptWord], tokens: &'a [TokenWords], Logs { spells, start }: Logs) -> Self {
        let triple = |token: &'a TokenWords| (finite(token.logprob), token.id, spells.then(|| token.text()));
        let triples = |tokens: &'a [TokenWords]| tokens.iter().map(triple).collect::<Vec<_>>();
        // Before the first token that is told of stands one that is not: token 0, or one that nobody asked for.
        let prompt =
            if start.is_some_and(|start| start > 0) { prompt.get(1..).unwrap_or_default() } else { prompt };
        let input = |word: &'a PromptWord| {
            let logprob = word.told.as_ref().map(|told| finite(told.logprob));
            (logprob, word.id, spells.then(|| word.text()))
        };
        Self {
            input_token_logprobs: prompt.iter().map(input).collect(),
            input_top_logprobs: prompt
                .iter()
                .map(|word| word.told.as_ref().map(|told| triples(&told.top)))
                .collect(),
            output_token_logprobs: triples(tokens),
            output_top_logprobs: tokens.iter().map(|token| triples(&token.top)).collect(),
        }
    }
}
