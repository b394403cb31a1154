//! The sending side's data listener: takes sockets that know a session's secret.

use std::{collections::HashMap, hint::black_box, sync::Arc, time::Duration};

use baton_protocol::SessionId;
use baton_trust::Trust;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

use crate::transport::{
    socket::{self, Socket},
    tcp::{HELLO_BYTES, TAKEN, decode_hello},
};

/// Sockets that have not yet said hello; more are closed at once.
const MAX_PENDING: usize = 64;

/// After an accept that failed (no more file descriptors, say).
const PAUSE: Duration = Duration::from_millis(50);

/// Sessions that wait for their data socket.
#[derive(Clone, Default)]
pub struct Expected {
    table: Arc<Mutex<HashMap<SessionId, Seat>>>,
    /// What sockets are encrypted with, if they are.
    tls: Option<Trust>,
}

struct Seat {
    secret: [u8; 32],
    socket: oneshot::Sender<Socket>,
}

/// A session's place in the table; dropping it gives the place up.
pub struct Expectation {
    session: SessionId,
    table: Expected,
    socket: oneshot::Receiver<Socket>,
}

/// Accepts sockets for ever.
pub async fn listen(listener: TcpListener, expected: Expected, limit: Duration) {
    let mut pending = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if pending.len() < MAX_PENDING => {
                    let expected = expected.clone();
                    pending.spawn(async move {
                        // Whoever is too slow or knows no secret is hung up on without a word.
                        let _ = timeout(limit, expected.take(socket)).await;
                    });
                }
                Ok(_) => tracing::warn!("too many data sockets without a session"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept data sockets");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = pending.join_next() => {}
        }
    }
}

/// Compares without telling by its time where the difference is.
fn same_secret(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
    black_box(difference) == 0
}

// === impl Expected ===

impl Expected {
    /// Nobody yet.
    pub fn new(tls: Option<Trust>) -> Self {
        Self { table: Arc::default(), tls }
    }

    /// A place for the socket of a session.
    pub fn expect(&self, session: SessionId, secret: [u8; 32]) -> Expectation {
        let (socket, receiver) = oneshot::channel();
        self.table.lock().insert(session, Seat { secret, socket });
        Expectation { session, table: self.clone(), socket: receiver }
    }

    async fn take(&self, socket: TcpStream) -> std::io::Result<()> {
        let mut socket = socket::accept(socket, self.tls.as_ref()).await?;
        let mut hello = [0; HELLO_BYTES];
        socket.read_exact(&mut hello).await?;
        let Some((session, secret)) = decode_hello(&hello) else { return Ok(()) };
        let seat = {
            let mut table = self.table.lock();
            let known = table.get(&session).is_some_and(|seat| same_secret(&seat.secret, &secret));
            if known { table.remove(&session) } else { None }
        };
        if let Some(seat) = seat {
            socket.write_all(&[TAKEN]).await?;
            socket.flush().await?;
            // The session may have ended meanwhile; then the socket closes here.
            let _ = seat.socket.send(Socket::from_opening(socket)?);
        }
        Ok(())
    }
}

// === impl Expectation ===

impl Expectation {
    /// Waits for the socket; none if the listener has gone.
    pub async fn socket(&mut self) -> Option<Socket> {
        (&mut self.socket).await.ok()
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.table.table.lock().remove(&self.session);
    }
}
