//! `Decode.Generate`: an attempt runs inside its answer's stream, so that
//! dropping the stream is all there is to cancelling.

use std::{
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_stream::stream;
use baton_protocol::{
    ErrorCode, Event, Failure,
    wire::{GenerateDown, GenerateUp, Open, decode_server::Decode, generate_up::Message},
};
use futures::{Stream, StreamExt};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Request, Response, Status, Streaming};

use crate::{Node, attempt::Attempt, open::Opened};

/// Serves [`Decode`].
pub struct DecodeService {
    node: Arc<Node>,
}

/// Events that may wait for the stream's reader before the attempt waits too.
const EVENTS: usize = 16;

/// How long an opened stream may say nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

// === impl DecodeService ===

impl DecodeService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl Decode for DecodeService {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateDown, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<Streaming<GenerateUp>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let events = events(Arc::clone(&self.node), request.into_inner());
        Ok(Response::new(Box::pin(events.map(|event| Ok(event.into())))))
    }
}

/// All events of one attempt, ending with the last choice's end or a failure.
fn events<S>(node: Arc<Node>, says: S) -> impl Stream<Item = Event>
where
    S: Stream<Item = Result<GenerateUp, Status>> + Unpin,
{
    stream! {
        let _open = node.attempts.token();
        node.begun.fetch_add(1, Ordering::Relaxed);
        let mut running = node.metrics.begin();
        let (sender, mut receiver) = mpsc::channel(EVENTS);
        let mut run = pin!(attempt(node, says, sender));
        let mut outcome = None;
        loop {
            tokio::select! {
                biased;
                event = receiver.recv() => match event {
                    Some(event) => yield event,
                    None => break,
                },
                ended = &mut run, if outcome.is_none() => outcome = Some(ended),
            }
        }
        match outcome {
            Some(Err(failure)) => {
                running.end(failure.code.as_str());
                yield Event::Failed(failure);
            }
            _ => running.end("answered"),
        }
    }
}

/// Runs one attempt; `events` is closed when it has ended.
async fn attempt<S>(node: Arc<Node>, mut says: S, events: mpsc::Sender<Event>) -> Result<(), Failure>
where
    S: Stream<Item = Result<GenerateUp, Status>> + Unpin,
{
    let open = opening(&mut says).await?;
    let refusal = node.intake.lock().refusal();
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let opened = Opened::check(open, node.page_tokens())?;
    Attempt::new(node, opened, says, events).run().await
}

/// The first message, which must be [`Open`].
async fn opening(
    says: &mut (impl Stream<Item = Result<GenerateUp, Status>> + Unpin),
) -> Result<Open, Failure> {
    let invalid = |message| Failure::new(ErrorCode::InvalidRequest, message);
    match timeout(OPEN_TIMEOUT, says.next()).await {
        Ok(Some(Ok(GenerateUp { message: Some(Message::Open(open)) }))) => Ok(open),
        Ok(Some(Ok(_))) => Err(invalid("the first message is not an open")),
        Ok(Some(Err(_)) | None) => Err(Failure::new(ErrorCode::Cancelled, "the caller is gone")),
        // Held up on its way, and no fault of the request's: it may be tried again.
        Err(_) => Err(Failure::new(ErrorCode::Unavailable, "no open in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_open_that_is_held_up_may_be_sent_again_and_a_wrong_one_may_not() {
        let held_up = opening(&mut futures::stream::pending()).await.unwrap_err();
        assert!(held_up.code.is_retryable(), "{held_up:?}");
        let mut wrong = futures::stream::iter([Ok(GenerateUp { message: None })]);
        assert!(!opening(&mut wrong).await.unwrap_err().code.is_retryable());
    }
}
