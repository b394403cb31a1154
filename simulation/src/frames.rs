//! KV frames over the simulated network: sockets of their own, as of transport
//! TCP, whose ends never wait. Between an end and its socket there is a task
//! and a queue, which has what a system's socket buffers have; how much that
//! can be is bounded by the receiver's credit.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use baton_kv_transfer::transport::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, PathError, Placement, Received,
    offer::{Rendezvous, Terms, Transport},
};
use baton_protocol::{FrameHeader, KvSource, frame::HEADER_BYTES};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    task::JoinSet,
};
use turmoil::net::{TcpListener, TcpStream};

/// The data sockets of one host.
pub struct Frames {
    host: &'static str,
    next_port: AtomicU16,
}

/// A socket that nobody has come to yet.
struct Waiting {
    listener: TcpListener,
    secret: [u8; 32],
    checksum: Checksum,
}

/// What an end and its socket share.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Frame>,
    is_closed: bool,
}

/// A frame as it travels.
struct Frame {
    header: FrameHeader,
    told: u32,
    payload: Vec<u8>,
}

struct Sender {
    queue: Arc<Queue>,
    checksum: Checksum,
    _socket: JoinSet<()>,
}

struct Receiver {
    queue: Arc<Queue>,
    checksum: Checksum,
    _socket: JoinSet<()>,
}

/// Time between two looks at an end.
const LOOK: Duration = Duration::from_millis(5);

/// The first port of data sockets.
const PORTS: u16 = 20_000;

// === impl Frames ===

impl Frames {
    /// None yet.
    pub fn new(host: &'static str) -> Self {
        Self { host, next_port: AtomicU16::new(PORTS) }
    }
}

#[tonic::async_trait]
impl Transport for Frames {
    fn place(&self) -> String {
        "simulated".to_owned()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        let waiting = Waiting { listener, secret: terms.secret, checksum: terms.checksum };
        Ok((format!("{}:{port}", self.host), Box::new(waiting)))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        let mut socket = TcpStream::connect(addr).await?;
        socket.write_all(&terms.secret).await?;
        let queue = Arc::<Queue>::default();
        let (closer, mut tasks) = (queue.closer(), JoinSet::new());
        tasks.spawn(read(socket, queue.clone()));
        let end = Receiver { queue, checksum: terms.checksum, _socket: tasks };
        Ok(Link { end: Box::new(end), closer })
    }
}

#[tonic::async_trait]
impl Rendezvous for Waiting {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        let (mut socket, _) = self.listener.accept().await?;
        let mut secret = [0; 32];
        socket.read_exact(&mut secret).await?;
        if secret != self.secret {
            return Err(PathError::Closed);
        }
        let queue = Arc::<Queue>::default();
        let (closer, mut tasks) = (queue.closer(), JoinSet::new());
        tasks.spawn(write(socket, queue.clone()));
        let end = Sender { queue, checksum: self.checksum, _socket: tasks };
        Ok(Link { end: Box::new(end), closer })
    }
}

/// From the socket to the queue.
async fn read(mut socket: TcpStream, queue: Arc<Queue>) {
    let frame = async |socket: &mut TcpStream| -> io::Result<Frame> {
        let mut header = [0; HEADER_BYTES];
        socket.read_exact(&mut header).await?;
        let header = FrameHeader::decode(&header).map_err(io::Error::other)?;
        let mut payload = vec![0; header.bytes as usize];
        socket.read_exact(&mut payload).await?;
        Ok(Frame { header, told: socket.read_u32().await?, payload })
    };
    while let Ok(frame) = frame(&mut socket).await {
        queue.state.lock().frames.push_back(frame);
    }
    queue.state.lock().is_closed = true;
}

/// From the queue to the socket.
async fn write(mut socket: TcpStream, queue: Arc<Queue>) {
    loop {
        let frame = queue.state.lock().frames.pop_front();
        let Some(Frame { header, told, payload }) = frame else {
            if queue.state.lock().is_closed {
                return;
            }
            queue.changed.notified().await;
            continue;
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(payload);
        bytes.extend(told.to_be_bytes());
        if socket.write_all(&bytes).await.is_err() {
            queue.state.lock().is_closed = true;
            return;
        }
    }
}

// === impl Queue ===

impl Queue {
    fn closer(self: &Arc<Self>) -> Closer {
        let queue = self.clone();
        Closer::new(move || {
            let mut state = queue.state.lock();
            state.is_closed = true;
            state.frames.clear();
            queue.changed.notify_one();
        })
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn asked_every(&self) -> Option<Duration> {
        Some(LOOK)
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let (mut payload, mut made) = (Vec::new(), 0);
        let copied = source.read(&header.span, &mut |pieces: &[IoSlice<'_>]| {
            payload.extend(pieces.iter().flat_map(|piece| piece.iter().copied()));
            made = self.checksum.of_pieces(pieces);
            Ok(())
        });
        copied.map_err(PathError::Unreadable)?;
        let told = told.unwrap_or(made);
        let mut state = self.queue.state.lock();
        if state.is_closed {
            return Err(PathError::Closed);
        }
        state.frames.push_back(Frame { header: header.clone(), told, payload });
        self.queue.changed.notify_one();
        Ok(told)
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn asked_every(&self) -> Option<Duration> {
        Some(LOOK)
    }

    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let mut state = self.queue.state.lock();
        let Some(Frame { header, told, payload }) = state.frames.pop_front() else {
            return Err(if state.is_closed { PathError::Closed } else { PathError::NotYet });
        };
        drop(state);
        let crc = self.checksum.of_pieces(&[IoSlice::new(&payload)]);
        let mut has_landed = true;
        if let Placement::Land(sink) = place(&header) {
            let landed = sink.write(&header.span, &mut |pieces: &mut [IoSliceMut<'_>]| {
                let mut rest = &payload[..];
                for piece in pieces {
                    let (now, later) =
                        rest.split_at_checked(piece.len()).ok_or(io::ErrorKind::InvalidInput)?;
                    piece.copy_from_slice(now);
                    rest = later;
                }
                if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
            });
            has_landed = landed.is_ok();
        }
        Ok(Received { header, crc, intact: has_landed && crc == told, duration: Duration::ZERO })
    }
}
