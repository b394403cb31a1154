//! The rooms may depend on each other only as ARCHITECTURE.md draws it.

use std::{collections::BTreeSet, fs, path::Path};

/// Room and what it may use, without features or with the one in brackets.
const ARROWS: [(&str, &[&str]); 16] = [
    ("protocol", &[]),
    ("kernels", &[]),
    ("model", &["protocol"]),
    ("engine", &["model", "kernels", "protocol"]),
    ("trust", &["protocol"]),
    ("traces", &[]),
    ("kv-transfer", &["trust", "protocol", "kernels (cuda)"]),
    ("registry", &["protocol"]),
    ("coordinator", &["registry", "trust", "traces", "protocol"]),
    ("frontend", &["coordinator", "model", "trust", "traces", "protocol"]),
    ("admin", &["coordinator", "trust", "protocol"]),
    ("console", &[]),
    ("lab", &["coordinator", "trust", "protocol"]),
    ("prefill-node", &["engine", "kv-transfer", "registry", "traces", "protocol"]),
    ("decode-node", &["engine", "kv-transfer", "registry", "traces", "protocol"]),
    (
        "simulation",
        &[
            "coordinator",
            "prefill-node",
            "decode-node",
            "engine",
            "kv-transfer",
            "registry",
            "trust",
            "protocol",
        ],
    ),
];

fn manifest(path: &Path) -> toml::Table {
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// The rooms of a section; those that are optional with the features that turn them on.
fn rooms_used(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    let dependencies = manifest.get(section).and_then(toml::Value::as_table).into_iter().flatten();
    let room = |(name, how): (&String, &toml::Value)| {
        let room = name.strip_prefix("baton-")?;
        let optional = how.get("optional").and_then(toml::Value::as_bool) == Some(true);
        Some(if optional { format!("{room} ({})", features_with(manifest, name)) } else { room.to_owned() })
    };
    dependencies.filter_map(room).collect()
}

fn features_with(manifest: &toml::Table, dependency: &str) -> String {
    let turns_on = |value: &toml::Value| value.as_str() == Some(&format!("dep:{dependency}"));
    let features = manifest["features"].as_table().into_iter().flatten();
    let with = features.filter(|(_, what)| what.as_array().is_some_and(|all| all.iter().any(turns_on)));
    with.map(|(feature, _)| feature.as_str()).collect::<Vec<_>>().join(", ")
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (room, allowed) in ARROWS {
        let manifest = manifest(&root.join(room).join("Cargo.toml"));
        for section in ["dependencies", "build-dependencies"] {
            let used = rooms_used(&manifest, section);
            let extra: Vec<_> = used.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
            assert!(extra.is_empty(), "{room} may not use {extra:?}");
        }
    }
}

#[test]
fn every_room_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = manifest(&root.join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let listed: BTreeSet<_> = ARROWS.iter().map(|(room, _)| *room).chain(["."]).collect();
    let found: BTreeSet<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    assert_eq!(found, listed);
}
