//! What both ends of an open session have: loops that write control messages
//! and let time pass, the data thread, and the order in which a session ends:
//! its state first, then the path, then the thread, and last the pages that
//! only the path kept from being freed. Ends that never wait have no thread;
//! they are asked where the session waits for its thread otherwise.

use std::{
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use baton_protocol::wire::Control;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    SessionError,
    transport::{Closer, Link, PathError},
};

/// A session's state, as far as both ends are alike.
pub trait SessionState: Send + Sync + 'static {
    /// The next control message to be sent.
    fn pop(&self) -> Option<Control>;

    /// Told when there may be one.
    fn wake(&self) -> &Notify;

    /// Lets time pass.
    fn tick(&self, now: Instant) -> Result<(), SessionError>;

    /// Ends the session for ever. Only the first reason counts.
    fn end(&self, reason: SessionError);

    /// The data path is closed and its thread joined.
    fn path_closed(&self);
}

/// An open session. Dropping it ends the session, closes the path, joins the thread.
pub struct Running<S: SessionState, E: ?Sized> {
    state: Arc<S>,
    closer: Closer,
    work: Work<S, E>,
}

/// What moves frames until the path breaks.
pub type Move<S, E> = fn(&S, &mut E) -> PathError;

/// Who does it.
enum Work<S, E: ?Sized> {
    Thread { done: oneshot::Receiver<PathError>, thread: Option<JoinHandle<()>> },
    Asked { end: Box<E>, every: Duration, work: Move<S, E> },
}

/// Hands control messages to the stream, which wants them `wrapped`, until it closes.
pub async fn write<S: SessionState, M>(
    state: &S,
    outbound: &mpsc::Sender<M>,
    wrapped: fn(Control) -> M,
) -> SessionError {
    loop {
        while let Some(control) = state.pop() {
            if outbound.send(wrapped(control)).await.is_err() {
                return SessionError::down("control stream closed");
            }
        }
        state.wake().notified().await;
    }
}

/// Lets time pass until the state has seen enough of it.
pub async fn tick<S: SessionState>(state: &S, period: Duration) -> SessionError {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = state.tick(Instant::now()) {
            return error;
        }
    }
}

// === impl Running ===

impl<S: SessionState, E: ?Sized + Send + 'static> Running<S, E> {
    /// Starts the thread that moves the session's frames, unless the end is to be `asked`.
    pub fn start(
        state: Arc<S>,
        Link { mut end, closer }: Link<E>,
        asked: Option<Duration>,
        work: Move<S, E>,
    ) -> io::Result<Self> {
        if let Some(every) = asked {
            return Ok(Self { state, closer, work: Work::Asked { end, every, work } });
        }
        let (tell, done) = oneshot::channel();
        let shared = state.clone();
        let thread = std::thread::Builder::new().name("baton-frames".to_owned()).spawn(move || {
            let error = work(&shared, &mut *end);
            drop((shared, end));
            // Nobody listens when the session has ended already.
            let _ = tell.send(error);
        })?;
        Ok(Self { state, closer, work: Work::Thread { done, thread: Some(thread) } })
    }

    /// Waits until the data path breaks.
    pub async fn broken(&mut self) -> SessionError {
        match &mut self.work {
            Work::Thread { done, .. } => match done.await {
                Ok(error) => SessionError::down(error.to_string()),
                Err(_) => SessionError::down("data thread died"),
            },
            Work::Asked { end, every, work } => loop {
                match work(&self.state, &mut **end) {
                    PathError::NotYet => sleep(*every).await,
                    error => return SessionError::down(error.to_string()),
                }
            },
        }
    }

    /// Ends the session without blocking the runtime: the thread is joined when it is done.
    pub async fn finish(mut self, reason: SessionError) {
        self.state.end(reason);
        self.closer.close();
        if let Work::Thread { done, .. } = &mut self.work
            && !done.is_terminated()
        {
            // Either way the thread has nothing more to do.
            let _ = done.await;
        }
    }
}

impl<S: SessionState, E: ?Sized> Drop for Running<S, E> {
    fn drop(&mut self) {
        self.state.end(SessionError::down("closed here"));
        self.closer.close();
        if let Work::Thread { thread, .. } = &mut self.work
            && let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            tracing::error!("data thread panicked");
        }
        self.state.path_closed();
    }
}
