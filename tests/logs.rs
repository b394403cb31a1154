//! The log as whoever collects logs reads it.

use serde_json::Value as Json;

use crate::{
    certs::baton,
    sandbox::{PATIENCE, Process},
};

const SETTINGS: [&str; 10] = [
    "--model",
    "mock",
    "--set",
    "engine.backend=mock",
    "--set",
    "engine.pages=64",
    "--set",
    "frontend.listen=127.0.0.1:0",
    "--set",
    "admin.listen=127.0.0.1:0",
];

#[test]
fn a_log_in_json_has_nothing_else() {
    let args = [["serve", "--log-format", "json"].as_slice(), &SETTINGS].concat();
    let mut process = Process::start("serve", env!("CARGO_BIN_EXE_baton"), &args);
    process.wait_for("ready at", PATIENCE);
    let admin = process.wait_for("admin at ", PATIENCE).replace("admin at ", "");
    let flushed = baton(&["admin", "flush", "--url", &admin]);
    assert!(flushed.status.success(), "{flushed:?}");
    process.signal("TERM");
    process.wait_for_exit(PATIENCE);
    let output = process.output();
    let (log, words): (Vec<_>, Vec<_>) = output.lines().partition(|line| line.starts_with('{'));
    let for_people = ["node ", "ready at ", "metrics at ", "admin at ", "console at "];
    assert!(words.iter().all(|line| for_people.iter().any(|start| line.starts_with(start))), "{words:?}");
    let log: Vec<Json> = log.into_iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fields = ["timestamp", "level", "message", "target"];
    assert!(log.iter().all(|line| fields.iter().all(|field| line[field].is_string())), "{log:?}");
    assert!(log.iter().any(|line| line["message"] == "an operator's act" && line["what"].is_string()));
    assert!(log.iter().any(|line| line["message"].as_str().unwrap().starts_with("stopping")));
}
