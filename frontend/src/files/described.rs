//! What calls may hold, as types that only their schema is made from.
#![expect(dead_code, reason = "forms are read part by part")]

use schemars::JsonSchema;
use serde_json::{Value, json};

use super::{Deleted, FileWords, List, MAX_PAGE};
use crate::openapi::{Content, Operation, Schemas};

/// What is served of files.
pub fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let file = |schemas: &mut Schemas| Content::Json(schemas.written::<FileWords<'static>>());
    let (one, made) = (file(schemas), file(schemas));
    let files = Content::Json(schemas.written::<List<FileWords<'static>>>());
    let deleted = Content::Json(schemas.written::<Deleted<'static>>());
    let content = Content::Text("application/octet-stream");
    let form = schemas.read::<FileForm>();
    let purpose = ("purpose", json!({ "type": "string" }));
    vec![
        Operation::post("/v1/files", "Keeps a file", form, made, schemas).form(),
        Operation::get("/v1/files", "Files that are kept", files, schemas)
            .asking(paging(MAX_PAGE).into_iter().chain([purpose])),
        Operation::get("/v1/files/{id}", "One of them", one, schemas),
        Operation::delete("/v1/files/{id}", "Deletes it", deleted, schemas),
        Operation::get("/v1/files/{id}/content", "What is in it", content, schemas),
    ]
}

/// Parameters of lists.
pub fn paging(most: usize) -> [(&'static str, Value); 3] {
    [
        ("after", json!({ "type": "string" })),
        ("limit", json!({ "type": "integer", "minimum": 1, "maximum": most })),
        ("order", json!({ "enum": ["asc", "desc"] })),
    ]
}

/// A file, and what is to be done with it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FileForm {
    #[schemars(extend("format" = "binary"))]
    file: String,
    purpose: Purpose,
    #[schemars(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    #[schemars(rename = "expires_after[seconds]", range(min = 3600, max = 2_592_000))]
    seconds: Option<u32>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum Purpose {
    Batch,
}
