//! Bodies: whatever is taken is a request that nodes take too, within the limits.

use std::sync::{Arc, LazyLock};

use baton_coordinator::ServedModel;
use baton_model::ModelText;
use baton_protocol::{Request, RequestId, wire};
use serde_json::{Map, Value};

use super::refused;
use crate::{
    Config,
    ask::{Ask, Call},
    calls::Read,
    error::ApiError,
    json,
    openai::{self, embeddings::EmbeddingCall, responses::Responses},
    sglang, tgi,
    validate::{self, Terms},
    vllm,
};

/// Of the mock, and shorter.
const CONTEXT: u32 = 1024;

static TEXT: LazyLock<ModelText> = LazyLock::new(ModelText::mock);
static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);

/// `/v1/chat/completions`
pub fn chat(bytes: &[u8]) {
    body(bytes, |object, config| openai::read_chat(object, config).map(asked));
}

/// `/v1/completions`
pub fn completions(bytes: &[u8]) {
    body(bytes, |object, config| openai::read_completion(object, config).map(asked));
}

/// `/v1/embeddings`
pub fn embeddings(bytes: &[u8]) {
    body(bytes, |object, config| EmbeddingCall::read(object, config).map(|call| call.ask));
}

/// `/v1/responses`, of which none are kept.
pub fn responses(bytes: &[u8]) {
    static KEPT: LazyLock<Arc<Responses>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        Responses::read(folder.path(), &Default::default()).expect("an empty folder can be read")
    });
    body(bytes, |object, config| openai::responses::read(object, config, &KEPT, "tenant").map(asked));
}

/// `/v1/messages`
pub fn anthropic(bytes: &[u8]) {
    body(bytes, |object, config| crate::anthropic::read(object, config).map(asked));
}

/// TGI's `/generate`
pub fn tgi(bytes: &[u8]) {
    body(bytes, |object, config| tgi::read(object, config).map(asked));
}

/// SGLang's `/generate`
pub fn sglang(bytes: &[u8]) {
    body(bytes, |object, config| sglang::read(object, config).map(asked));
}

/// `/tokenize` of vLLM and TGI, told apart by a field.
pub fn tokenize(bytes: &[u8]) {
    let read = json::parse(bytes).and_then(|object| match object.contains_key("inputs") {
        true => tgi::TokenizeCall::read(object, &CONFIG).map(drop),
        false => vllm::TokenizeCall::read(object, &CONFIG).map(drop),
    });
    read.unwrap_or_else(|error| refused(&error));
}

fn asked(call: Call) -> Ask {
    call.ask
}

fn body(bytes: &[u8], read: Read<Ask>) {
    match json::parse(bytes).and_then(|object: Map<String, Value>| requests(object, read)) {
        Ok(requests) => requests.iter().for_each(taken),
        Err(error) => refused(&error),
    }
}

fn requests(object: Map<String, Value>, read: Read<Ask>) -> Result<Vec<Request>, ApiError> {
    let model = ServedModel {
        name: "mock".to_owned(),
        text_digest: String::new(),
        context_tokens: CONTEXT,
        pool_tokens: u32::MAX,
        fingerprint: String::new(),
    };
    let terms = Terms { model: &model, text: &TEXT, config: &CONFIG, tenant: "tenant" };
    let ask = read(object, &CONFIG)?;
    ask.is_short();
    validate::requests(&ask, RequestId(1), &terms)
}

fn taken(request: &Request) {
    let (prompt, answer) = (request.tokens.len(), request.stop.max_tokens as usize);
    // There is none to an embedding.
    let answer = if request.embedding.is_some() { 0 } else { answer };
    assert!(prompt + answer <= CONTEXT as usize, "{prompt} + {answer} tokens");
    assert!((1..=CONFIG.max_choices).contains(&request.choices));
    assert!(request.stop.min_tokens <= request.stop.max_tokens);
    assert!(request.top_logprobs <= CONFIG.max_logprobs);
    let sent = wire::Request::from(request);
    assert_eq!(Request::try_from(sent).expect("a node takes it"), *request);
}
