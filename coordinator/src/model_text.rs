//! Tokenizer and template, fetched from nodes by digest.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use baton_protocol::{ErrorCode, Failure};
use tokio::{sync::Mutex, time::timeout};

use crate::fleet::{Fleet, Health, Node};

/// Model texts by digest. The lock is held while one is fetched, so that a
/// text asked for by many is fetched once.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    known: Mutex<BTreeMap<String, Arc<[u8]>>>,
}

/// How long one node may take.
const FETCH: Duration = Duration::from_secs(10);

impl Texts {
    /// The text of a model that was announced once.
    pub(crate) async fn get(&self, fleet: &Fleet, model: &str) -> Result<Arc<[u8]>, Failure> {
        let unknown = || Failure::new(ErrorCode::UnknownModel, format!("no model {model:?}"));
        let digest = fleet.model(model).ok_or_else(unknown)?.text_digest;
        let mut known = self.known.lock().await;
        if let Some(text) = known.get(&digest) {
            return Ok(Arc::clone(text));
        }
        let text: Arc<[u8]> = fetch(fleet, &digest).await?.into();
        // Texts that no model has any more are dropped here, so that old ones do not pile up.
        let models = fleet.models();
        known.retain(|digest, _| models.iter().any(|model| &model.text_digest == digest));
        known.insert(digest, Arc::clone(&text));
        Ok(text)
    }
}

/// Asks the nodes that serve the text, one after another.
async fn fetch(fleet: &Fleet, digest: &str) -> Result<Vec<u8>, Failure> {
    let mut last = Failure::new(ErrorCode::Unavailable, "no node of this model is ready");
    let serves = |node: &Arc<Node>| {
        matches!(node.health(), Health::Ready | Health::Draining) && node.info().text_digest == digest
    };
    for node in fleet.nodes().into_iter().filter(serves) {
        last = match timeout(FETCH, node.client().model_text(digest)).await {
            Ok(Ok(text)) => return Ok(text),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::new(ErrorCode::PeerLost, "a node was too slow to give the model's text"),
        };
        tracing::warn!(node = %node.id(), error = %last, "model text not fetched");
    }
    Err(last)
}
