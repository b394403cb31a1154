//! What is served, as an OpenAPI document made from the types of bodies and answers.
//!
//! Every dialect describes its own routes in a file `described.rs`: what it reads,
//! with the names that its reader takes, and what it writes, from the very types
//! that are written.

#[cfg(test)]
pub mod tests;

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::{Contract, SchemaSettings},
};
use serde_json::{Map, Value, json};

use crate::{
    anthropic, batches, crossroads, error::ErrorBody, files, metrics::Route, openai, patience, routes,
    routes::Room, sglang, tgi, vllm,
};

/// One method of one path.
pub struct Operation {
    pub method: &'static str,
    pub path: &'static str,
    pub summary: &'static str,
    /// Of the request, if it has one.
    pub body: Option<Schema>,
    /// Whether the body is a form with a file in place of JSON.
    pub is_form: bool,
    /// Parameters behind the path, by name.
    pub query: Vec<(&'static str, Value)>,
    pub answer: Content,
    /// Whether the body can ask for server-sent events in place of the answer.
    pub streams: bool,
    /// What a refusal looks like.
    pub refusal: Schema,
    /// Whether calls need an API key, where there are any.
    pub needs_key: bool,
}

/// What a whole answer is.
pub enum Content {
    Json(Schema),
    /// Text of this media type.
    Text(&'static str),
    /// Server-sent events.
    Events,
}

/// Makes schemas; what has a name stands among the components once.
pub struct Schemas {
    reading: SchemaGenerator,
    writing: SchemaGenerator,
}

const EVENTS: &str = "text/event-stream";

/// Where named schemas stand.
const COMPONENTS: &str = "/components/schemas";

static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// The route.
pub fn router() -> Router<Arc<Room>> {
    Router::new().route("/openapi.json", get(serve))
}

async fn serve() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

/// All operations, in an order that stays.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut all = openai::operations(schemas);
    all.extend(vllm::operations(schemas));
    all.extend(anthropic::operations(schemas));
    all.extend(tgi::operations(schemas));
    all.extend(sglang::operations(schemas));
    all.extend(crossroads::operations(schemas));
    all.extend(openai::responses::operations(schemas));
    all.extend(files::operations(schemas));
    all.extend(batches::operations(schemas));
    all.extend(routes::operations(schemas));
    let itself =
        Operation::get("/openapi.json", "This document", Content::Json(schemas.written::<Value>()), schemas);
    all.push(itself.open());
    all
}

/// The whole document, OpenAPI 3.1.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations(&mut schemas) {
        let path = paths.entry(operation.path).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(methods) = path {
            methods.insert(operation.method.to_owned(), operation.written());
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Baton",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The words of OpenAI, vLLM, Anthropic, TGI and SGLang. Where there are API keys, a call \
                without one is refused with 401; health, readiness, metrics and this document need none.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.named(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "x-api-key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

/// A server-sent event; what its data is, the dialect says.
fn event() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": "object",
        "required": ["data"],
        "properties": { "data": text, "event": text, "id": text },
    })
}

/// One of several.
pub fn any_of(schemas: impl IntoIterator<Item = Schema>) -> Schema {
    let all: Vec<Value> = schemas.into_iter().map(Schema::to_value).collect();
    schemars::json_schema!({ "anyOf": all })
}

// === impl Schemas ===

impl Schemas {
    fn new() -> Self {
        let generator = |contract: Contract| {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = COMPONENTS.into();
            settings.contract = contract;
            settings.meta_schema = None;
            settings.into_generator()
        };
        Self { reading: generator(Contract::Deserialize), writing: generator(Contract::Serialize) }
    }

    /// Of a body.
    pub fn read<T: JsonSchema>(&mut self) -> Schema {
        self.reading.subschema_for::<T>()
    }

    /// Of an answer.
    pub fn written<T: JsonSchema>(&mut self) -> Schema {
        self.writing.subschema_for::<T>()
    }

