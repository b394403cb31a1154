//! Every file in cluster-configs/ is whole: it loads, and its nodes can be chosen.

use std::{fs, path::Path};

use baton::{args::Settings, config::ClusterConfig};
use baton_protocol::Role;

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
