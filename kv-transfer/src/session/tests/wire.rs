//! Bad peers on the wire. Each case of the tables is played against a real
//! node over each transport: whoever misbehaves is cut off or answered, holds
//! nothing afterwards, and a good handoff works right after.
//!
//! - [`asking`]: bad decode nodes, against a prefill node's listeners
//! - [`answering`]: bad prefill nodes, against a decode node's sessions
//! - [`ways`]: the thirty ways to be a bad peer, to which cases and tests belong by number
//! - [`Road`]: one row a transport

mod answering;
mod asking;
mod ways;

use baton_protocol::{
    FrameHeader, SessionId,
    wire::{self, Control, Welcome, control::Message},
};
use tokio::io::AsyncWriteExt;

use super::*;
use crate::{
    metrics::Side,
    transport::{
        FrameReceiver, FrameSender, Link, PathError, inproc,
        offer::{Listening, Terms, Transports},
        shm::{self, map::Map, meet::Meeting, ring::Producer},
    },
};

/// A transport, as far as bad peers differ by it.
#[derive(Clone, Copy)]
struct Road {
    kind: TransportKind,
    /// Whether frames are bytes in a stream, so that any bytes can come.
    is_stream: bool,
}

const ROADS: &[Road] = &[
    Road { kind: TransportKind::Inproc, is_stream: false },
    Road { kind: TransportKind::Tcp, is_stream: true },
    Road { kind: TransportKind::Shm, is_stream: true },
    #[cfg(feature = "ucx")]
    Road { kind: TransportKind::Ucx, is_stream: false },
];

const TCP: Road = ROADS[1];
const SHM: Road = ROADS[2];

/// A number in [`ways::WAYS`].
type Way = u8;

/// Deadlines that a test can wait for, and that a busy machine can keep.
fn limits(road: Road) -> TransferConfig {
    TransferConfig {
        connect_timeout_ms: 1_500,
        handshake_timeout_ms: 1_000,
        stall_timeout_ms: 700,
        probe_bytes: 0,
        max_handoffs: 8,
        ..config(road.kind)
    }
}

/// What both ends of a session's path know.
fn terms(road: Road, welcome: &Welcome) -> Terms {
    Terms {
        session: SessionId(welcome.session),
        secret: welcome.data_secret[..].try_into().unwrap(),
        checksum: Checksum::Crc32c,
        config: limits(road),
    }
}

/// What the other end of a data path gives out.
#[expect(clippy::large_enum_variant, reason = "one a test")]
enum Waiting {
    Inproc(Link<dyn FrameSender>),
    Tcp(TcpListener),
    Shm(Meeting),
    /// As a prefill node has it, and what keeps it.
    Other(Transports, Listening),
}

/// Whatever bytes go into a stream where frames belong.
enum Raw {
    Socket(std::net::TcpStream),
    Ring(Producer, Map),
}

// === impl Road ===

impl Road {
    fn name(self) -> &'static str {
        self.kind.as_str()
    }

    /// What a decode node has of this transport.
    fn transports(self) -> Transports {
        Transports::new(&limits(self), &Trust::none(), Side::Receiving).unwrap()
    }

    /// Takes the receiving end of a path as a decode node does.
    async fn take(self, welcome: &Welcome) -> Result<Link<dyn FrameReceiver>, PathError> {
        let taken = async { self.transports().connect(&welcome.paths[0], &terms(self, welcome)).await };
        timeout(PATIENT, taken).await.expect("neither taken nor refused")
    }

    /// Offers the sending end of a path as a prefill node does: where, and what comes of it.
    async fn wait(self, welcome: &Welcome) -> (String, Waiting) {
        match self.kind {
            TransportKind::Inproc => {
                let (addr, link) = inproc::listen(Checksum::Crc32c);
                (addr, Waiting::Inproc(link))
            }
            TransportKind::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                (listener.local_addr().unwrap().to_string(), Waiting::Tcp(listener))
            }
            TransportKind::Shm => {
                let (addr, meeting) = Meeting::new(&terms(self, welcome)).unwrap();
                (addr, Waiting::Shm(meeting))
            }
            kind => {
                let transports = Transports::new(&limits(self), &Trust::none(), Side::Sending).unwrap();
                let (mut paths, mut listening) = transports.listen(&[kind], &terms(self, welcome)).await;
                let (path, listening) = (paths.pop().unwrap(), listening.pop());
                (path.addr, Waiting::Other(transports, listening.expect(&path.failed)))
            }
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// The sending end once the receiver has come, and what else can write there.
    async fn meet(self) -> Result<(Link<dyn FrameSender>, Option<Raw>), PathError> {
        match self {
            Self::Inproc(link) => Ok((link, None)),
            Self::Tcp(listener) => {
                let (mut near, _) = listener.accept().await?;
                near.read_exact(&mut [0; tcp::HELLO_BYTES]).await?;
                near.write_all(&[tcp::TAKEN]).await?;
                let near = near.into_std()?;
                let raw = Raw::Socket(near.try_clone()?);
                Ok((tcp::sender(vec![near.into()], Checksum::Crc32c, PATIENT)?, Some(raw)))
            }
            Self::Shm(meeting) => {
                let fd = meeting.ring().await?;
                let raw = Raw::Ring(Producer::new(Arc::new(Map::new(&fd)?), PATIENT), Map::new(&fd)?);
                Ok((shm::sender(Map::new(&fd)?, Checksum::Crc32c, PATIENT), Some(raw)))
            }
            Self::Other(_transports, listening) => Ok((listening.rendezvous.accept().await?, None)),
        }
    }
}

// === impl Raw ===

impl Raw {
    /// Writes as much as the other side takes before it closes the path.
    fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Socket(socket) => drop(std::io::Write::write_all(socket, bytes)),
            Self::Ring(ring, _) => {
                let _ = ring.write(bytes);
                ring.publish();
            }
        }
    }

    /// Says that the ring holds bytes up to `place`.
    fn place(&self, place: u32) {
        if let Self::Ring(_, map) = self {
            map.word(0).store(place, Ordering::SeqCst);
        }
    }
}
