//! Embeddings: prompts as vectors.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use baton_protocol::Pooling;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    completions::{prompts, read_contents},
    parameters,
};
use crate::{
    Config,
    ask::{Ask, Parameters},
    calls::{Embedded, Ticket},
    error::ApiError,
    fields::Fields,
    routes::Room,
};

/// Settings of embeddings, section `[frontend.embeddings]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// How a prompt's rows become one vector: `mean`, or `last` for that of its last token.
    pub pooling: Pooling,
    /// Most inputs of one call.
    pub max_inputs: usize,
}

/// What is to be embedded.
pub struct EmbeddingCall {
    pub ask: Ask,
    /// Whether vectors are written as the base64 of their bytes.
    is_base64: bool,
}

/// The answer.
#[derive(Serialize, JsonSchema)]
pub struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: EmbeddingUsage,
}

#[derive(Serialize, JsonSchema)]
struct Embedding {
    object: &'static str,
    /// Which input it is of.
    index: usize,
    embedding: Vector,
}

/// Numbers, or the base64 of their bytes: f32, little-endian.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `/v1/embeddings`
pub async fn make(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let EmbeddingCall { ask, is_base64 } = room.desk.read(request, EmbeddingCall::read).await?;
    let Embedded { model, tokens, vectors } = room.desk.embed(ticket, ask).await?;
    let embedding =
        |(index, vector)| Embedding { object: "embedding", index, embedding: Vector::of(vector, is_base64) };
    Ok(Json(EmbeddingList {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model: &model,
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    })
    .into_response())
}

// === impl EmbeddingConfig ===

impl Default for EmbeddingConfig {
    fn default() -> Self {
        Self { pooling: Pooling::Mean, max_inputs: 2048 }
    }
}

// === impl EmbeddingCall ===

impl EmbeddingCall {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field that is missing, wrong or unsupported.
    pub fn read(object: Map<String, Value>, config: &Config) -> Result<Self, ApiError> {
        let mut body = Fields::of_body(object);
        let model = Some(parameters::model(&mut body)?);
        let begins = body.boolean_or("add_special_tokens", true)?;
        let contents = read_contents(&mut body, "input", begins)?;
        let limit = config.embeddings.max_inputs;
        body.check_entries("input", contents.len(), ("embeddings.max_inputs", limit))?;
        let is_base64 = match body.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(body.invalid("encoding_format", "must be float or base64")),
        };
        let truncate = parameters::truncate(&mut body)?;
        body.string("user")?;
        body.finish()?;
        let parameters = Parameters { embedding: Some(config.embeddings.pooling), ..Parameters::default() };
        let prompts = prompts("input", contents, truncate).collect();
        Ok(Self { ask: Ask { model, prompts, parameters }, is_base64 })
    }
}

// === impl Vector ===

impl Vector {
    fn of(vector: Vec<f32>, is_base64: bool) -> Self {
        if !is_base64 {
            return Self::Numbers(vector);
        }
        let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
        Self::Base64(STANDARD.encode(bytes))
    }
}
