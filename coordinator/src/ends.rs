//! What ends a request from outside.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use baton_protocol::{ErrorCode, Failure};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Its deadline, and an operator. Both are waited for once and for all of the
/// request: to begin anew with every token costs more than the token.
pub(crate) struct Ends {
    deadline: Pin<Box<Sleep>>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

// === impl Ends ===

impl Ends {
    pub(crate) fn new(deadline: Instant, cancelled: CancellationToken) -> Self {
        Self { deadline: Box::pin(sleep_until(deadline)), cancelled: Box::pin(cancelled.cancelled_owned()) }
    }

    /// The first of them, once: a request that has ended is not to be asked again.
    pub(crate) async fn come(&mut self) -> Failure {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        if self.cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(by_an_operator());
        }
        let passed = || Failure::new(ErrorCode::DeadlineExceeded, "the deadline passed");
        self.deadline.as_mut().poll(cx).map(|()| passed())
    }
}

/// What the reader of a cancelled request is told.
pub(crate) fn by_an_operator() -> Failure {
    Failure::new(ErrorCode::Cancelled, "an operator cancelled the request")
}
