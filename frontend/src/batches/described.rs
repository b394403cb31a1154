//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "bodies are read field by field")]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::{
    PAGE,
    words::{Batch, Endpoint},
};
use crate::{
    files::{List, paging},
    openapi::{Content, Operation, Schemas},
};

/// What is served of batches.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let batch = |schemas: &mut Schemas| Content::Json(schemas.written::<Batch>());
    let (made, one, cancelled) = (batch(schemas), batch(schemas), batch(schemas));
    let batches = Content::Json(schemas.written::<List<Batch>>());
    let body = schemas.read::<BatchBody>();
    vec![
        Operation::post("/v1/batches", "Answers the calls of a file", body, made, schemas),
        Operation::get("/v1/batches", "Batches that are kept", batches, schemas).asking(paging(PAGE.1)),
        Operation::get("/v1/batches/{id}", "One of them", one, schemas),
        Operation::act("/v1/batches/{id}/cancel", "Gives it up", cancelled, schemas),
    ]
}

/// Calls to be answered when there is room.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct BatchBody {
    input_file_id: String,
    endpoint: Endpoint,
    completion_window: Window,
    #[schemars(length(max = 16))]
    metadata: Option<BTreeMap<String, String>>,
    output_expires_after: Option<OutputExpiry>,
}

#[derive(JsonSchema)]
enum Window {
    #[schemars(rename = "24h")]
    Day,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OutputExpiry {
    anchor: Anchor,
    #[schemars(range(min = 3600, max = 2_592_000))]
    seconds: u32,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum Anchor {
    CreatedAt,
}
