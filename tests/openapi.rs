//! Schemathesis against a whole cluster with the mock backend: calls made from
//! the document that it serves get no 5xx, and answers of the shapes that it says.

use std::{path::Path, process::Command};

use crate::{counts::counts, sandbox::Cluster};

const SETTINGS: &str = r#"
cluster = "openapi"
model = "mock"

[engine]
backend = "mock"

[frontend]
listen = "127.0.0.1:0"
# Answers end soon, also where a call sets no maximum.
max_total_tokens = 256
"#;

#[tokio::test(flavor = "multi_thread")]
async fn random_calls_get_what_the_document_says() {
    let cluster = Cluster::start_embedded(SETTINGS).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut calls = Command::new(root.join(".venv/bin/python"));
    calls
        .arg(root.join("tests/clients/openapi_calls.py"))
        .arg(&cluster.url)
        .arg(counts().openapi_calls.to_string());
    let ran = tokio::task::spawn_blocking(move || calls.output()).await.unwrap();
    let ran = ran.expect("scripts/test makes .venv, with the clients in it");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{err}");
}
