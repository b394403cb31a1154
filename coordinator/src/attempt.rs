//! One stream to one decode node. Dropping it cancels what runs there.

use std::{error::Error, pin::Pin, sync::Arc};

use baton_protocol::{
    ErrorCode, Failure, NodeId,
    wire::{GenerateDown, GenerateUp, Open, PrefillCandidate, generate_up::Message},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    fleet::{InFlight, Node, SentPrefill},
    node_client,
    route::Route,
};

/// An attempt that is running.
pub(crate) struct Attempt {
    decode: Arc<Node>,
    /// Who may prefill, best first; nobody: the decode node.
    prefill: Vec<Arc<Node>>,
    up: mpsc::Sender<u32>,
    down: Streaming<GenerateDown>,
    in_flight: InFlight,
    /// Ends when the node is lost; waited for once, not with every message.
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
    sent_prefill: Option<SentPrefill>,
}

/// Why an attempt ended without finishing.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) failure: Failure,
    /// Whose fault it may be, to be asked and avoided.
    pub(crate) node: Arc<Node>,
    /// The node said nothing of the failure: it may be gone.
    pub(crate) unexplained: bool,
}

impl Attempt {
    /// Opens the stream; `choices` bounds what is ever sent after that.
    pub(crate) async fn open(route: Route, open: Open, choices: u32) -> Result<Self, Loss> {
        let Route { decode, prefill, prefill_tokens, .. } = route;
        let runs = prefill.first().unwrap_or(&decode);
        let sent_prefill = Some(runs.send_prefill(prefill_tokens));
        let open = Open { candidates: prefill.iter().map(|node| named(node)).collect(), ..open };

        let (up, stopped) = mpsc::channel(choices as usize);
        let in_flight = decode.occupy();
        let open = GenerateUp { message: Some(Message::Open(open)) };
        let watched = Arc::clone(&decode);
        let mut losing: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { watched.lost().await });
        let client = decode.client();
        let opened = tokio::select! {
            opened = client.generate(open, stopped) => opened.map_err(|status| broken(&status, &decode)),
            () = &mut losing => Err(lost(&decode)),
        };
        Ok(Self { down: opened?, decode, prefill, up, in_flight, lost: losing, sent_prefill })
    }

    /// The next message. An attempt ends by what the caller makes of its
    /// messages, so the end of the stream is always a loss. A node that is
    /// merely slow is waited for; one that its health checks call lost is not.
    pub(crate) async fn next(&mut self) -> Result<GenerateDown, Loss> {
        tokio::select! {
            biased;
            message = self.down.message() => match message {
                Ok(Some(message)) => {
                    self.decode.hear();
                    Ok(message)
                }
                Ok(None) => Err(unexplained("a node ended the stream early", &self.decode)),
                Err(status) => Err(broken(&status, &self.decode)),
            },
            () = &mut self.lost => Err(lost(&self.decode)),
        }
    }

    /// No more tokens of this choice are needed. At most one call a choice.
    pub(crate) fn stop_choice(&self, choice: u32) {
        // Full is impossible: there is room for every choice. Closed shows in `next`.
        if self.up.try_send(choice).is_err() {
            tracing::debug!(node = %self.decode.id(), choice, "stop came after the stream's end");
        }
    }

    /// Who computes the prompt: a prefill node of this name, or the decode node.
    pub(crate) fn computes(&self, prefill: Option<&NodeId>) -> Option<Arc<Node>> {
        let Some(name) = prefill else { return Some(Arc::clone(&self.decode)) };
        self.prefill.iter().find(|node| node.id() == name).cloned()
    }

    /// Of the model that answers.
    pub(crate) fn fingerprint(&self) -> String {
        self.decode.info().model_fingerprint.clone()
    }

    /// The first token is here: the prompt has been run.
    pub(crate) fn prefilled(&mut self) {
        self.sent_prefill = None;
        self.in_flight.generates();
    }

    /// The node sent what no node that works sends.
    pub(crate) fn wrong(&self, error: &dyn Error) -> Loss {
        tracing::warn!(node = %self.decode.id(), %error, "attempt given up");
        self.failed(Failure::new(ErrorCode::PeerLost, "a decode node sent what cannot be right"))
    }

    /// The node itself reported a failure.
    pub(crate) fn failed(&self, failure: Failure) -> Loss {
        Loss { failure, node: Arc::clone(&self.decode), unexplained: false }
    }
}

fn named(node: &Node) -> PrefillCandidate {
    let info = node.info();
    PrefillCandidate {
        node: info.id.0.clone(),
        control_addr: info.control_addr.clone(),
        incarnation: info.incarnation.0,
    }
}

fn broken(status: &Status, node: &Arc<Node>) -> Loss {
    tracing::warn!(node = %node.id(), %status, "stream to a decode node broke");
    let failure = node_client::failure(status);
    let unexplained = failure.code == ErrorCode::PeerLost;
    Loss { failure, node: Arc::clone(node), unexplained }
}

fn lost(node: &Arc<Node>) -> Loss {
    unexplained("the decode node was lost", node)
}

fn unexplained(message: &str, node: &Arc<Node>) -> Loss {
    let failure = Failure::new(ErrorCode::PeerLost, message);
    Loss { failure, node: Arc::clone(node), unexplained: true }
}
