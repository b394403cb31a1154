//! A batch, as it is told of and kept.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A batch, in OpenAI's words. Times are seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Batch {
    pub id: String,
    pub object: String,
    pub endpoint: Endpoint,
    pub errors: Option<Faults>,
    pub input_file_id: String,
    pub completion_window: String,
    pub status: Status,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: u64,
    pub in_progress_at: Option<u64>,
    pub expires_at: u64,
    pub finalizing_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub failed_at: Option<u64>,
    pub expired_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    pub cancelled_at: Option<u64>,
    pub request_counts: Counts,
    pub usage: BatchUsage,
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What a batch's lines call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Endpoint {
    #[serde(rename = "/v1/chat/completions")]
    Chat,
    #[serde(rename = "/v1/completions")]
    Completions,
    #[serde(rename = "/v1/responses")]
    Responses,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "BatchStatus")]
pub enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

/// Lines by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchCounts")]
pub struct Counts {
    pub total: usize,
    pub completed: usize,
    pub failed: usize,
}

/// Tokens of all answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchUsage {
    pub input_tokens: u64,
    pub input_tokens_details: CachedTokens,
    pub output_tokens: u64,
    pub output_tokens_details: ThoughtTokens,
    pub total_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchCachedTokens")]
pub struct CachedTokens {
    pub cached_tokens: u64,
}

/// Those of Responses; the other calls do not tell thoughts apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchThoughtTokens")]
pub struct ThoughtTokens {
    pub reasoning_tokens: u64,
}

/// Why nothing of a batch was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchFaults")]
pub struct Faults {
    pub object: String,
    pub data: Vec<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "BatchFault")]
pub struct Fault {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// Counted from 1; none: the file as a whole.
    pub line: Option<usize>,
}

/// A batch as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptBatch {
    pub batch: Batch,
    /// Files that its answers and failures are becoming.
    pub output: String,
    pub errors: String,
    /// How long these will be kept.
    pub output_seconds: u64,
}

// === impl Batch ===

impl Batch {
    /// When it came to this end.
    pub fn time_of(&mut self, end: Status) -> &mut Option<u64> {
        match end {
            Status::Expired => &mut self.expired_at,
            Status::Cancelled => &mut self.cancelled_at,
            Status::Failed => &mut self.failed_at,
            _ => &mut self.completed_at,
        }
    }
}

// === impl Status ===

impl Status {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

// === impl Endpoint ===

impl Endpoint {
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Responses];

    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
        }
    }

    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}

// === impl BatchUsage ===

impl BatchUsage {
    /// Adds what an answer says that it used, in either way to say it.
    pub fn add(&mut self, usage: &serde_json::Value) {
        let number = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| usage.pointer(name)?.as_u64());
            found.unwrap_or_default()
        };
        self.input_tokens += number(["/prompt_tokens", "/input_tokens"]);
        self.output_tokens += number(["/completion_tokens", "/output_tokens"]);
        self.total_tokens += number(["/total_tokens"; 2]);
        let cached = ["/prompt_tokens_details/cached_tokens", "/input_tokens_details/cached_tokens"];
        self.input_tokens_details.cached_tokens += number(cached);
        let thoughts = number(["/output_tokens_details/reasoning_tokens"; 2]);
        self.output_tokens_details.reasoning_tokens += thoughts;
    }
}

// === impl Faults ===

impl Faults {
    pub fn of(data: Vec<Fault>) -> Self {
        Self { object: "list".to_owned(), data }
    }
}
