//! The routes as an OpenAPI document, made from the types that they read and write.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    error::Refusal,
    views::{
        Act, Advice, Cluster, Drain, Flushed, Handoff, Incident, Limits, Node, Pace, PrefixIndex, Queue,
        Request, Road, Roles,
    },
};

/// One method of one path.
struct Operation {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: Option<Value>,
    answer: Value,
}

/// Where named schemas stand.
const COMPONENTS: &str = "/components/schemas";

/// The whole document, OpenAPI 3.1.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = COMPONENTS.into();
    settings.meta_schema = None;
    let mut schemas = settings.into_generator();
    let refusal = of::<Refusal>(&mut schemas);
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations(&mut schemas) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.written(&refusal);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Baton, for operators",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What one coordinator sees and does. It listens on loopback alone, and with admin.keys_file asks for a key (`Authorization: Bearer`) besides.",
        },
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let mut all = looks(schemas);
    all.extend(changes(schemas));
    all
}

/// What only says how things are.
fn looks(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let get = |path, summary, answer| Operation { method: "get", path, summary, body: None, answer };
    vec![
        get("/admin/v1/cluster", "The cluster in a few numbers", of::<Cluster>(schemas)),
        get("/admin/v1/nodes", "Every node", of::<Vec<Node>>(schemas)),
        get("/admin/v1/nodes/{id}", "One node", of::<Node>(schemas)),
        get("/admin/v1/requests", "Requests in flight, the oldest first", of::<Vec<Request>>(schemas)),
        get("/admin/v1/queue", "Who runs and who waits, by model", of::<Vec<Queue>>(schemas)),
        get("/admin/v1/limits", "Limits in force", of::<Limits>(schemas)),
        get("/admin/v1/prefix-index", "What is known of prefix caches", of::<PrefixIndex>(schemas)),
        get(
            "/admin/v1/advice",
            "What the balancer foretells and how many nodes of each role are wanted, by model; nothing while it is off or knows too little",
            of::<Vec<Advice>>(schemas),
        ),
        get(
            "/admin/v1/topology",
            "How KV comes from each prefill node to each decode node, and whether fast enough",
            of::<Vec<Road>>(schemas),
        ),
        get(
            "/admin/v1/handoffs",
            "Handoffs on their way, the oldest first, as the decode nodes last said",
            of::<Vec<Handoff>>(schemas),
        ),
        get(
            "/admin/v1/incidents",
            "What has happened of late, the newest first",
            of::<Vec<Incident>>(schemas),
        ),
        get("/admin/v1/pace", "How long tokens have taken since the coordinator began", of::<Pace>(schemas)),
        get("/admin/v1/audit", "What operators did of late, the newest first", of::<Vec<Act>>(schemas)),
        get("/openapi.json", "This document", json!({ "type": "object" })),
    ]
}

/// What changes something.
fn changes(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let body = |required, schema| Some(json!({ "required": required, "content": json_of(&schema) }));
    let drain = body(false, of::<Drain>(schemas));
    let roles = body(true, of::<Roles>(schemas));
    let limits = body(true, of::<Limits>(schemas));
    vec![
        Operation {
            method: "post",
            path: "/admin/v1/nodes/{id}/drain",
            summary: "The node takes no new work and finishes what it has, until it is restarted or undrained",
            body: drain,
            answer: of::<Node>(schemas),
        },
        Operation {
            method: "post",
            path: "/admin/v1/nodes/{id}/undrain",
            summary: "The node takes work again",
            body: None,
            answer: of::<Node>(schemas),
        },
        Operation {
            method: "put",
            path: "/admin/v1/nodes/{id}/roles",
            summary: "The node gets new work of these roles alone and finishes what it has of others, until it is restarted",
            body: roles,
            answer: of::<Node>(schemas),
        },
        Operation {
            method: "delete",
            path: "/admin/v1/requests/{id}",
            summary: "Cancels a request; its reader is told. Answers with what it was",
            body: None,
            answer: of::<Vec<Request>>(schemas),
        },
        Operation {
            method: "post",
            path: "/admin/v1/flush",
            summary: "Every node forgets what its prefix cache holds, whichever tenant's it is; what runs keeps its pages",
            body: None,
            answer: of::<Flushed>(schemas),
        },
        Operation {
            method: "put",
            path: "/admin/v1/limits",
            summary: "Changes the limits of this coordinator until it restarts; 409 unless `revision` is the one in force",
            body: limits,
            answer: of::<Limits>(schemas),
        },
    ]
}

fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

fn json_of(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

// === impl Operation ===

impl Operation {
    fn written(&self, refusal: &Value) -> Value {
        let refused = json!({ "description": "Refused", "content": json_of(refusal) });
        let mut written = json!({
            "summary": self.summary,
            "responses": {
                "200": { "description": "Done", "content": json_of(&self.answer) },
                "4XX": refused,
                "5XX": refused,
            },
        });
        if let Some(body) = &self.body {
            written["requestBody"] = body.clone();
        }
        if self.path.contains("{id}") {
            let id = json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } });
            written["parameters"] = json!([id]);
        }
        written
    }
}
