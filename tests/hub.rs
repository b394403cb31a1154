//! `baton model pull`, `list` and `serve` as a process, against a server that behaves like the Hub.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

#[path = "../model/src/catalog/hub/tests/server.rs"]
mod server;

use serde_json::{Value, json};
use server::{COMMIT, Server};

use crate::sandbox::{Outcome, PATIENCE, Process, complete};

const REPOSITORY: &str = "org/tiny";

/// What the server has.
fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/llama2")
}

fn server() -> Server {
    let directory = checkpoint();
    ["config.json", "tokenizer.json", "model.safetensors"]
        .iter()
        .fold(Server::new(REPOSITORY), |server, name| {
            server.with(name, &fs::read(directory.join(name)).unwrap())
        })
}

/// A process that has nothing but `variables` from the environment.
fn baton(home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.env_clear().env("HOME", home).envs(variables.iter().copied()).args(arguments);
    command
}

fn model(home: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    baton(home, variables, &["model"]).args(arguments).output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_environment_says_where_the_hub_is() {
    let (home, server) = (tempfile::tempdir().unwrap(), server());
    server.state().token = Some("secret".to_owned());
    let endpoint = server.endpoint();
    let hf_home = home.path().join("hf");
    let mut variables = vec![("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", hf_home.to_str().unwrap())];
    let refused = model(home.path(), &variables, &["pull", REPOSITORY]);
    assert!(!refused.status.success() && said(&refused).1.contains("HF_TOKEN"), "{refused:?}");

    variables.push(("HF_TOKEN", "secret"));
    server.log();
    server.state().cuts = [5000, 10_000].into();
    let pulled = model(home.path(), &variables, &["pull", REPOSITORY]);
    let (path, notes) = said(&pulled);
    assert!(pulled.status.success(), "{notes}");
    let path = PathBuf::from(path.trim_end());
    assert_eq!(path, hf_home.join("hub/models--org--tiny/snapshots").join(COMMIT));
    assert!(baton_model::load(&path).is_ok());
    let log = server.log();
    assert!(log.iter().any(|request| request.start == Some(5000)), "{log:?}");
    assert!(log.iter().all(|request| request.token.is_some() == (request.host == "hub")), "{log:?}");
    assert!(notes.contains("model.safetensors: ") && notes.contains("config.json"), "{notes}");

    let listed = said(&model(home.path(), &variables, &["list"])).0;
    assert!(listed.starts_with(REPOSITORY) && listed.contains(path.to_str().unwrap()), "{listed}");

    drop(server);
    variables.push(("HF_HUB_OFFLINE", "1"));
    let found = model(home.path(), &variables, &["pull", REPOSITORY]);
    assert_eq!(said(&found).0.trim_end(), path.to_str().unwrap());
    let missing = model(home.path(), &variables, &["pull", "llama3.2-1b"]);
    let notes = said(&missing).1;
    assert!(!missing.status.success() && notes.contains("meta-llama/Llama-3.2-1B-Instruct"), "{notes}");
    assert!(notes.contains("HF_HUB_OFFLINE"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_fetched_at_first_use_and_served() {
    let (home, server) = (tempfile::tempdir().unwrap(), server());
    let mut command = baton(home.path(), &[("HF_ENDPOINT", &server.endpoint())], &["serve"]);
    command.args(["--model", REPOSITORY, "--set", "engine.precision=reference"]);
    let process = Process::spawn("hub", command.args(["--set", "frontend.listen=127.0.0.1:0"]));
    let line = process.wait_for("ready at ", PATIENCE);
    let url = line.split("ready at ").nth(1).unwrap().trim();
    let http = baton::client::http(None).unwrap();
    let models: Value = http.get(format!("{url}/v1/models")).send().await.unwrap().json().await.unwrap();
    assert_eq!(models["data"][0]["id"], REPOSITORY, "{models}");

    let golden: Value = serde_json::from_slice(&fs::read(checkpoint().join("golden.json")).unwrap()).unwrap();
    let case = &golden["cases"][0];
    let expected: Vec<u32> = serde_json::from_value(case["output_ids"].clone()).unwrap();
    let body = json!({
        "model": REPOSITORY, "prompt": case["prompt_ids"], "max_tokens": expected.len(), "temperature": 0,
        "ignore_eos": true, "stream": true,
    });
    let answer = complete(&http, url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    let mut text = baton_model::load(&checkpoint()).unwrap().text.detokenizer();
    let mut expected: String = expected.into_iter().map(|token| text.push(token)).collect();
    expected.push_str(&text.finish());
    assert_eq!(answer.texts[0], expected);
}
