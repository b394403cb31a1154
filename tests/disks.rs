//! A disk that is full: what must be on it is refused in words, everything else goes on, and once
//! there is room again nothing has to be mended by hand.

use std::{fs, path::Path, process::Command};

use baton_protocol::Sampling;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sandbox::{Cluster, Operator, Outcome, Plan, Within, complete, enter, mock_expected};

const SETTINGS: &str = r#"
cluster = "disks"
model = "mock"

[engine]
backend = "mock"
pages = 256
page_tokens = 16

[frontend]
listen = "127.0.0.1:0"
"#;

/// A small disk of its own.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=2m", "none"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).status().unwrap();
        assert!(mounted.success());
        Self(dir)
    }

    fn fill(&self) {
        let full = fs::write(self.0.path().join("filler"), vec![0; 4 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

/// Answers are what they must be.
async fn answers(cluster: &Cluster, seed: u64) {
    let prompt: Vec<u32> = (0..60).map(|at| 32 + ((seed * 31 + at * 7) % 90) as u32).collect();
    let body = json!({
        "model": "mock", "prompt": prompt, "max_tokens": 20, "seed": seed, "temperature": 1.0, "stream": true,
        "ignore_eos": true,
    });
    let answer = complete(&cluster.http, &cluster.url, &body).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    assert_eq!(answer.texts, mock_expected(&prompt, &Sampling { seed, ..Sampling::default() }, 1, 20));
}

/// Keeps a file of 64 KiB at the coordinator.
async fn upload(cluster: &Cluster) -> (StatusCode, Value) {
    let part =
        |head: &str, body: &str| format!("--b\r\ncontent-disposition: form-data; {head}\r\n\r\n{body}\r\n");
    let line = json!({ "custom_id": "a", "padding": "x".repeat(64 << 10) }).to_string();
    let body =
        part("name=\"purpose\"", "batch") + &part("name=\"file\"; filename=\"f.jsonl\"", &line) + "--b--\r\n";
    let call = cluster.http.post(format!("{}/v1/files", cluster.url)).body(body);
    let answer = call.header("content-type", "multipart/form-data; boundary=b").send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

fn check(file: &Path) -> (bool, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_baton")).args(["admin", "audit"]).arg(file).output().unwrap();
    (done.status.success(), String::from_utf8([done.stdout, done.stderr].concat()).unwrap())
}

#[test]
fn a_full_disk_refuses_what_must_be_on_it_and_nothing_else() {
    match enter("disks::a_full_disk_refuses_what_must_be_on_it_and_nothing_else") {
        Within::Done => return,
        Within::Shared => return println!("this system gives no disks of its own: none is full"),
        Within::Own => {}
    }
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let disk = Disk::new();
        let (state, acts) = (disk.0.path().join("state"), disk.0.path().join("acts"));
        let settings = format!(
            "{SETTINGS}state_dir = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\naudit_file = \"{}\"\n",
            state.display(),
            acts.display()
        );
        let cluster = Cluster::start(&Plan { settings, prefill: 1, decode: 2 }).await;
        let operator = Operator::of(&cluster);
        answers(&cluster, 1).await;
        assert_eq!(upload(&cluster).await.0, StatusCode::OK);
        operator.does(&["drain", "decode-1"]).await.unwrap();

        disk.fill();
        let (status, refusal) = upload(&cluster).await;
        assert!(status.is_server_error(), "{status}: {refusal}");
        assert!(refusal["error"]["message"].as_str().is_some_and(|words| !words.is_empty()), "{refusal}");
        // What the last block of the file has room for is written still.
        let mut acts_of_full = 0;
        while operator.does(&["drain", "decode-1"]).await.is_ok() {
            acts_of_full += 1;
            assert!(acts_of_full < 40, "a full disk takes every act");
        }
        let refused = operator.does(&["undrain", "decode-1"]).await.unwrap_err();
        assert!(refused.contains("nothing was done"), "{refused}");
        assert_eq!(operator.does(&["node", "decode-1"]).await.unwrap()["health"], "draining");
        for seed in 2..6 {
            answers(&cluster, seed).await;
        }

        disk.free();
        assert_eq!(upload(&cluster).await.0, StatusCode::OK);
        assert_eq!(operator.does(&["undrain", "decode-1"]).await.unwrap()["health"], "ready");
        let (is_whole, words) = check(&acts);
        assert!(is_whole && words.contains("are whole"), "{words}");
    });
}
