//! Answers that are kept: to be had again, and to go on from.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    ConfigError,
    shelf::{Shelf, micros},
};

/// Settings of answers that are kept, section `[frontend.responses]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResponseLimits {
    /// Most of a tenant; the oldest go first.
    pub max_kept: usize,
    /// Most bytes of a tenant's; the oldest go first.
    pub max_bytes: usize,
    /// How long they are kept.
    pub kept_seconds: u64,
}

/// All of them.
pub struct Responses {
    shelf: Arc<Shelf<KeptResponse>>,
    limits: ResponseLimits,
}

/// One answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptResponse {
    /// The conversation as templates know it, from its beginning to this answer.
    pub messages: Vec<Value>,
    /// What this call added to it, as items.
    pub given: Vec<Value>,
    /// As it was sent.
    pub response: Value,
}

// === impl ResponseLimits ===

impl Default for ResponseLimits {
    fn default() -> Self {
        Self { max_kept: 4096, max_bytes: 256 << 20, kept_seconds: 30 * 86_400 }
    }
}

impl ResponseLimits {
    /// Whether every setting can work.
    ///
    /// # Errors
    /// The first one that cannot.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.kept_seconds > 0 {
            return Ok(());
        }
        Err(ConfigError { setting: "responses.kept_seconds", expected: "positive" })
    }
}

// === impl Responses ===

impl Responses {
    /// Those in a folder.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn read(folder: &Path, limits: &ResponseLimits) -> io::Result<Arc<Self>> {
        let kept = Self { shelf: Shelf::read(folder.to_owned())?, limits: limits.clone() };
        kept.sweep();
        Ok(Arc::new(kept))
    }

    /// The tenant's answer of this id.
    pub fn get(&self, tenant: &str, id: &str) -> Option<Arc<KeptResponse>> {
        self.shelf.get(tenant, id)
    }

    /// Keeps an answer: in memory from now on, on disk soon.
    pub fn keep(&self, tenant: &str, id: &str, kept: KeptResponse) {
        drop(self.shelf.put(tenant, id, kept));
        let (count, bytes) = self.shelf.extent(tenant);
        if count > self.limits.max_kept || bytes > self.limits.max_bytes {
            self.make_room(tenant);
        }
    }

    /// Deletes an answer; false if there was none.
    pub fn remove(&self, tenant: &str, id: &str) -> bool {
        if self.get(tenant, id).is_none() {
            return false;
        }
        self.shelf.retain(|kept| kept.id != id);
        true
    }

    /// Forgets those that are too old.
    pub fn sweep(&self) {
        let age = Duration::from_secs(self.limits.kept_seconds);
        let oldest = SystemTime::now().checked_sub(age).map_or(0, micros);
        self.shelf.retain(|kept| kept.made >= oldest);
    }

    /// Waits until the disk has every one.
    pub async fn settle(&self) {
        self.shelf.settle().await;
    }

    /// Lets go of a tenant's oldest.
    fn make_room(&self, tenant: &str) {
        let (mut count, mut bytes) = (0, 0);
        let mut gone = Vec::new();
        for kept in self.shelf.of_tenant(tenant) {
            (count, bytes) = (count + 1, bytes + kept.bytes);
            if count > self.limits.max_kept || bytes > self.limits.max_bytes {
                gone.push(kept.id);
            }
        }
        self.shelf.retain(|kept| !gone.contains(&kept.id));
    }
}
