//! A request whose answer is known beforehand.

use baton_protocol::Sampling;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::sandbox::{Outcome, StreamedAnswer, mock_expected};

/// A request and what it must answer.
pub struct Case {
    pub body: Value,
    expected: Vec<String>,
}

/// How every prompt ends, so that it is known wherever prompts come out.
pub const CANARY: &str = "prompts-are-nobody's";
/// A deadline that passes in every phase.
const DEADLINE_MS: &str = "900";

// === impl Case ===

impl Case {
    /// Of the same text in every run, and of another one for each number.
    pub fn new(number: u64, prompt_tokens: usize, max_tokens: usize, choices: u32) -> Self {
        Self::behind(&[], number, (prompt_tokens, max_tokens, choices))
    }

    /// The same behind a text that others may have too; tokens of the prompt, tokens of an answer, answers.
    pub fn behind(
        beginning: &[u32],
        number: u64,
        (prompt_tokens, max_tokens, choices): (usize, usize, u32),
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(number);
        let mut prompt = beginning.to_owned();
        prompt.extend((beginning.len()..prompt_tokens - CANARY.len()).map(|_| random.u32(32..122)));
        prompt.extend(CANARY.bytes().map(u32::from));
        let body = json!({
            "model": "mock", "prompt": prompt, "max_tokens": max_tokens, "n": choices, "seed": number,
            "temperature": 1.0, "stream": true, "ignore_eos": true,
            "stream_options": { "include_usage": true },
        });
        let sampling = Sampling { seed: number, ..Sampling::default() };
        Self { body, expected: mock_expected(&prompt, &sampling, choices, max_tokens) }
    }

    /// Byte-exact to the end, or what is not.
    pub fn is_whole(&self, answer: &StreamedAnswer) -> Result<(), String> {
        let tokens = self.body["max_tokens"].as_u64().unwrap() * self.body["n"].as_u64().unwrap();
        let by_length = |reason: &Option<String>| reason.as_deref() == Some("length");
        let is_whole = answer.outcome == Outcome::Done
            && answer.texts == self.expected
            && answer.reasons.iter().all(by_length)
            && answer.usage["completion_tokens"].as_u64() == Some(tokens);
        if is_whole { Ok(()) } else { Err(format!("not {:?} but {answer:?}", self.expected)) }
    }

    /// Whether what came is how the right answer begins, choice by choice.
    pub fn begins(&self, answer: &StreamedAnswer) -> Result<(), String> {
        let wrong =
            answer.texts.iter().zip(&self.expected).find(|(text, all)| !all.starts_with(text.as_str()));
        wrong.map_or(Ok(()), |(text, all)| Err(format!("{text:?} is not how {all:?} begins")))
    }

    pub fn assert_whole(&self, answer: &StreamedAnswer) {
        self.is_whole(answer).unwrap();
    }

    pub fn assert_prefix(&self, answer: &StreamedAnswer) {
        self.begins(answer).unwrap();
    }
}

/// A caller with all the time there is, or with next to none.
pub fn client(is_patient: bool) -> reqwest::Client {
    let mut headers = HeaderMap::new();
    if !is_patient {
        headers.insert("x-baton-deadline-ms", DEADLINE_MS.parse().unwrap());
    }
    let tls = baton_trust::https_to(None).unwrap();
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).tls_backend_preconfigured(tls);
    client.default_headers(headers).build().unwrap()
}
