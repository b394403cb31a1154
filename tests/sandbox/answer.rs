//! Streamed completions with a byte-exact oracle for the mock backend.

use baton_engine::backend::mock;
use baton_protocol::Sampling;
use futures::StreamExt;
use serde_json::Value;

use super::PATIENCE;

/// What came of one streamed request.
#[derive(Debug, Default)]
pub struct StreamedAnswer {
    /// Text by choice.
    pub texts: Vec<String>,
    /// Finish reason by choice.
    pub reasons: Vec<Option<String>>,
    /// The last usage object.
    pub usage: Value,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a streamed request ended.
#[derive(Debug, Default, PartialEq)]
pub enum Outcome {
    /// The connection broke without a word: never right.
    #[default]
    Broken,
    /// `[DONE]`.
    Done,
    /// One error in OpenAI's form, with its HTTP status (200 inside a stream).
    Error(u16, String),
    /// We closed it.
    Left,
}

/// Streams `/v1/completions` to its end. Panics when it takes longer than [`PATIENCE`].
pub async fn complete(http: &reqwest::Client, url: &str, body: &Value) -> StreamedAnswer {
    complete_until(http, url, body, |_| false).await
}

/// As [`complete`], but hangs up as soon as `leave` says so (asked after each event).
pub async fn complete_until(
    http: &reqwest::Client,
    url: &str,
    body: &Value,
    leave: impl Fn(&StreamedAnswer) -> bool,
) -> StreamedAnswer {
    let choices = body["n"].as_u64().unwrap_or(1) as usize;
    let mut answer = StreamedAnswer {
        texts: vec![String::new(); choices],
        reasons: vec![None; choices],
        ..StreamedAnswer::default()
    };
    let streaming = stream(http, url, body, leave, &mut answer);
    let finished = tokio::time::timeout(PATIENCE, streaming).await;
    assert!(finished.is_ok(), "hung: {body} after {answer:?}");
    answer
}

async fn stream(
    http: &reqwest::Client,
    url: &str,
    body: &Value,
    leave: impl Fn(&StreamedAnswer) -> bool,
    answer: &mut StreamedAnswer,
) {
    let Ok(response) = http.post(format!("{url}/v1/completions")).json(body).send().await else { return };
    let status = response.status().as_u16();
    if status != 200 {
        let error: Value = response.json().await.unwrap_or_default();
        answer.outcome = Outcome::Error(status, error["error"]["message"].as_str().unwrap_or("").to_owned());
        return;
    }
    let mut bytes = response.bytes_stream();
    let mut buffer = String::new();
    while let Some(Ok(part)) = bytes.next().await {
        buffer += std::str::from_utf8(&part).expect("events are cut at characters or joined by the client");
        while let Some(end) = buffer.find("\n\n") {
            let event: String = buffer.drain(..end + 2).collect();
            let Some(data) = event.trim().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                answer.outcome = Outcome::Done;
                return;
            }
            take(&serde_json::from_str(data).expect("events are JSON"), answer);
            if matches!(answer.outcome, Outcome::Error(..)) {
                return;
            }
            if leave(answer) {
                answer.outcome = Outcome::Left;
                return;
            }
        }
    }
}

fn take(event: &Value, answer: &mut StreamedAnswer) {
    if let Some(error) = event.get("error") {
        answer.outcome = Outcome::Error(200, error["message"].as_str().unwrap_or("").to_owned());
        return;
    }
    if event["usage"].is_object() {
        answer.usage = event["usage"].clone();
    }
    for choice in event["choices"].as_array().into_iter().flatten() {
        let index = choice["index"].as_u64().expect("a choice has an index") as usize;
        answer.texts[index] += choice["text"].as_str().unwrap_or("");
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert_eq!(answer.reasons[index], None, "two finish reasons for choice {index}");
            answer.reasons[index] = Some(reason.to_owned());
        }
    }
}

/// What the mock backend must answer, by choice.
pub fn mock_expected(prompt: &[u32], sampling: &Sampling, choices: u32, tokens: usize) -> Vec<String> {
    let text = baton_model::ModelText::mock();
    (0..choices).map(|choice| text.decode(&mock::expected(prompt, sampling, choice, tokens))).collect()
}
