//! The called end of gRPC: whoever comes is shown the newest certificate, and
//! asked for one.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::pki_types::CertificateDer, server::TlsStream};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::{Listener, Trust, callee::HANDSHAKE, gathering::Gathering};

/// A connection to a gRPC server, whose caller has shown a certificate if there are any.
pub struct Caller(Gathering<Either<TcpStream, Box<TlsStream<TcpStream>>>>);

/// Who called, among a request's extensions.
#[derive(Clone, Debug)]
pub struct CallerInfo {
    /// Where from.
    pub addr: Option<SocketAddr>,
    /// What was shown, the bearer's own first.
    pub chain: Option<Arc<[CertificateDer<'static>]>>,
}

/// Callers that have not shown their certificates yet; more wait in the system's queue.
const MAX_ARRIVING: usize = 256;

/// After an accept that failed (no more file descriptors, say).
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that arrive, and have arrived.
struct Arrivals {
    trust: Trust,
    listener: TcpListener,
    arriving: JoinSet<io::Result<Caller>>,
}

/// Everyone who comes, for ever. Those who show no right certificate are hung up on.
pub fn callers(trust: Trust, listener: Listener) -> impl Stream<Item = io::Result<Caller>> + Send {
    let arrivals = Arrivals { trust, listener: listener.into_inner(), arriving: JoinSet::new() };
    stream::unfold(arrivals, async |mut arrivals| Some((Ok(arrivals.next().await), arrivals)))
}

// === impl Arrivals ===

impl Arrivals {
    async fn next(&mut self) -> Caller {
        loop {
            tokio::select! {
                Some(arrived) = self.arriving.join_next() => match arrived {
                    Ok(Ok(caller)) => return caller,
                    Ok(Err(error)) => tracing::debug!(%error, "a caller was not let in"),
                    Err(error) => tracing::error!(%error, "a caller was not let in"),
                },
                accepted = self.listener.accept(), if self.arriving.len() < MAX_ARRIVING => match accepted {
                    Ok((socket, _)) => {
                        let trust = self.trust.clone();
                        self.arriving.spawn(async move { Caller::let_in(socket, &trust).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept callers");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }
}

// === impl Caller ===

impl Caller {
    async fn let_in(socket: TcpStream, trust: &Trust) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let Some(certified) = trust.newest() else { return Ok(Self::over(Either::Left(socket))) };
        let shaking = TlsAcceptor::from(certified.accepting.clone()).accept(socket);
        Ok(Self::over(Either::Right(Box::new(timeout(HANDSHAKE, shaking).await??))))
    }

    fn over(stream: Either<TcpStream, Box<TlsStream<TcpStream>>>) -> Self {
        Self(Gathering::new(stream))
    }
}

impl Connected for Caller {
    type ConnectInfo = CallerInfo;

    fn connect_info(&self) -> CallerInfo {
        let (socket, chain) = match self.0.get_ref() {
            Either::Left(socket) => (socket, None),
            Either::Right(stream) => (stream.get_ref().0, stream.get_ref().1.peer_certificates()),
        };
        CallerInfo { addr: socket.peer_addr().ok(), chain: chain.map(Arc::from) }
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
