//! Answers by tenant and key, within bounds.

use std::{
    collections::HashMap,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet};
use tracing::warn;

use super::record::Record;
use crate::{Config, error::ApiError};

/// All answers that may be asked for again, and the calls that make them.
pub struct Store {
    entries: Mutex<HashMap<String, Entry>>,
    calls: Mutex<JoinSet<()>>,
    /// Where answers survive this process.
    folder: Option<PathBuf>,
    bounds: Bounds,
}

struct Bounds {
    answers: usize,
    bytes: usize,
    age: Duration,
}

struct Entry {
    /// Digest of what was asked.
    asked: String,
    made: SystemTime,
    record: Arc<watch::Sender<Record>>,
    /// Of an answer that has ended.
    bytes: Option<usize>,
}

/// What there is under a name.
pub enum Found {
    /// The call, running or done.
    There(watch::Receiver<Record>),
    /// Nothing yet: the answer goes here.
    New(Arc<watch::Sender<Record>>),
}

/// Cancels the calls of a store when dropped.
pub struct Calls(pub Arc<Store>);

/// A call of this name; forgets it when dropped before its end, as by a panic, so that it can be made again.
pub struct Unfinished {
    pub store: Arc<Store>,
    pub name: String,
    pub record: Arc<watch::Sender<Record>>,
}

/// An answer on disk, in a file of its name.
#[derive(Serialize, Deserialize)]
struct Kept {
    asked: String,
    made: SystemTime,
    record: Record,
}

/// Why nothing can be kept.
#[derive(Debug, thiserror::Error)]
#[error("frontend.state_dir cannot be used: {reason}")]
pub struct StoreError {
    /// What the system said.
    reason: String,
}

// === impl Store ===

