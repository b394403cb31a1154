//! What is made of files, made again whenever they change.

use std::{
    convert::Infallible,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::RwLock;
use tokio::{task::spawn_blocking, time::sleep};

use crate::TrustError;

/// A value with the files that it was made of.
pub struct Followed<T> {
    files: Vec<PathBuf>,
    /// Of the files before they were read first.
    begins: Stamp,
    make: Make<T>,
    newest: RwLock<Arc<T>>,
}

type Make<T> = Box<dyn Fn() -> Result<T, TrustError> + Send + Sync>;

/// A version of the files: when each was written, and its length.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Time between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

// === impl Followed ===

impl<T: Send + Sync + 'static> Followed<T> {
    /// Makes the first one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(
        files: impl IntoIterator<Item = PathBuf>,
        make: impl Fn() -> Result<T, TrustError> + Send + Sync + 'static,
    ) -> Result<Self, TrustError> {
        let files: Vec<_> = files.into_iter().collect();
        // In this order: what is written meanwhile is read again.
        let begins = stamps(&files);
        let newest = RwLock::new(Arc::new(make()?));
        Ok(Self { files, begins, make: Box::new(make), newest })
    }

    /// The newest that could be made.
    pub fn newest(&self) -> Arc<T> {
        self.newest.read().clone()
    }

    /// Makes a new one, or keeps the old one. Blocks.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn renew(&self) -> Result<(), TrustError> {
        let made = Arc::new((self.make)()?);
        *self.newest.write() = made;
        Ok(())
    }

    /// Looks at the files for ever. Of those that are no good the old ones are kept.
    pub async fn follow(self: Arc<Self>) -> Infallible {
        let mut known = self.begins.clone();
        loop {
            sleep(LOOK_INTERVAL).await;
            let found = self.clone().look().await;
            if found == known {
                continue;
            }
            known = found;
            let this = self.clone();
            match spawn_blocking(move || this.renew()).await {
                Ok(Ok(())) => tracing::info!(files = ?self.files, "read certificates again"),
                Ok(Err(error)) => tracing::warn!(%error, "kept the certificates as they were"),
                Err(error) => tracing::error!(%error, "certificates were not read again"),
            }
        }
    }

    async fn look(self: Arc<Self>) -> Stamp {
        spawn_blocking(move || stamps(&self.files)).await.unwrap_or_default()
    }
}

fn stamps(files: &[PathBuf]) -> Stamp {
    let stamp = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    files.iter().map(stamp).collect()
}
