//! Seeds of the simulation: those that found something, and as many more as are asked for.

#![expect(clippy::unwrap_used, reason = "tests, and what only tests use")]

#[expect(dead_code, reason = "what other tests need of it")]
#[path = "../../tests/counts.rs"]
mod counts;

use std::process::Command;

use counts::counts;

/// A line each: a seed, and what it found once.
const FOUND: &str = include_str!("../found.txt");

fn simulation(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_baton-simulation")).args(args).output().unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    (output.status.success(), text)
}

fn found() -> impl Iterator<Item = &'static str> {
    let lines = FOUND.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().next())
}

#[test]
fn no_seed_finds_anything() {
    let (passed, text) = simulation(&["seeds", "0", &counts().simulation_seeds.to_string()]);
    assert!(passed, "{text}");
}

#[test]
fn what_was_found_stays_mended() {
    for seed in found() {
        let (passed, text) = simulation(&["seed", seed]);
        assert!(passed, "seed {seed}, again by: just sim-seed {seed}\n{text}");
    }
}

/// Every message of the network is in these hashes.
#[test]
fn a_seed_is_the_same_each_time() {
    for seed in ["1", "2", "3", "4"] {
        let run = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_baton-simulation"));
            command.args(["seed", seed]).env("RUST_LOG", "debug,turmoil=trace").output().unwrap().stdout
        };
        let (first, second) = (run(), run());
        assert!(first.starts_with(b"seed "), "{}", String::from_utf8_lossy(&first));
        assert_eq!(String::from_utf8(first).unwrap(), String::from_utf8(second).unwrap());
    }
}

#[test]
fn seeds_differ() {
    let hash = |seed| simulation(&["seed", seed]).1.split_whitespace().nth(2).unwrap().to_owned();
    assert_ne!(hash("1"), hash("2"));
}

/// What finds faults finds one that is there.
#[test]
fn damage_that_nothing_guards_against_is_found() {
    let (passed, text) = simulation(&["seed", "1", "--unguarded"]);
    assert!(!passed && text.contains("of peace"), "{text}");
}
