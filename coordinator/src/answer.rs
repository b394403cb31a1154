//! What the caller reads.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use baton_protocol::Event;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use crate::dispatch::Run;

/// The events of one answer, in order: `Accepted`; tokens, each choice's
/// contiguous from position 0; one `Finished` for each choice, with one `Bill`
/// before the last; or `Failed`. Nothing follows the last `Finished` or
/// `Failed`. The bill is missing only when the reader stopped the last choice
/// and the node did not send one soon.
///
/// Dropping it cancels the request.
pub struct Answer {
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    stop: mpsc::Sender<u32>,
    stopped: Vec<bool>,
}

impl Answer {
    pub(crate) fn new(first: Event, run: Box<Run>, stop: mpsc::Sender<u32>, choices: u32) -> Self {
        let rest = stream::unfold(run, async |mut run| run.next().await.map(|event| (event, run)));
        let events = Box::pin(stream::iter([first]).chain(rest));
        Self { events, stop, stopped: vec![false; choices as usize] }
    }

    /// The reader needs no more of this choice, as when a stop string
    /// matched. The choice ends with `Finished`; tokens of it that are on
    /// their way are dropped. Has no effect on a choice that has ended.
    pub fn stop_choice(&mut self, choice: u32) {
        if let Some(stopped) = self.stopped.get_mut(choice as usize)
            && !std::mem::replace(stopped, true)
            && self.stop.try_send(choice).is_err()
        {
            tracing::debug!(choice, "stop came after the answer's end");
        }
    }
}

impl Stream for Answer {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_next_unpin(cx)
    }
}
