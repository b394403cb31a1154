//! Who may come in: API keys, and how much each tenant may ask for.
//!
//! - [`keys`]: the file of keys, and how one is made
//! - [`tenant`]: whose a call is, and their limits in [`rate`]
//! - [`cors`]: pages of which origins may call

mod cors;
pub mod keys;
mod rate;
pub mod tenant;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use baton_trust::Rank;
use parking_lot::RwLock;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tracing::{error, info};

pub use cors::cors;
use keys::{KeyRing, KeysError};
use tenant::Tenant;

use crate::{error::ApiError, metrics::Route};

/// Lets calls in by their keys; without a file, everyone as the same tenant.
pub struct Door {
    file: Option<PathBuf>,
    /// Whether keys may have ranks.
    is_operators: bool,
    /// Of the file before it was read first.
    begins: Stamp,
    ring: RwLock<Arc<KeyRing>>,
    /// Whose calls are when there are no keys.
    anyone: Arc<Tenant>,
}

/// A version of the file: when it was written, and its length.
type Stamp = Option<(SystemTime, u64)>;

/// Anthropic's own.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Time between two looks at the file.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

// === impl Door ===

impl Door {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or is wrong.
    pub async fn new(file: Option<PathBuf>) -> Result<Self, KeysError> {
        Self::open(file, false).await
    }

    /// The door of operators.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn of_operators(file: PathBuf) -> Result<Self, KeysError> {
        Self::open(Some(file), true).await
    }

    async fn open(file: Option<PathBuf>, is_operators: bool) -> Result<Self, KeysError> {
        let anyone = Arc::new(Tenant::anyone());
        let ring = RwLock::default();
        let mut door = Self { file, is_operators, begins: None, ring, anyone };
        if let Some(file) = door.file.clone() {
            // In this order: what is written meanwhile is read again.
            door.begins = stamp(file.clone()).await;
            *door.ring.get_mut() = Arc::new(door.read(file, KeyRing::default()).await?);
        }
        Ok(door)
    }

    /// Whether callers need keys, so that there may be several tenants.
    pub fn wants_keys(&self) -> bool {
        self.file.is_some()
    }

    /// Whose call this is.
    ///
    /// # Errors
    /// Without a key that is known.
    pub fn tenant_of(&self, route: Route, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
        if self.file.is_none() || route.is_open() {
            return Ok(Arc::clone(&self.anyone));
        }
        let key = presented(headers).ok_or(ApiError::NoKey)?;
        self.ring.read().tenant_of(key).cloned().ok_or(ApiError::WrongKey)
    }

    /// Whose an operator's key is, and what it may do; none: it is not known.
    pub fn operator_of(&self, key: &str) -> Option<(String, Rank)> {
        self.ring.read().operator_of(key).map(|(name, rank)| (name.to_owned(), rank))
    }

    /// The tenant of this name, if any of their keys is good still.
    pub fn tenant_named(&self, name: &str) -> Option<Arc<Tenant>> {
        if self.file.is_none() {
            return (name == self.anyone.name).then(|| Arc::clone(&self.anyone));
        }
        self.ring.read().tenant_named(name).cloned()
    }

    /// Reads the file again whenever it changes or SIGHUP comes. One that is wrong
    /// changes nothing.
    pub async fn follow(&self) -> Infallible {
        let Some(file) = &self.file else { return std::future::pending().await };
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut known = self.begins;
        loop {
            let asked = tokio::select! {
                () = sleep(LOOK_INTERVAL) => false,
                () = heard(&mut hangup) => true,
            };
            let found = stamp(file.clone()).await;
            if asked || found != known {
                known = found;
                self.reload(file).await;
            }
        }
    }

    async fn reload(&self, file: &Path) {
        let before = KeyRing::clone(&self.ring.read());
        match self.read(file.to_owned(), before).await {
            Ok(ring) => {
                info!(keys = ring.count(), "read the API keys again");
                *self.ring.write() = Arc::new(ring);
            }
            Err(error) => error!(%error, "kept the API keys as they were"),
        }
    }

    async fn read(&self, file: PathBuf, before: KeyRing) -> Result<KeyRing, KeysError> {
        let ring = tokio::task::spawn_blocking(move || KeyRing::read(&file, &before))
            .await
            .unwrap_or_else(|error| Err(KeysError::Unreadable { reason: error.to_string() }))?;
        match ring.ranked().filter(|_| !self.is_operators) {
            Some(id) => {
                Err(KeysError::Key { id: id.to_owned(), problem: "has a rank, which is for admin.keys_file" })
            }
            None => Ok(ring),
        }
    }
}

async fn stamp(file: PathBuf) -> Stamp {
    let look = move || {
        let found = std::fs::metadata(file).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

async fn heard(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// The key of a call: OpenAI's clients send it as a bearer's token, Anthropic's in a header of its own.
fn presented(headers: &HeaderMap) -> Option<&str> {
    // Where a header is there twice, what stands before this server may have looked at the other.
    let once = |name: &HeaderName| {
        let mut said = headers.get_all(name).iter();
        let first = said.next()?.to_str().ok();
        if said.next().is_some() { None } else { first }
    };
    let bearer = once(&AUTHORIZATION).and_then(|said| {
        let (scheme, token) = said.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or_else(|| once(&X_API_KEY))
}
