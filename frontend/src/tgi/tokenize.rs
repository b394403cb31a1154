//! Text to tokens, each with its place.

use std::sync::Arc;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Config,
    ask::{Content, Prompt},
    calls::{Desk, Tokenized},
    error::ApiError,
    fields::Fields,
};

/// What is to be tokenized.
pub struct TokenizeCall {
    model: Option<String>,
    inputs: String,
}

/// A token and the characters of the text that it stands for.
#[derive(Serialize, JsonSchema)]
pub struct Place {
    id: u32,
    text: String,
    start: usize,
    stop: usize,
}

/// `/tokenize`
///
/// # Errors
/// When the model cannot take it.
pub async fn tokenized(desk: &Desk, call: TokenizeCall) -> Result<Response, ApiError> {
    let content = Content::Text { text: call.inputs.clone(), begins: true };
    let prompt = Prompt { param: "inputs".to_owned(), content, truncate: None };
    let Tokenized { text, tokens, .. } = desk.tokenize(call.model, prompt).await?;
    let spell = {
        let text = Arc::clone(&text);
        move |id| String::from_utf8_lossy(&text.token_bytes(id)).into_owned()
    };
    let spans = move || {
        text.encode_spans(&call.inputs).map_err(|error| ApiError::invalid("inputs", error.to_string()))
    };
    let spans = desk.texts.run(spans).await?;
    // A token before them all begins the text.
    let begins = tokens.iter().take(tokens.len().saturating_sub(spans.len())).map(|&id| (id, 0..0));
    let places = begins.chain(spans);
    let places: Vec<_> =
        places.map(|(id, span)| Place { id, text: spell(id), start: span.start, stop: span.end }).collect();
    Ok(Json(places).into_response())
}

// === impl TokenizeCall ===

impl TokenizeCall {
    /// Reads a body with `inputs`.
    ///
    /// # Errors
    /// The first field that is missing, wrong or unsupported.
    pub fn read(object: Map<String, Value>, _: &Config) -> Result<Self, ApiError> {
        let mut body = Fields::of_body(object);
        let model = body.string("model")?;
        let Value::String(inputs) = body.require("inputs")? else {
            return Err(body.invalid("inputs", "must be a string"));
        };
        body.finish()?;
        Ok(Self { model, inputs })
    }
}
