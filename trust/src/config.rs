//! What a person may set.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use baton_protocol::Role;
use serde::Deserialize;

/// Section `[tls]`: PEM files as `baton certs init` writes them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This process's certificate. `{roles}` stands for the roles of the process's nodes, joined
    /// by `-`, so that one file serves every node of a cluster.
    pub cert: PathBuf,
    /// Its private key; `{roles}` as in `cert`.
    pub key: PathBuf,
    /// A DNS name that the certificates of all nodes have, in place of their addresses: for
    /// machines whose addresses are not known when certificates are made.
    #[serde(default)]
    pub name: Option<String>,
}

/// Name of the files for nodes of these roles, without ending.
pub fn file_name(roles: &BTreeSet<Role>) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join("-")
}

/// Puts these roles in place of `{roles}`.
pub fn for_roles(path: &Path, roles: &BTreeSet<Role>) -> PathBuf {
    match path.to_str() {
        Some(text) => text.replace("{roles}", &file_name(roles)).into(),
        None => path.to_owned(),
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// The files of a process whose nodes have these roles.
    #[must_use]
    pub fn for_roles(&self, roles: &BTreeSet<Role>) -> Self {
        let (cert, key) = (for_roles(&self.cert, roles), for_roles(&self.key, roles));
        Self { cert, key, ..self.clone() }
    }
}
