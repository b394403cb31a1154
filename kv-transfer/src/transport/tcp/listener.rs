//! The sending side's data listener: takes sockets that know a session's secret.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use baton_protocol::SessionId;
use baton_trust::Trust;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{HELLO_BYTES, SocketHello, TAKEN};
use crate::{
    session::same_secret,
    transport::socket::{self, Socket},
};

/// Sockets that have not yet said hello; beyond that the oldest is closed for each that comes, which leaves those
/// that know a session the time they need.
const MAX_PENDING: usize = 64;

/// After an accept that failed (no more file descriptors, say).
const PAUSE: Duration = Duration::from_millis(50);

/// Sessions that wait for their data sockets.
#[derive(Clone, Default)]
pub struct Expected {
    table: Arc<Mutex<HashMap<SessionId, Seat>>>,
    /// What sockets are encrypted with, if they are.
    tls: Option<Trust>,
}

struct Seat {
    secret: [u8; 32],
    /// As many as the first one says.
    sockets: Vec<Option<Socket>>,
    complete: oneshot::Sender<Vec<Socket>>,
}

/// A session's place in the table; dropping it gives the place up.
pub struct Expectation {
    session: SessionId,
    table: Expected,
    complete: oneshot::Receiver<Vec<Socket>>,
}

/// Accepts sockets for ever.
pub async fn listen(listener: TcpListener, expected: Expected, limit: Duration) {
    let (mut pending, mut oldest) = (JoinSet::new(), VecDeque::new());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    if oldest.len() == MAX_PENDING {
                        oldest.retain(|stranger: &AbortHandle| !stranger.is_finished());
                    }
                    if oldest.len() == MAX_PENDING && let Some(stranger) = oldest.pop_front() {
                        tracing::warn!("too many data sockets without a session");
                        stranger.abort();
                    }
                    let expected = expected.clone();
                    oldest.push_back(pending.spawn(async move {
                        // Whoever is too slow or knows no secret is hung up on without a word.
                        let _ = timeout(limit, expected.take(socket)).await;
                    }));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept data sockets");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = pending.join_next() => {}
        }
    }
}

// === impl Expected ===

impl Expected {
    /// Nobody yet.
    pub fn new(tls: Option<Trust>) -> Self {
        Self { table: Arc::default(), tls }
    }

    /// A place for the sockets of a session.
    pub fn expect(&self, session: SessionId, secret: [u8; 32]) -> Expectation {
        let (complete, receiver) = oneshot::channel();
        self.table.lock().insert(session, Seat { secret, sockets: Vec::new(), complete });
        Expectation { session, table: self.clone(), complete: receiver }
    }

    async fn take(&self, socket: TcpStream) -> std::io::Result<()> {
        let mut socket = socket::accept(socket, self.tls.as_ref()).await?;
        let mut hello = [0; HELLO_BYTES];
        socket.read_exact(&mut hello).await?;
        let Some(hello) = SocketHello::decode(&hello) else { return Ok(()) };
        let known = |seat: &Seat| same_secret(&seat.secret, &hello.secret);
        if self.table.lock().get(&hello.session).is_some_and(known) {
            socket.write_all(&[TAKEN]).await?;
            socket.flush().await?;
            self.seat(hello, Socket::from_opening(socket)?);
        }
        Ok(())
    }

    /// Hands the session's sockets over when the last one is here.
    fn seat(&self, hello: SocketHello, socket: Socket) {
        let mut table = self.table.lock();
        // The session may have ended meanwhile; then the socket closes here.
        let Some(seat) = table.get_mut(&hello.session) else { return };
        if seat.sockets.is_empty() {
            seat.sockets.resize_with(usize::from(hello.sockets), || None);
        }
        if let Some(place) = seat.sockets.get_mut(usize::from(hello.index)) {
            *place = Some(socket);
        }
        if seat.sockets.iter().all(Option::is_some)
            && let Some(seat) = table.remove(&hello.session)
        {
            let _ = seat.complete.send(seat.sockets.into_iter().flatten().collect());
        }
    }
}

// === impl Expectation ===

impl Expectation {
    /// Waits for all sockets; none if the listener has gone.
    pub async fn sockets(&mut self) -> Option<Vec<Socket>> {
        (&mut self.complete).await.ok()
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.table.table.lock().remove(&self.session);
    }
}
