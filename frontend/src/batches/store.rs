//! Batches that are kept, and who is to hear of them.

use std::{collections::HashMap, io, path::Path, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    BatchLimits,
    places::Places,
    words::{Batch, KeptBatch, Status},
};
use crate::{
    error::ApiError,
    reply::unix_seconds,
    shelf::{Shelf, Shelved},
};

/// All batches.
pub struct Batches {
    shelf: Arc<Shelf<KeptBatch>>,
    limits: BatchLimits,
    /// That there is a new one.
    pub(super) news: Notify,
    /// Of those that are worked on.
    given_up: Mutex<HashMap<String, CancellationToken>>,
    pub(super) places: Places,
}

// === impl Batches ===

impl Batches {
    /// The batches in a folder.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn read(folder: &Path, limits: &BatchLimits) -> io::Result<Self> {
        Ok(Self {
            shelf: Shelf::read(folder.to_owned())?,
            limits: limits.clone(),
            news: Notify::new(),
            given_up: Mutex::default(),
            places: Places::new(limits.max_running),
        })
    }

    /// The tenant's batch of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, tenant: &str, id: &str) -> Result<Arc<KeptBatch>, ApiError> {
        self.shelf.get(tenant, id).ok_or_else(|| ApiError::Absent { what: "batch", id: id.to_owned() })
    }

    /// The tenant's batches, the newest first.
    pub fn of_tenant(&self, tenant: &str) -> Vec<Shelved<KeptBatch>> {
        self.shelf.of_tenant(tenant)
    }

    /// Those that are to be worked on, the oldest first.
    pub fn unfinished(&self) -> Vec<Shelved<KeptBatch>> {
        let mut all = self.shelf.all();
        all.retain(|kept| !kept.record.batch.status.is_final());
        all.reverse();
        all
    }

    /// Whether a batch that is not finished reads this file.
    pub fn reads(&self, file: &str) -> bool {
        self.unfinished().iter().any(|kept| kept.record.batch.input_file_id == file)
    }

    /// Whether a batch that is not finished writes this file.
    pub fn writes(&self, file: &str) -> bool {
        self.unfinished().iter().any(|kept| kept.record.output == file || kept.record.errors == file)
    }

    /// Keeps one more.
    ///
    /// # Errors
    /// When the tenant has too many.
    pub async fn add(&self, tenant: &str, kept: KeptBatch) -> Result<(), ApiError> {
        let limit = self.limits.max_batches;
        let unfinished = self.unfinished();
        if unfinished.iter().filter(|kept| kept.tenant == tenant).count() >= limit {
            let message = format!("{limit} batches are not finished (frontend.batches.max_batches)");
            return Err(ApiError::overloaded(message));
        }
        let id = kept.batch.id.clone();
        // Fails only when the runtime ends.
        drop(self.shelf.put(tenant, &id, kept).await);
        self.news.notify_one();
        Ok(())
    }

    /// Changes a batch.
    pub async fn change(&self, id: &str, change: impl FnOnce(&mut Batch)) {
        drop(self.shelf.change(id, |kept| change(&mut kept.batch)).await);
    }

    /// Changes a batch in memory: what a restart can find out again.
    pub fn note(&self, id: &str, change: impl FnOnce(&mut Batch)) {
        self.shelf.note(id, |kept| change(&mut kept.batch));
    }

    /// Gives a batch up, unless it is finished.
    ///
    /// # Errors
    /// When there is none.
    pub async fn cancel(&self, tenant: &str, id: &str) -> Result<Arc<KeptBatch>, ApiError> {
        let kept = self.get(tenant, id)?;
        if kept.batch.status.is_final() || kept.batch.status == Status::Finalizing {
            let message = format!("batch `{id}` is finished, or about to be");
            return Err(ApiError::Conflict { message });
        }
        let now = unix_seconds();
        self.change(id, |batch| {
            if !batch.status.is_final() && batch.status != Status::Finalizing {
                batch.status = Status::Cancelling;
                batch.cancelling_at.get_or_insert(now);
            }
        })
        .await;
        let cancelling = self.get(tenant, id)?;
        self.token(id).cancel();
        Ok(cancelling)
    }

    /// What tells that a batch is given up.
    pub fn token(&self, id: &str) -> CancellationToken {
        self.given_up.lock().entry(id.to_owned()).or_default().clone()
    }

    /// A batch is finished.
    pub fn forget_token(&self, id: &str) {
        self.given_up.lock().remove(id);
    }

    /// Forgets batches that are finished and too old.
    pub fn sweep(&self) {
        let now = unix_seconds();
        let kept = self.limits.kept_seconds;
        self.shelf.retain(|shelved| {
            let batch = &shelved.record.batch;
            !batch.status.is_final() || batch.created_at.saturating_add(kept) > now
        });
    }

    /// Waits until the disk has every record.
    pub async fn settle(&self) {
        self.shelf.settle().await;
    }
}
