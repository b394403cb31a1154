//! The seam to the coordinator, so that this room can be tested without a cluster.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use baton_coordinator::{Coordinator, Health, ServedModel};
use baton_protocol::{Event, Failure, Request, Role};
use futures::{StreamExt, future::BoxFuture};

/// Who answers requests. Implemented by the coordinator, and by a script in tests.
pub trait Dispatch: Send + Sync + 'static {
    /// Starts an answer, or says why not. Dropping the future or the answer cancels.
    fn dispatch(&self, request: Request) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>>;

    /// Models that can be asked for now.
    fn models(&self) -> Vec<ServedModel>;

    /// Serialized tokenizer, template and limits of a model.
    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>>;

    /// Whether a request could be served: how many nodes take work.
    ///
    /// # Errors
    /// Every reason why not.
    fn ready(&self) -> Result<usize, Vec<String>>;
}

/// Events of one request, as they come: tokens, one `Finished` a choice, one
/// `Bill` before the last of them, or `Failed`. Retries have happened inside.
/// Dropping it cancels.
pub trait Answer: Send {
    /// The next event; none after the last.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>>;

    /// No more tokens of this choice are needed; it ends with `Finished`.
    fn stop_choice(&mut self, choice: u32);
}

// === impl for the coordinator ===

impl Dispatch for Coordinator {
    fn dispatch(&self, request: Request) -> BoxFuture<'_, Result<Box<dyn Answer>, Failure>> {
        Box::pin(async {
            let answer = self.dispatch(request).await?;
            Ok(Box::new(answer) as Box<dyn Answer>)
        })
    }

    fn models(&self) -> Vec<ServedModel> {
        self.models()
    }

    fn model_text<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<Arc<[u8]>, Failure>> {
        Box::pin(self.model_text(model))
    }

    fn ready(&self) -> Result<usize, Vec<String>> {
        let status = self.status();
        if status.ready {
            return Ok(status.nodes.iter().filter(|node| node.health == Health::Ready).count());
        }
        let decoding = status.nodes.iter().filter(|node| node.roles.contains(&Role::Decode));
        let reasons: Vec<_> =
            decoding.map(|node| format!("decode node {} is {}", node.id, word(node.health))).collect();
        Err(if reasons.is_empty() { vec!["no decode node is known".to_owned()] } else { reasons })
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Joining => "joining",
        Health::Ready => "ready",
        Health::Draining => "draining",
        Health::Lost => "lost",
    }
}

impl Answer for baton_coordinator::Answer {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_next_unpin(cx)
    }

    fn stop_choice(&mut self, choice: u32) {
        self.stop_choice(choice);
    }
}
