//! Every file in cluster-configs/ is whole: it loads, and its nodes can be chosen.

use std::{fs, path::Path};

use baton::{args::Settings, config::ClusterConfig};
use baton_protocol::Role;

use crate::certs::baton;

#[test]
fn every_cluster_config_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-configs");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        let settings = Settings { config: Some(path.clone()), ..Settings::default() };
        let mut config =
            ClusterConfig::load(&settings).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
        for role in Role::ALL {
            assert!(
                config.nodes.iter().any(|node| node.roles.contains(&role)),
                "{}: no {role}",
                path.display()
            );
        }
        config.choose_nodes(&[], &[]).unwrap();
    }
    found.sort();
    assert_eq!(
        found,
        ["1p1d.toml", "2p2d.toml", "certified.toml", "chaos.toml", "local.toml", "models.toml"]
    );
}

#[test]
fn settings_are_checked_without_a_start() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-configs");
    let check = |more: &[&str]| {
        let config = configs.join("2p2d.toml");
        let outcome = baton(&[&["serve", "--check", "--config", config.to_str().unwrap()], more].concat());
        let said = [outcome.stdout, outcome.stderr].concat();
        (outcome.status.success(), String::from_utf8(said).unwrap())
    };
    // There is no etcd, and no model is loaded.
    let (is_good, said) = check(&["--node", "prefill-2"]);
    assert!(is_good && said.contains("prefill-2") && !said.contains("prefill-1"), "{said}");
    for (more, why) in [
        (["--node", "prefill-9"], "prefill-9"),
        (["--set", "frontend.listen=0.0.0.0:8000"], "frontend.listen"),
        (["--set", "engine.pagess=3"], "pagess"),
    ] {
        let (is_good, said) = check(&more);
        assert!(!is_good && said.contains(why), "{said}");
    }
}

#[test]
fn systemd_waits_for_a_drain() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/baton-.service.d/10-all.conf");
    let text = fs::read_to_string(units).unwrap();
    let seconds = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let grace = ClusterConfig::default().frontend.grace_ms / 1000;
    assert!(seconds.parse::<u64>().unwrap() > grace + 10);
}
