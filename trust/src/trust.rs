//! This process's certificates, and both ends of TLS with them.

use std::{collections::BTreeSet, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use baton_protocol::Role;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{
        ClientConfig, ServerConfig, client::WebPkiServerVerifier, pki_types::ServerName,
        server::WebPkiClientVerifier, version::TLS13,
    },
};
use tonic::transport::{ClientTlsConfig, Endpoint, Server, ServerTlsConfig};

use crate::{
    Gate, Guard, ReachError, TlsConfig, TrustError,
    load::{Loaded, load, provider, useless},
    roles::{self, ServerWithRoles},
};

/// Certificates of this process, or the knowledge that it has none. Clones are
/// the same.
///
/// They are read once, at start: whoever renews them restarts the process.
#[derive(Clone, Default)]
pub struct Trust(Option<Arc<Certified>>);

struct Certified {
    cluster: String,
    loaded: Loaded,
    usual: Arc<WebPkiServerVerifier>,
    /// For data sockets; gRPC has its own way of saying the same.
    accepting: Arc<ServerConfig>,
}

/// Time for a peer to show its certificate.
const HANDSHAKE: Duration = Duration::from_secs(5);

// === impl Trust ===

impl Trust {
    /// No certificates: loopback only.
    pub fn none() -> Self {
        Self(None)
    }

    /// Reads the certificates of a process whose nodes have these roles.
    ///
    /// # Errors
    /// When a file is missing or no use, the certificate has expired, is of
    /// another authority or cluster, or lacks a role.
    pub fn load(config: &TlsConfig, cluster: &str, roles: &BTreeSet<Role>) -> Result<Self, TrustError> {
        let config = config.for_roles(roles);
        let loaded = load(&config)?;
        loaded.check(&config.cert, cluster, roles)?;
        Self::with(loaded, &config, cluster)
    }

    /// With certificates that may be no good.
    pub(crate) fn with(loaded: Loaded, config: &TlsConfig, cluster: &str) -> Result<Self, TrustError> {
        // tonic asks for the process's default, which is this one unless an embedder chose before.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let clients = WebPkiClientVerifier::builder_with_provider(loaded.roots.clone(), provider());
        let mut accepting = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(useless(&config.cert))?
            .with_client_cert_verifier(clients.build().map_err(useless(&config.ca))?)
            .with_single_cert(loaded.chain.clone(), loaded.key.clone_key())
            .map_err(useless(&config.key))?;
        // A data socket is opened once in its life.
        accepting.send_tls13_tickets = 0;
        let usual = WebPkiServerVerifier::builder_with_provider(loaded.roots.clone(), provider())
            .build()
            .map_err(useless(&config.ca))?;
        let cluster = cluster.to_owned();
        Ok(Self(Some(Arc::new(Certified { cluster, loaded, usual, accepting: Arc::new(accepting) }))))
    }

    /// Whether there are certificates.
    pub fn is_certified(&self) -> bool {
        self.0.is_some()
    }

    /// Whether peers would let a node of this process have `role`: whoever has no certificates
    /// is asked for none.
    pub fn allows(&self, role: Role) -> bool {
        let Some(certified) = &self.0 else { return true };
        let own = certified.loaded.chain.first();
        own.is_some_and(|certificate| roles::of(certificate, &certified.cluster).contains(&role))
    }

    /// What may be listened on and dialled with them.
    pub fn gate(&self) -> Gate {
        if self.is_certified() { Gate::Certificates } else { Gate::NoCertificates }
    }

    pub(crate) fn cluster(&self) -> Option<&str> {
        self.0.as_deref().map(|certified| certified.cluster.as_str())
    }

    /// Lets only callers with `role` through to a service.
    pub fn guard(&self, role: Role) -> Guard {
        Guard::new(self.clone(), role)
    }

    /// A gRPC server that asks every caller for a certificate, if there are any.
    ///
    /// # Errors
    /// When the library refuses the certificates.
    pub fn server(&self) -> Result<Server, tonic::transport::Error> {
        let Some(certified) = &self.0 else { return Ok(Server::builder()) };
        let tls = ServerTlsConfig::new()
            .identity(certified.loaded.identity.clone())
            .client_ca_root(certified.loaded.authority.clone())
            .timeout(HANDSHAKE);
        Server::builder().tls_config(tls)
    }

    /// A node to be called over gRPC at `ip:port`; with certificates, one that has all of `roles`.
    ///
    /// # Errors
    /// When the address may not be dialled.
    pub fn endpoint(&self, addr: &str, roles: &BTreeSet<Role>) -> Result<Endpoint, ReachError> {
        let addr = self.gate().parse(addr)?;
        let failed = |error: tonic::transport::Error| ReachError::Tls { addr, reason: error.to_string() };
        let scheme = if self.is_certified() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{addr}")).map_err(failed)?;
        let Some(certified) = &self.0 else { return Ok(endpoint) };
        let tls = ClientTlsConfig::new().identity(certified.loaded.identity.clone()).timeout(HANDSHAKE);
        endpoint.tls_config_with_verifier(tls, certified.verifier(roles)).map_err(failed)
    }

    /// The accepting end of TLS on a data socket, from a peer with `role`. The caller limits the time.
    ///
    /// # Errors
    /// When there are no certificates here or no right one there, or the peer leaves.
    pub async fn accept(&self, socket: TcpStream, role: Role) -> io::Result<TlsStream<TcpStream>> {
        let certified = self.certified()?;
        let stream = TlsAcceptor::from(certified.accepting.clone()).accept(socket).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        if shown.is_some_and(|certificate| roles::of(certificate, &certified.cluster).contains(&role)) {
            Ok(stream.into())
        } else {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the peer is no {role} node")))
        }
    }

    /// The dialling end of TLS on a data socket, to a peer with `role`. The caller limits the time.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub async fn connect(&self, socket: TcpStream, role: Role) -> io::Result<TlsStream<TcpStream>> {
        let certified = self.certified()?;
        let peer: SocketAddr = socket.peer_addr()?;
        let config = certified.dialling(role).map_err(io::Error::other)?;
        let name = ServerName::IpAddress(peer.ip().into());
        Ok(TlsConnector::from(Arc::new(config)).connect(name, socket).await?.into())
    }

    fn certified(&self) -> io::Result<&Certified> {
        self.0.as_deref().ok_or_else(|| io::Error::other("this process has no certificates"))
    }
}

impl fmt::Debug for Trust {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("cluster", &self.cluster()).finish()
    }
}

// === impl Certified ===

impl Certified {
    fn verifier(&self, roles: &BTreeSet<Role>) -> Arc<ServerWithRoles> {
        let (usual, cluster) = (self.usual.clone(), self.cluster.clone());
        Arc::new(ServerWithRoles { usual, cluster, roles: roles.clone() })
    }

    fn dialling(&self, role: Role) -> Result<ClientConfig, tokio_rustls::rustls::Error> {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(&BTreeSet::from([role])))
            .with_client_auth_cert(self.loaded.chain.clone(), self.loaded.key.clone_key())
    }
}
