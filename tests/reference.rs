//! Pages of docs/ that are written from the code: settings, APIs, what nodes say to each other.
//! `scripts/references` writes them anew.
//!
//! - `settings`: types that are read from files, and what stands above their fields
//! - `api`: documents that servers serve

mod api;
mod settings;

use std::{fs, path::Path};

use crate::sandbox::{Cluster, Operator};

const CLUSTER: &str = r#"
cluster = "reference"
model = "mock"

[engine]
backend = "mock"

[frontend]
listen = "127.0.0.1:0"
"#;

/// What is said above the files of gRPC.
const PROTOCOL: &str = "\
# Protocol

What nodes say to each other, as it stands in `protocol/proto/baton.proto`: service `Node` is every \
node's, `Decode` is for coordinators, `Prefill` for decode nodes. What a handoff is, what each message \
means and what holds at every moment is told in [ARCHITECTURE.md](../ARCHITECTURE.md#the-handoff-protocol); \
who may call what is in [SECURITY.md](../SECURITY.md). Frames travel beside it, over a path that both \
sides chose, with the head that `protocol/src/frame.rs` describes.
";

/// Holds a page to what is in the checkout, or writes it.
fn hold(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os("BATON_WRITE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "docs/{page} is not what the code says: scripts/references writes it anew");
}

#[test]
fn settings_are_as_the_code_reads_them() {
    hold("settings.md", &settings::page());
}

#[test]
fn what_nodes_say_is_as_the_code_says_it() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol/proto/baton.proto");
    let said = fs::read_to_string(proto).unwrap();
    hold("protocol.md", &format!("{PROTOCOL}\n```proto\n{said}```\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn apis_are_as_servers_describe_them() {
    let cluster = Cluster::start_embedded(CLUSTER).await;
    let users = api::fetch(&cluster.http, &cluster.url).await;
    let operators = api::fetch(&cluster.http, Operator::of(&cluster).url()).await;
    hold("api.md", &api::page("API", api::USERS, &users));
    hold("admin.md", &api::page("Admin API", api::OPERATORS, &operators));
}
