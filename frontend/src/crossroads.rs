//! Paths on which two dialects meet: a field of the body says whose call it is.

use std::sync::Arc;

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Map, Value};

use crate::{
    Config,
    ask::Call,
    calls::Ticket,
    error::{ApiError, ErrorBody},
    openapi::{Content, Operation, Schemas, any_of},
    routes::Room,
    sglang, tgi, vllm,
};

/// TGI's or the other's.
enum Either<T, O> {
    Tgi(T),
    Other(O),
}

/// The routes.
pub fn router() -> Router<Arc<Room>> {
    Router::new().route("/tokenize", post(tokenize)).route("/generate", post(generate))
}

/// Both dialects' bodies, answers and refusals.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let refusal = any_of([schemas.written::<ErrorBody<'static>>(), schemas.written::<tgi::ErrorBody>()]);
    let bodies = [schemas.read::<tgi::GenerateBody>(), schemas.read::<sglang::SglangBody>()];
    let answers = [
        schemas.written::<tgi::Generated<'static>>(),
        schemas.written::<sglang::Answer<'static>>(),
        schemas.written::<Vec<sglang::Answer<'static>>>(),
    ];
    let generate = Content::Json(any_of(answers));
    let texts = [
        schemas.read::<tgi::TgiTokenizeBody>(),
        schemas.read::<vllm::TokenizeBody>(),
        schemas.read::<vllm::TokenizeChatBody>(),
    ];
    let tokens =
        Content::Json(any_of([schemas.written::<Vec<tgi::Place>>(), schemas.written::<vllm::Tokens>()]));
    vec![
        Operation::post("/generate", "Continues texts", any_of(bodies), generate, schemas)
            .streaming()
            .refusing(refusal.clone()),
        Operation::post("/tokenize", "Text as tokens", any_of(texts), tokens, schemas).refusing(refusal),
    ]
}

/// TGI's bodies have `inputs`, vLLM's `prompt` or `messages`.
async fn tokenize(State(room): State<Arc<Room>>, request: Request<Body>) -> Response {
    let read = |object: Map<String, Value>, config: &Config| {
        Ok(if is_tgis(&object) {
            Either::Tgi(tgi::TokenizeCall::read(object, config))
        } else {
            Either::Other(vllm::TokenizeCall::read(object, config)?)
        })
    };
    match room.desk.read(request, read).await {
        Ok(Either::Tgi(call)) => tgis(async { tgi::tokenized(&room.desk, call?).await }).await,
        Ok(Either::Other(call)) => vllm::tokenized(&room.desk, call).await.into_response(),
        Err(error) => error.into_response(),
    }
}

/// TGI's bodies have `inputs`, SGLang's `text` or `input_ids`.
async fn generate(
    State(room): State<Arc<Room>>,
    Extension(ticket): Extension<Ticket>,
    request: Request<Body>,
) -> Response {
    let read = |object: Map<String, Value>,
                config: &Config|
     -> Result<Either<Result<Call, ApiError>, Call>, ApiError> {
        Ok(if is_tgis(&object) {
            Either::Tgi(tgi::read(object, config))
        } else {
            Either::Other(sglang::read(object, config)?)
        })
    };
    match room.desk.read(request, read).await {
        Ok(Either::Tgi(call)) => tgis(async { room.desk.answer(ticket, call?).await }).await,
        Ok(Either::Other(call)) => room.desk.answer(ticket, call).await.into_response(),
        Err(error) => error.into_response(),
    }
}

fn is_tgis(object: &Map<String, Value>) -> bool {
    object.contains_key("inputs")
}

/// An answer whose refusals are in TGI's words.
async fn tgis(answer: impl Future<Output = Result<Response, ApiError>>) -> Response {
    answer.await.unwrap_or_else(|error| tgi::refusal(&error))
}