    fn named(&mut self) -> Map<String, Value> {
        let mut all = self.reading.take_definitions(true);
        all.extend(self.writing.take_definitions(true));
        all
    }
}

// === impl Operation ===

impl Operation {
    /// Without a body; refused in OpenAI's words.
    pub fn get(path: &'static str, summary: &'static str, answer: Content, schemas: &mut Schemas) -> Self {
        let refusal = schemas.written::<ErrorBody<'static>>();
        Self {
            method: "get",
            path,
            summary,
            body: None,
            is_form: false,
            query: Vec::new(),
            answer,
            streams: false,
            refusal,
            needs_key: true,
        }
    }

    /// As [`get`](Self::get), of what is deleted.
    pub fn delete(path: &'static str, summary: &'static str, answer: Content, schemas: &mut Schemas) -> Self {
        Self { method: "delete", ..Self::get(path, summary, answer, schemas) }
    }

    /// As [`get`](Self::get), of what is done without a body.
    pub fn act(path: &'static str, summary: &'static str, answer: Content, schemas: &mut Schemas) -> Self {
        Self { method: "post", ..Self::get(path, summary, answer, schemas) }
    }

    /// With a body; refused in OpenAI's words.
    pub fn post(
        path: &'static str,
        summary: &'static str,
        body: Schema,
        answer: Content,
        schemas: &mut Schemas,
    ) -> Self {
        Self { method: "post", body: Some(body), ..Self::get(path, summary, answer, schemas) }
    }

    /// Whose body is a form.
    pub fn form(self) -> Self {
        Self { is_form: true, ..self }
    }

    /// With these parameters behind the path.
    pub fn asking(self, query: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Self { query: query.into_iter().collect(), ..self }
    }

    /// Which can stream.
    pub fn streaming(self) -> Self {
        Self { streams: true, ..self }
    }

    /// Which refuses like this.
    pub fn refusing(self, refusal: Schema) -> Self {
        Self { refusal, ..self }
    }

    /// Which needs no key.
    pub fn open(self) -> Self {
        Self { needs_key: false, ..self }
    }

    fn written(&self) -> Value {
        let mut content = Map::new();
        match &self.answer {
            Content::Json(schema) => {
                content.insert("application/json".to_owned(), json!({ "schema": schema }))
            }
            Content::Text(media) => {
                content.insert((*media).to_owned(), json!({ "schema": { "type": "string" } }))
            }
            Content::Events => content.insert(EVENTS.to_owned(), json!({ "schema": event() })),
        };
        if self.streams {
            content.insert(EVENTS.to_owned(), json!({ "schema": event() }));
        }
        let refused = json!({
            "description": "Refused or failed",
            "content": { "application/json": { "schema": self.refusal } },
        });
        let mut written = json!({
            "summary": self.summary,
            "responses": {
                "200": { "description": "The answer", "content": content },
                "4XX": refused,
                "5XX": refused,
            },
        });
        if let Some(body) = &self.body {
            let media = if self.is_form { "multipart/form-data" } else { "application/json" };
            written["requestBody"] = json!({ "required": true, "content": { media: { "schema": body } } });
        }
        let query =
            self.query.iter().map(|(name, schema)| json!({ "name": name, "in": "query", "schema": schema }));
        let mut parameters: Vec<_> = self.path.split('/').filter_map(parameter).chain(query).collect();
        if self.method == "post" && Route::of(self.path).answers() {
            parameters.extend(patience::described());
            written["responses"]["200"]["headers"] = json!({ "Server-Timing": {
                "description": "Milliseconds of queue, earlier attempts, prefill, transfer, wait and decode, if there is one prompt; \
                    a trailer of streams",
                "schema": { "type": "string" },
            }});
        }
        if !parameters.is_empty() {
            written["parameters"] = Value::Array(parameters);
        }
        if self.needs_key {
            written["security"] = json!([{}, { "bearer": [] }, { "x-api-key": [] }]);
        }
        written
    }
}

/// The parameter that a part of a path is, if it is one.
fn parameter(part: &str) -> Option<Value> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    Some(
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }),
    )
}
