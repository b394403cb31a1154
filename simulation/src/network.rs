//! gRPC over the simulated network.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use baton_trust::{Dial, Wire};
use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

/// Nodes have ports of their own, of which their hosts follow: `(name, port)`.
pub struct Hosts(pub Vec<(&'static str, u16)>);

/// A caller of a gRPC server.
pub struct Caller(TcpStream);

/// Whoever calls the server of this host at a port.
///
/// # Errors
/// When the port is taken.
pub async fn callers(port: u16) -> io::Result<impl Stream<Item = io::Result<Caller>> + use<>> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let accept = async |listener: TcpListener| {
        let accepted = listener.accept().await.map(|(socket, _)| Caller(socket));
        Some((accepted, listener))
    };
    Ok(stream::unfold(listener, accept))
}

// === impl Hosts ===

#[tonic::async_trait]
impl Dial for Hosts {
    async fn dial(&self, addr: SocketAddr) -> io::Result<Box<dyn Wire>> {
        let host = self.0.iter().find(|(_, port)| *port == addr.port());
        let (name, port) = host.ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Box::new(TcpStream::connect((*name, *port)).await?))
    }
}

// === impl Caller ===

impl Connected for Caller {
    type ConnectInfo = ();

    fn connect_info(&self) {}
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
}
