//! Wakes at the times of a schedule more exactly than an async runtime's timer,
//! which counts milliseconds.

use std::{
    io,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

/// A thread that sleeps from time to time; it ends with its owner.
pub(super) struct Pacer {
    rung: mpsc::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Times that may pass unnoticed before the thread waits to be heard.
const UNHEARD: usize = 1024;

// === impl Pacer ===

impl Pacer {
    /// For times after `began`, in their order.
    pub(super) fn start(began: Instant, times: Vec<Duration>) -> io::Result<Self> {
        let (ring, rung) = mpsc::channel(UNHEARD);
        let wait = move || {
            for at in times.into_iter().map(|after| began + after) {
                while let Some(left) =
                    at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                {
                    if ring.is_closed() {
                        return;
                    }
                    thread::park_timeout(left);
                }
                if ring.blocking_send(()).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("pacer".to_owned()).spawn(wait)?;
        Ok(Self { rung, thread: Some(thread) })
    }

    /// Until the next time. May be dropped and called again.
    pub(super) async fn next(&mut self) {
        self.rung.recv().await;
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.rung.close();
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            drop(thread.join());
        }
    }
}