impl Store {
    /// With the answers that are in the state directory of `config`, if it names one.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(config: &Config) -> Result<Arc<Self>, StoreError> {
        let bounds = Bounds {
            answers: config.max_kept_answers,
            bytes: config.max_kept_bytes,
            age: Duration::from_secs(config.kept_seconds),
        };
        let folder = config.state_dir.as_ref().map(|folder| folder.join("answers"));
        let read = {
            let folder = folder.clone();
            move || folder.map_or_else(|| Ok(HashMap::new()), |folder| read(&folder))
        };
        let entries = tokio::task::spawn_blocking(read).await.map_err(StoreError::of)??;
        let store = Self { entries: Mutex::new(entries), calls: Mutex::default(), folder, bounds };
        store.make_room(&mut store.entries.lock());
        Ok(Arc::new(store))
    }

    /// Whether a call of this name runs or was answered.
    pub fn has(&self, name: &str) -> bool {
        let mut entries = self.entries.lock();
        self.make_room(&mut entries);
        entries.contains_key(name)
    }

    /// The call of this name, which asks for `asked`.
    ///
    /// # Errors
    /// When the name is another call's, or there is no room for one more.
    pub fn find(&self, name: &str, asked: &str) -> Result<Found, ApiError> {
        let mut entries = self.entries.lock();
        self.make_room(&mut entries);
        if let Some(entry) = entries.get(name) {
            if entry.asked != asked {
                return Err(ApiError::KeyReused { running: entry.bytes.is_none() });
            }
            return Ok(Found::There(entry.record.subscribe()));
        }
        let limit = self.bounds.answers;
        if entries.len() >= limit {
            let message =
                format!("{limit} calls with an Idempotency-Key run already (frontend.max_kept_answers)");
            return Err(ApiError::overloaded(message));
        }
        let record = Arc::new(watch::Sender::new(Record::default()));
        let entry = Entry {
            asked: asked.to_owned(),
            made: SystemTime::now(),
            record: Arc::clone(&record),
            bytes: None,
        };
        entries.insert(name.to_owned(), entry);
        Ok(Found::New(record))
    }

    /// Runs a call.
    pub fn spawn(&self, call: impl Future<Output = ()> + Send + 'static) {
        let mut calls = self.calls.lock();
        while calls.try_join_next().is_some() {}
        calls.spawn(call);
    }

    /// The call of this name is over. An answer is on disk before its readers see its end.
    pub async fn close(&self, name: &str, record: &watch::Sender<Record>, good: bool) {
        let mut ended = record.borrow().clone();
        ended.end();
        if good && ended.is_success() {
            let bytes = ended.bytes();
            self.write(name, ended).await;
            if let Some(entry) = self.entries.lock().get_mut(name) {
                entry.bytes = Some(bytes);
            }
        } else {
            self.entries.lock().remove(name);
        }
        record.send_modify(Record::end);
    }

    async fn write(&self, name: &str, record: Record) {
        let Some(folder) = &self.folder else { return };
        let kept = self.entries.lock().get(name).map(|entry| (entry.asked.clone(), entry.made));
        let Some((asked, made)) = kept else { return };
        let file = folder.join(name);
        let write = move || {
            let text = serde_json::to_vec(&Kept { asked, made, record })?;
            let unfinished = file.with_extension("part");
            fs::write(&unfinished, text)?;
            fs::rename(unfinished, file)
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other);
        if let Err(error) = written.flatten() {
            warn!(%error, "an answer with an Idempotency-Key is not on disk");
        }
    }

    /// Lets go of answers that are too old, and of the oldest where there are too many.
    fn make_room(&self, entries: &mut HashMap<String, Entry>) {
        let now = SystemTime::now();
        let mut done: Vec<_> = entries
            .iter()
            .filter_map(|(name, entry)| Some((entry.made, name.clone(), entry.bytes?)))
            .collect();
        done.sort_unstable();
        let (mut bytes, mut count) = (done.iter().map(|(_, _, bytes)| bytes).sum::<usize>(), entries.len());
        let mut gone = Vec::new();
        for (made, name, size) in done {
            let is_old = now.duration_since(made).is_ok_and(|age| age > self.bounds.age);
            if !is_old && bytes <= self.bounds.bytes && count < self.bounds.answers {
                break;
            }
            (bytes, count) = (bytes - size, count - 1);
            entries.remove(&name);
            gone.extend(self.folder.as_ref().map(|folder| folder.join(name)));
        }
        if !gone.is_empty() {
            self.calls
                .lock()
                .spawn_blocking(move || gone.iter().for_each(|file| drop(fs::remove_file(file))));
        }
    }
}

/// The answers of a folder, which is made if it is not there. What cannot be read is left out.
fn read(folder: &Path) -> Result<HashMap<String, Entry>, StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::of)?;
    let mut entries = HashMap::new();
    for file in fs::read_dir(folder).map_err(StoreError::of)? {
        let file = file.map_err(StoreError::of)?;
        let kept: Option<Kept> =
            fs::read(file.path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match (kept, file.file_name().into_string()) {
            (Some(Kept { asked, made, record }), Ok(name)) => {
                let bytes = Some(record.bytes());
                entries
                    .insert(name, Entry { asked, made, record: Arc::new(watch::Sender::new(record)), bytes });
            }
            _ => warn!(file = %file.path().display(), "not a kept answer"),
        }
    }
    Ok(entries)
}

// === impl Unfinished ===

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut entries = self.store.entries.lock();
        // After a call that failed, the name may be the next one's.
        let is_own = |entry: &Entry| entry.bytes.is_none() && Arc::ptr_eq(&entry.record, &self.record);
        if entries.get(&self.name).is_some_and(is_own) {
            entries.remove(&self.name);
        }
    }
}

// === impl Calls ===

impl Drop for Calls {
    fn drop(&mut self) {
        self.0.calls.lock().abort_all();
    }
}

// === impl StoreError ===

impl StoreError {
    pub(crate) fn of(reason: impl Display) -> Self {
        Self { reason: reason.to_string() }
    }
}
