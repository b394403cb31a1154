//! Both nodes live in one process: a frame is copied once, from page to page.
//!
//! The sender hands over the header and a guard of its pages through a bounded
//! queue; the receiver's thread copies. An address is a random name in a table
//! of this process: whoever knows it and takes it first has the receiving end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, LazyLock},
};

use baton_protocol::{FrameHeader, KvSource};
use baton_trust::Trust;
use parking_lot::{Condvar, Mutex};

use super::{
    Checksum, Closer, FrameReceiver, FrameSender, Link, PathError, Placement, Received, land,
    offer::{Rendezvous, Terms, Transport},
    read_pieces,
};
use crate::{SessionError, TransferConfig, hex, metrics::Side};

/// Frames in the queue at once.
const QUEUED_FRAMES: usize = 2;

/// Receiving ends that nobody has taken yet. Global because "in this process"
/// is what it stands for; entries leave when taken or when their sender goes.
static ENDPOINTS: LazyLock<Mutex<HashMap<String, Arc<Queue>>>> = LazyLock::new(Mutex::default);

/// Tells this process from every other one.
static PROCESS: LazyLock<String> = LazyLock::new(|| hex(&crate::session::secret()));

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// And the checksum that is told of each.
    frames: VecDeque<(FrameHeader, Arc<dyn KvSource>, u32)>,
    closed: bool,
}

struct Sender {
    queue: Arc<Queue>,
    addr: String,
    checksum: Checksum,
}

struct Receiver {
    queue: Arc<Queue>,
    checksum: Checksum,
}

struct Inproc;

/// The queue is there already: nobody needs to be waited for.
struct Ready(Link<dyn FrameSender>);

/// The row of this transport.
///
/// # Errors
/// Never.
pub fn transport(_: &TransferConfig, _: &Trust, _: Side) -> Result<Arc<dyn Transport>, SessionError> {
    Ok(Arc::new(Inproc))
}

/// A new path: the sending end, and the address under which the other end waits.
pub fn listen(checksum: Checksum) -> (String, Link<dyn FrameSender>) {
    let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new() });
    let addr = hex(&crate::session::secret());
    ENDPOINTS.lock().insert(addr.clone(), queue.clone());
    let closer = queue.closer();
    (addr.clone(), Link { end: Box::new(Sender { queue, addr, checksum }), closer })
}

/// Takes the receiving end that waits at `addr`.
pub fn connect(addr: &str, checksum: Checksum) -> Option<Link<dyn FrameReceiver>> {
    let queue = ENDPOINTS.lock().remove(addr)?;
    let closer = queue.closer();
    Some(Link { end: Box::new(Receiver { queue, checksum }), closer })
}

// === impl Inproc ===

#[tonic::async_trait]
impl Transport for Inproc {
    fn place(&self) -> String {
        PROCESS.clone()
    }

    async fn listen(&self, terms: &Terms) -> Result<(String, Box<dyn Rendezvous>), PathError> {
        let (addr, link) = listen(terms.checksum);
        Ok((addr, Box::new(Ready(link))))
    }

    async fn connect(&self, terms: &Terms, addr: &str) -> Result<Link<dyn FrameReceiver>, PathError> {
        connect(addr, terms.checksum).ok_or(PathError::Closed)
    }
}

#[tonic::async_trait]
impl Rendezvous for Ready {
    async fn accept(self: Box<Self>) -> Result<Link<dyn FrameSender>, PathError> {
        Ok(self.0)
    }
}

// === impl Queue ===

impl Queue {
    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        // Guards of frames that nobody will take; dropped after the lock is gone.
        let dead = std::mem::take(&mut state.frames);
        self.changed.notify_all();
        drop(state);
        drop(dead);
    }

    fn closer(self: &Arc<Self>) -> Closer {
        let queue = self.clone();
        Closer::new(move || queue.close())
    }
}

// === impl Sender ===

impl FrameSender for Sender {
    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        let told = read_pieces(header, &**source, |pieces| {
            Ok(told.unwrap_or_else(|| self.checksum.of_pieces(pieces)))
        })?;
        let mut state = self.queue.state.lock();
        self.queue
            .changed
            .wait_while(&mut state, |state| !state.closed && state.frames.len() >= QUEUED_FRAMES);
        if state.closed {
            return Err(PathError::Closed);
        }
        state.frames.push_back((header.clone(), source.clone(), told));
        self.queue.changed.notify_all();
        Ok(told)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        ENDPOINTS.lock().remove(&self.addr);
        self.queue.close();
    }
}

// === impl Receiver ===

impl FrameReceiver for Receiver {
    fn recv(&mut self, place: &mut dyn FnMut(&FrameHeader) -> Placement) -> Result<Received, PathError> {
        let mut state = self.queue.state.lock();
        self.queue.changed.wait_while(&mut state, |state| !state.closed && state.frames.is_empty());
        let (header, source, told) = state.frames.pop_front().ok_or(PathError::Closed)?;
        self.queue.changed.notify_all();
        drop(state);
        let (checksum, span) = (self.checksum, header.span.clone());
        land(header, place, |pieces| {
            let made = match pieces {
                None => checksum.of(&*source, &span),
                Some(to) => {
                    let mut crc = checksum.begin();
                    source.read(&span, &mut |from| crc.copy(from, to)).map(|()| crc.value())
                }
            };
            Ok((made.map_err(PathError::Unreadable)?, told))
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.queue.close();
    }
}
