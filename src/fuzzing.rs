//! What a fuzzer feeds: any bytes as a configuration, which must not panic.
//! Built for tests and for cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use crate::{args::Settings, config::ClusterConfig};

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("cluster_config", cluster_config)];

/// A configuration that is taken can be used, and listens beyond loopback only where callers are checked.
pub fn cluster_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(mut config) = ClusterConfig::load_over(text, &Settings::default()) else { return };
    drop(config.frontend.validate());
    config.by_model();
    config.roles();
    let data = config.transfer.data_listen;
    let mut checked_by_nobody = vec![config.metrics_listen];
    checked_by_nobody.extend(config.admin.listen.iter().chain(&config.admin.grpc_listen));
    if config.frontend.keys_file.is_none() {
        checked_by_nobody.push(config.frontend.listen);
    }
    if config.tls.is_none() {
        checked_by_nobody.extend(config.nodes.iter().map(|node| node.listen).chain([data]));
    }
    assert!(checked_by_nobody.iter().all(|listen| listen.ip().is_loopback()), "{checked_by_nobody:?}");
    drop(config.choose_nodes(&[], &[]));
}
