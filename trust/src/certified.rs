//! Both ends of TLS with one version of a process's certificates.

use std::{collections::BTreeSet, sync::Arc};

use baton_protocol::Role;
use tokio_rustls::rustls::{
    ClientConfig, Error, ServerConfig, client::WebPkiServerVerifier, server::WebPkiClientVerifier,
    version::TLS13,
};

use crate::{
    TlsConfig, TrustError,
    load::{Loaded, provider, useless},
    roles::{self, ServerWithRoles},
};

/// Certificates that were read, and what follows from them.
pub struct Certified {
    cluster: String,
    loaded: Loaded,
    usual: Arc<WebPkiServerVerifier>,
    /// For whoever calls.
    pub accepting: Arc<ServerConfig>,
}

/// What gRPC speaks inside TLS. Data sockets name nothing.
const HTTP2: &[u8] = b"h2";

// === impl Certified ===

impl Certified {
    /// Of certificates that may be no good for peers.
    pub fn new(loaded: Loaded, config: &TlsConfig, cluster: &str) -> Result<Self, TrustError> {
        let clients = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider());
        let mut accepting = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(useless(&config.cert))?
            .with_client_cert_verifier(clients.build().map_err(useless(&config.ca))?)
            .with_single_cert(loaded.chain.clone(), loaded.key.clone_key())
            .map_err(useless(&config.key))?;
        // Connections last, and whoever comes again shows a certificate again.
        accepting.send_tls13_tickets = 0;
        accepting.alpn_protocols = vec![HTTP2.to_vec()];
        let usual = WebPkiServerVerifier::builder_with_provider(loaded.roots.clone(), provider())
            .build()
            .map_err(useless(&config.ca))?;
        Ok(Self { cluster: cluster.to_owned(), loaded, usual, accepting: Arc::new(accepting) })
    }

    /// The roles that peers let this process have.
    pub fn roles(&self) -> BTreeSet<Role> {
        self.loaded.chain.first().map(|own| roles::of(own, &self.cluster)).unwrap_or_default()
    }

    /// For a gRPC connection to a node that has all of `roles`.
    pub fn calling(&self, roles: &BTreeSet<Role>) -> Result<ClientConfig, Error> {
        let mut config = self.dialling(roles)?;
        config.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(config)
    }

    /// For a data socket to a node that has all of `roles`.
    pub fn dialling(&self, roles: &BTreeSet<Role>) -> Result<ClientConfig, Error> {
        let (usual, cluster) = (self.usual.clone(), self.cluster.clone());
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerWithRoles {
                usual,
                cluster,
                roles: roles.clone(),
            }))
            .with_client_auth_cert(self.loaded.chain.clone(), self.loaded.key.clone_key())
    }
}
