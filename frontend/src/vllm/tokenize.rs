//! Text to tokens and back.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::{
    Config,
    ask::{Content, Prompt},
    calls::{Desk, Tokenized},
    error::ApiError,
    fields::Fields,
    openai::{read_conversation, token_ids},
    routes::Room,
};

/// What is to be tokenized.
pub struct TokenizeCall {
    model: Option<String>,
    prompt: Prompt,
    /// Whether each token's text is told too.
    strings: bool,
}

/// What is to be text again.
struct DetokenizeCall {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// `/tokenize`
///
/// # Errors
/// When the model cannot take it.
pub async fn tokenized(desk: &Desk, call: TokenizeCall) -> Result<Response, ApiError> {
    let TokenizeCall { model, prompt, strings } = call;
    let Tokenized { model, text, tokens } = desk.tokenize(model, prompt).await?;
    let string = |token: &u32| String::from_utf8_lossy(&text.token_bytes(*token)).into_owned();
    let strings: Option<Vec<_>> = strings.then(|| tokens.iter().map(string).collect());
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": model.longest(),
        "tokens": tokens,
        "token_strs": strings,
    }))
    .into_response())
}

/// `/detokenize`
pub async fn detokenize(State(room): State<Arc<Room>>, request: Request<Body>) -> Result<Response, ApiError> {
    let call = room.desk.read(request, DetokenizeCall::read).await?;
    let prompt = Prompt { param: "tokens".to_owned(), content: Content::Tokens(call.tokens), truncate: None };
    let Tokenized { text, tokens, .. } = room.desk.tokenize(call.model, prompt).await?;
    Ok(Json(json!({ "prompt": text.decode(&tokens) })).into_response())
}

// === impl TokenizeCall ===

impl TokenizeCall {
    /// Reads a body with `prompt` or `messages`.
    ///
    /// # Errors
    /// The first field that is missing, wrong or unsupported.
    pub fn read(object: Map<String, Value>, config: &Config) -> Result<Self, ApiError> {
        let is_chat = object.contains_key("messages");
        let mut body = Fields::of_body(object);
        let model = body.string("model")?;
        let strings = body.boolean("return_token_strs")?;
        let (param, content) = if is_chat {
            body.only("add_special_tokens", &[json!(false)])?;
            ("messages", Content::Chat(Box::new(read_conversation(&mut body, config)?)))
        } else {
            let begins = body.boolean_or("add_special_tokens", true)?;
            let Value::String(text) = body.require("prompt")? else {
                return Err(body.invalid("prompt", "must be a string"));
            };
            ("prompt", Content::Text { text, begins })
        };
        body.finish()?;
        Ok(Self { model, prompt: Prompt { param: param.to_owned(), content, truncate: None }, strings })
    }
}

// === impl DetokenizeCall ===

impl DetokenizeCall {
    fn read(object: Map<String, Value>, _: &Config) -> Result<Self, ApiError> {
        let mut body = Fields::of_body(object);
        let model = body.string("model")?;
        let Value::Array(tokens) = body.require("tokens")? else {
            return Err(body.invalid("tokens", "must be an array"));
        };
        let tokens = token_ids(&tokens, "tokens")?;
        body.finish()?;
        Ok(Self { model, tokens })
    }
}
