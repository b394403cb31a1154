//! The calling end of gRPC: every connection that it makes shows the newest
//! certificate.

use std::{collections::BTreeSet, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use baton_protocol::Role;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

use crate::{ReachError, Trust};

/// A network in place of the system's, as a simulation has one.
#[tonic::async_trait]
pub trait Dial: Send + Sync {
    /// A connection to an address.
    ///
    /// # Errors
    /// When nobody is there.
    async fn dial(&self, addr: SocketAddr) -> io::Result<Box<dyn Wire>>;
}

/// A connection of such a network.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<W: AsyncRead + AsyncWrite + Send + Unpin> Wire for W {}

/// A node that is to be called over gRPC.
#[derive(Clone)]
pub struct Callee {
    endpoint: Endpoint,
    trust: Trust,
    addr: SocketAddr,
    roles: BTreeSet<Role>,
}

/// Time for a peer to show its certificate.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);

/// An open connection.
type Line = Either<Either<TcpStream, TlsStream<TcpStream>>, Box<dyn Wire>>;

// === impl Callee ===

impl Callee {
    pub(crate) fn new(trust: &Trust, addr: SocketAddr, roles: &BTreeSet<Role>) -> Result<Self, ReachError> {
        let failed = |error: &dyn fmt::Display| ReachError::Tls { addr, reason: error.to_string() };
        let scheme = if trust.is_certified() { "https" } else { "http" };
        let origin: Uri = format!("{scheme}://{addr}").parse().map_err(|error| failed(&error))?;
        // The library would do TLS itself if it knew of it, with one certificate for ever.
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(|error| failed(&error))?;
        Ok(Self { endpoint: endpoint.origin(origin), trust: trust.clone(), addr, roles: roles.clone() })
    }

    /// With settings of its connections.
    #[must_use]
    pub fn with(self, set: impl FnOnce(Endpoint) -> Endpoint) -> Self {
        Self { endpoint: set(self.endpoint), ..self }
    }

    /// A connection that stands.
    ///
    /// # Errors
    /// When nobody is there, or the wrong one.
    pub async fn connect(&self) -> Result<Channel, Error> {
        let this = self.clone();
        self.endpoint.connect_with_connector(service_fn(move |_: Uri| this.clone().dial())).await
    }

    /// One that is made when it is needed, and again after a break. Call it inside a tokio runtime.
    pub fn connect_lazy(&self) -> Channel {
        let this = self.clone();
        self.endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| this.clone().dial()))
    }

    async fn dial(self) -> io::Result<TokioIo<Line>> {
        if let Some(dial) = self.trust.dial() {
            return Ok(TokioIo::new(Either::Right(dial.dial(self.addr).await?)));
        }
        let socket = TcpStream::connect(self.addr).await?;
        socket.set_nodelay(true)?;
        let Some(certified) = self.trust.newest() else {
            return Ok(TokioIo::new(Either::Left(Either::Left(socket))));
        };
        let config = certified.calling(&self.roles).map_err(io::Error::other)?;
        let name = self.trust.name_at(self.addr.ip());
        let shaking = TlsConnector::from(Arc::new(config)).connect(name, socket);
        let stream = timeout(HANDSHAKE, shaking).await??;
        Ok(TokioIo::new(Either::Left(Either::Right(stream.into()))))
    }
}

impl fmt::Debug for Callee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callee").field("addr", &self.addr).field("roles", &self.roles).finish()
    }
}
