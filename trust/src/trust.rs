//! This process's certificates, and both ends of TLS with them.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use baton_protocol::Role;
use futures::Stream;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::pki_types::{CertificateDer, DnsName, ServerName},
};

use crate::{
    Callee, Caller, Dial, Gate, Guard, Listener, ReachError, TlsConfig, TrustError, callers,
    certified::Certified,
    followed::Followed,
    load::{Loaded, load},
    roles,
};

/// Certificates of this process, or the knowledge that it has none. Clones are
/// the same.
///
/// Every new connection is made with the newest ones that [`follow`](Self::follow)
/// has found; connections that stand keep those they were made with.
#[derive(Clone, Default)]
pub struct Trust {
    held: Option<Held>,
    /// Other than the system's sockets.
    dial: Option<Arc<dyn Dial>>,
}

#[derive(Clone)]
struct Held {
    cluster: Arc<str>,
    /// What peers' certificates have to be for; none: the address under which each is called.
    name: Option<ServerName<'static>>,
    files: Arc<Followed<Certified>>,
}

// === impl Trust ===

impl Trust {
    /// No certificates: loopback only.
    pub fn none() -> Self {
        Self::default()
    }

    /// No certificates, and calls that go over a network which is not the system's.
    pub fn over(dial: Arc<dyn Dial>) -> Self {
        Self { held: None, dial: Some(dial) }
    }

    /// Reads the certificates of a process whose nodes have these roles.
    ///
    /// # Errors
    /// When a file is missing or no use, the certificate has expired, is of
    /// another authority or cluster, or lacks a role.
    pub fn load(config: &TlsConfig, cluster: &str, roles: &BTreeSet<Role>) -> Result<Self, TrustError> {
        let config = config.for_roles(roles);
        let (path, named, roles) = (config.cert.clone(), cluster.to_owned(), roles.clone());
        Self::with(config, cluster, move |loaded| loaded.check(&path, &named, &roles))
    }

    /// With certificates that pass `check`.
    pub(crate) fn with(
        config: TlsConfig,
        cluster: &str,
        check: impl Fn(&Loaded) -> Result<(), TrustError> + Send + Sync + 'static,
    ) -> Result<Self, TrustError> {
        let cluster: Arc<str> = cluster.into();
        let name = config.name.clone().map(|name| {
            let malformed = |_| TrustError::Name { name: name.clone() };
            DnsName::try_from(name.clone()).map(ServerName::DnsName).map_err(malformed)
        });
        let name = name.transpose()?;
        let files = [config.ca.clone(), config.cert.clone(), config.key.clone()];
        let named = cluster.clone();
        let files = Followed::new(files, move || {
            let loaded = load(&config)?;
            check(&loaded)?;
            Certified::new(loaded, &config, &named)
        })?;
        Ok(Self { held: Some(Held { cluster, name, files: Arc::new(files) }), dial: None })
    }

    /// Reads the files again whenever they change. What would not have been good enough to
    /// start with changes nothing.
    pub async fn follow(&self) -> Infallible {
        match &self.held {
            Some(held) => held.files.clone().follow().await,
            None => std::future::pending().await,
        }
    }

    /// Reads the files now, or keeps what was read before. Blocks.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn renew(&self) -> Result<(), TrustError> {
        self.held.as_ref().map_or(Ok(()), |held| held.files.renew())
    }

    /// Whether there are certificates.
    pub fn is_certified(&self) -> bool {
        self.held.is_some()
    }

    /// Whether peers would let a node of this process have `role`: whoever has no certificates
    /// is asked for none.
    pub fn allows(&self, role: Role) -> bool {
        self.newest().is_none_or(|certified| certified.roles().contains(&role))
    }

    /// What may be listened on and dialled with them.
    pub fn gate(&self) -> Gate {
        if self.is_certified() { Gate::Certificates } else { Gate::NoCertificates }
    }

    pub(crate) fn newest(&self) -> Option<Arc<Certified>> {
        self.held.as_ref().map(|held| held.files.newest())
    }

    pub(crate) fn dial(&self) -> Option<&Arc<dyn Dial>> {
        self.dial.as_ref()
    }

    pub(crate) fn cluster(&self) -> Option<&str> {
        self.held.as_ref().map(|held| &*held.cluster)
    }

    /// What the certificate of whoever is dialled at `ip` has to be for.
    pub(crate) fn name_at(&self, ip: IpAddr) -> ServerName<'static> {
        let name = self.held.as_ref().and_then(|held| held.name.clone());
        name.unwrap_or_else(|| ServerName::IpAddress(ip.into()))
    }

    /// Lets only callers with one of `roles` through to a service.
    pub fn guard(&self, roles: &'static [Role]) -> Guard {
        Guard::new(self.clone(), roles)
    }

    /// Whoever calls a gRPC server, for ever; each was asked for a certificate, if there are any.
    pub fn callers(&self, listener: Listener) -> impl Stream<Item = io::Result<Caller>> + Send + use<> {
        callers::callers(self.clone(), listener)
    }

    /// A node to be called over gRPC at `ip:port`; with certificates, one that has all of `roles`.
    ///
    /// # Errors
    /// When the address may not be dialled.
    pub fn callee(&self, addr: &str, roles: &BTreeSet<Role>) -> Result<Callee, ReachError> {
        Callee::new(self, self.gate().parse(addr)?, roles)
    }

    /// The accepting end of TLS on a data socket, from a peer with one of `roles`. The caller limits the time.
    ///
    /// # Errors
    /// When there are no certificates here or no right one there, or the peer leaves.
    pub async fn accept(&self, socket: TcpStream, roles: &[Role]) -> io::Result<TlsStream<TcpStream>> {
        let (certified, _) = self.certified()?;
        let stream = TlsAcceptor::from(certified.accepting.clone()).accept(socket).await?;
        self.has_one(stream.get_ref().1.peer_certificates(), roles)?;
        Ok(stream.into())
    }

    /// The dialling end of TLS on a data socket, to a peer with one of `roles`. The caller limits the time.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub async fn connect(&self, socket: TcpStream, roles: &[Role]) -> io::Result<TlsStream<TcpStream>> {
        let (certified, _) = self.certified()?;
        let peer: SocketAddr = socket.peer_addr()?;
        let config = certified.dialling(&BTreeSet::new()).map_err(io::Error::other)?;
        let name = self.name_at(peer.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        self.has_one(stream.get_ref().1.peer_certificates(), roles)?;
        Ok(stream.into())
    }

    fn has_one(&self, shown: Option<&[CertificateDer<'_>]>, roles: &[Role]) -> io::Result<()> {
        let (_, cluster) = self.certified()?;
        let has = shown.and_then(<[_]>::first).map(|shown| roles::of(shown, cluster)).unwrap_or_default();
        if roles.iter().any(|role| has.contains(role)) {
            return Ok(());
        }
        let wanted = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the peer is no {wanted} node")))
    }

    fn certified(&self) -> io::Result<(Arc<Certified>, &str)> {
        let none = || io::Error::other("this process has no certificates");
        self.newest().zip(self.cluster()).ok_or_else(none)
    }
}

impl fmt::Debug for Trust {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("cluster", &self.cluster()).finish()
    }
}
