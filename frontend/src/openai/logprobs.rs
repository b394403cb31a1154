//! Log-probabilities, in the two shapes OpenAI has for them.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};

use crate::generation::{Likelihood, PromptWord, TokenWords, Used};

/// JSON has no infinity; this is what stands for impossible, as in OpenAI's answers.
const IMPOSSIBLE: f32 = -9999.0;

/// `choices[].logprobs` of a chat answer: `{"content": [...], "refusal": null}`.
#[derive(JsonSchema)]
#[schemars(with = "ChatLogprobsWords<'a>")]
pub struct ChatLogprobs<'a>(pub &'a [TokenWords]);

/// `choices[].logprobs` of a completions answer: parallel arrays.
#[derive(Clone, Copy, JsonSchema)]
#[schemars(with = "CompletionLogprobsWords")]
pub struct CompletionLogprobs<'a> {
    /// The prompt, if it is shown before the answer.
    pub prompt: &'a [PromptWord],
    pub tokens: &'a [TokenWords],
    /// Characters of the choice's text before the first of the answer's tokens.
    pub offset: usize,
    /// Alternatives that are shown.
    pub top: usize,
}

/// What vLLM tells of a prompt: for each token none, or what is known by token id, its own and
/// so many likelier ones.
#[derive(Clone, Copy, JsonSchema)]
#[schemars(with = "Vec<Option<BTreeMap<String, PromptToken<'a>>>>")]
pub struct PromptLogprobs<'a> {
    words: &'a [PromptWord],
    top: usize,
}

#[derive(Serialize, JsonSchema)]
struct PromptToken<'a> {
    logprob: f32,
    rank: u32,
    decoded_token: Cow<'a, str>,
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
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The same.
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
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
        let &Self { prompt, tokens, offset, top } = self;
        let told = || prompt.iter().map(|word| word.told.as_ref());
        let values = told().map(|told| told.map(|told| finite(told.logprob)));
        let values = values.chain(tokens.iter().map(|token| Some(finite(token.logprob))));
        let tops = told().map(|told| told.map(|told| TopMap(shown(&told.top, top))));
        let tops = tops.chain(tokens.iter().map(|token| Some(TopMap(shown(&token.top, top)))));
        let texts = prompt.iter().map(PromptWord::text).chain(tokens.iter().map(TokenWords::text));
        let mut object = serializer.serialize_map(Some(4))?;
        object.serialize_entry("tokens", &Items(|| texts.clone()))?;
        object.serialize_entry("token_logprobs", &Items(|| values.clone()))?;
        object.serialize_entry("top_logprobs", &Items(|| tops.clone()))?;
        object.serialize_entry("text_offset", &Items(|| offsets(prompt, tokens, offset)))?;
        object.end()
    }
}

fn shown(top: &[TokenWords], most: usize) -> &[TokenWords] {
    &top[..top.len().min(most)]
}

/// Where tokens begin, in characters: those of the prompt from 0 on, those of the answer from `answer` on.
fn offsets<'a>(
    prompt: &'a [PromptWord],
    tokens: &'a [TokenWords],
    answer: usize,
) -> impl Iterator<Item = usize> + 'a {
    // The text of a prompt has no control tokens in it.
    let prompt = prompt.iter().map(|word| if word.is_control { 0 } else { word.text().chars().count() });
    let from = |start: usize| {
        move |next: &mut usize, chars: usize| Some(start + std::mem::replace(next, *next + chars))
    };
    prompt.scan(0, from(0)).chain(tokens.iter().map(TokenWords::chars).scan(0, from(answer)))
}

// === impl PromptLogprobs ===

impl<'a> PromptLogprobs<'a> {
    /// With so many alternatives, if it is told.
    pub fn of(used: Option<&'a Used>, top: Option<u32>) -> Option<Self> {
        Some(Self { words: &used?.prompt, top: top? as usize })
    }
}

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens = || self.words.iter().map(|word| Some(by_id(word, word.told.as_ref()?, self.top)));
        Items(tokens).serialize(serializer)
    }
}

/// What is told of a token, by id.
fn by_id<'a>(word: &'a PromptWord, told: &'a Likelihood, top: usize) -> BTreeMap<u32, PromptToken<'a>> {
    let likely = (1..).zip(shown(&told.top, top)).map(|(rank, other)| {
        let logprob = finite(other.logprob);
        (other.id, PromptToken { logprob, rank, decoded_token: other.text() })
    });
    let own = PromptToken { logprob: finite(told.logprob), rank: told.rank, decoded_token: word.text() };
    likely.chain([(word.id, own)]).collect()
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
