//! KV that one node gave before it broke off, offered to the next one that is asked for the rest.

use std::{collections::HashSet, sync::Arc};

use baton_protocol::HandoffId;
use parking_lot::Mutex;

/// Handoffs whose prefill node may fetch what this node has of their prompts.
#[derive(Clone, Default)]
pub struct Offers(Arc<Mutex<HashSet<HandoffId>>>);

/// An offer. Dropping it takes it back.
pub struct Offer {
    id: HandoffId,
    offers: Offers,
}

// === impl Offers ===

impl Offers {
    /// Offers until the guard is dropped.
    pub fn add(&self, id: HandoffId) -> Offer {
        self.0.lock().insert(id);
        Offer { id, offers: self.clone() }
    }

    /// Whether there is an offer now.
    pub fn contain(&self, id: &HandoffId) -> bool {
        self.0.lock().contains(id)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.offers.0.lock().remove(&self.id);
    }
}
