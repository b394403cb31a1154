//! Log-probabilities, in the two shapes OpenAI has for them.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};

use crate::generation::TokenWords;

/// JSON has no infinity; this is what stands for impossible, as in OpenAI's answers.
const IMPOSSIBLE: f32 = -9999.0;

/// `choices[].logprobs` of a chat answer: `{"content": [...], "refusal": null}`.
#[derive(JsonSchema)]
#[schemars(with = "ChatLogprobsWords<'a>")]
pub struct ChatLogprobs<'a>(pub &'a [TokenWords]);

/// `choices[].logprobs` of a completions answer: parallel arrays.
#[derive(JsonSchema)]
#[schemars(with = "CompletionLogprobsWords")]
pub struct CompletionLogprobs<'a> {
    pub tokens: &'a [TokenWords],
    /// Characters of the choice's text before the first of them.
    pub offset: usize,
}

#[derive(Serialize, JsonSchema)]
pub struct ChatToken<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: Vec<ChatTop<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct ChatTop<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    bytes: &'a [u8],
}

/// As [`ChatLogprobs`] are written.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "for its schema")]
struct ChatLogprobsWords<'a> {
    content: Vec<ChatToken<'a>>,
    refusal: Option<String>,
}

/// As [`CompletionLogprobs`] are written.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "for its schema")]
struct CompletionLogprobsWords {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

/// Each item made while it is written.
struct Items<F>(F);

/// A log-probability that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

impl Serialize for ChatLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens = self.0.iter().map(chat_token);
        let mut object = serializer.serialize_map(Some(2))?;
        object.serialize_entry("content", &Items(|| tokens.clone()))?;
        object.serialize_entry("refusal", &())?;
        object.end()
    }
}

/// Tokens of an answer in Responses, which write them as chats do.
pub fn chat_tokens(tokens: &[TokenWords]) -> Vec<ChatToken<'_>> {
    tokens.iter().map(chat_token).collect()
}

fn chat_token(token: &TokenWords) -> ChatToken<'_> {
    ChatToken {
        token: token.text(),
        logprob: finite(token.logprob),
        bytes: &token.bytes,
        top_logprobs: token.top.iter().map(chat_top).collect(),
    }
}

fn chat_top(top: &TokenWords) -> ChatTop<'_> {
    ChatTop { token: top.text(), logprob: finite(top.logprob), bytes: &top.bytes }
}

impl Serialize for CompletionLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<_> = self.tokens.iter().map(TokenWords::text).collect();
        let offsets = texts.iter().scan(self.offset, |next, text| {
            let offset = *next;
            *next += text.chars().count();
            Some(offset)
        });
        let mut object = serializer.serialize_map(Some(4))?;
        object.serialize_entry("tokens", &texts)?;
        object.serialize_entry(
            "token_logprobs",
            &Items(|| self.tokens.iter().map(|token| finite(token.logprob))),
        )?;
        object
            .serialize_entry("top_logprobs", &Items(|| self.tokens.iter().map(|token| TopMap(&token.top))))?;
        object.serialize_entry("text_offset", &Items(|| offsets.clone()))?;
        object.end()
    }
}

/// `{"text": logprob, …}`. Of alternatives with equal text the likelier one counts.
struct TopMap<'a>(&'a [TokenWords]);

impl Serialize for TopMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (i, top) in self.0.iter().enumerate() {
            let text = top.text();
            if self.0[..i].iter().all(|other| other.text() != text) {
                object.serialize_entry(&text, &finite(top.logprob))?;
            }
        }
        object.end()
    }
}

impl<F, I> Serialize for Items<F>
where
    F: Fn() -> I,
    I: Iterator,
    I::Item: Serialize,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_seq(None)?;
        for item in (self.0)() {
            array.serialize_element(&item)?;
        }
        array.end()
    }
}
