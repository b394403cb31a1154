//! What may be listened on and dialled: this machine, and more only where
//! whoever comes is checked.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// What stands between a listener, or a connection, and the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Both ends show certificates.
    Certificates,
    /// They would, but this process has none.
    NoCertificates,
    /// HTTP for clients, who show API keys.
    Keys,
    /// HTTP for clients and for people, who are asked for none.
    NoKeys,
}

/// A listener that a [`Gate`] allowed; there is no other way to have one.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    addr: SocketAddr,
}

/// Why an address is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// A node beyond loopback, without certificates.
    #[error(
        "{addr} is beyond loopback, which needs certificates: make them with `baton certs init`, and name them in section [tls]"
    )]
    NoCertificates {
        /// The address.
        addr: SocketAddr,
    },
    /// HTTP beyond loopback.
    #[error(
        "{addr} is beyond loopback, which needs API keys: make one with `baton key new`, and name their file in frontend.keys_file (a process without the API has its metrics on loopback)"
    )]
    NoKeys {
        /// The address.
        addr: SocketAddr,
    },
    /// Names are not resolved: nodes announce addresses.
    #[error("{addr:?} is not of the form ip:port")]
    Malformed {
        /// As it was given.
        addr: String,
    },
    /// The system refused.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// TLS could not be set up.
    #[error("no TLS with {addr}: {reason}")]
    Tls {
        /// The peer.
        addr: SocketAddr,
        /// What the library said.
        reason: String,
    },
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

// === impl Gate ===

impl Gate {
    /// Whether the address may be used.
    ///
    /// # Errors
    /// When it is beyond loopback and nothing checks who comes.
    pub fn check(self, addr: SocketAddr) -> Result<(), ReachError> {
        match self {
            _ if addr.ip().is_loopback() => Ok(()),
            Self::Certificates | Self::Keys => Ok(()),
            Self::NoCertificates => Err(ReachError::NoCertificates { addr }),
            Self::NoKeys => Err(ReachError::NoKeys { addr }),
        }
    }

    /// An address to be dialled.
    ///
    /// # Errors
    /// When it is none, or as [`check`](Self::check).
    pub fn parse(self, addr: &str) -> Result<SocketAddr, ReachError> {
        let parsed = addr.parse().map_err(|_| ReachError::Malformed { addr: addr.to_owned() })?;
        self.check(parsed)?;
        Ok(parsed)
    }

    /// Listens. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken, or as [`check`](Self::check).
    pub fn listen(self, addr: SocketAddr) -> Result<Listener, ReachError> {
        self.check(addr)?;
        bind(addr).map_err(|error| ReachError::Listen { addr, reason: error.to_string() })
    }
}

fn bind(addr: SocketAddr) -> std::io::Result<Listener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    let inner = socket.listen(BACKLOG)?;
    let addr = inner.local_addr()?;
    Ok(Listener { inner, addr })
}

// === impl Listener ===

impl Listener {
    /// Where it listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The socket.
    pub fn into_inner(self) -> TcpListener {
        self.inner
    }
}
