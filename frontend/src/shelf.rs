//! Records by id, each of one tenant, in memory and as JSON in a folder.
//!
//! What is in memory counts; the disk follows. Whoever has to know that a
//! record is there awaits what [`put`](Shelf::put) and its like return.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// The records of one kind.
pub struct Shelf<T> {
    folder: PathBuf,
    records: Mutex<HashMap<String, Shelved<T>>>,
    /// Held while a file is written, so that the newest is written last.
    writing: Mutex<()>,
    writes: TaskTracker,
}

/// A record where it lies.
pub struct Shelved<T> {
    pub id: String,
    pub tenant: String,
    /// Microseconds since 1970.
    pub made: u64,
    /// On disk, about.
    pub bytes: usize,
    pub record: Arc<T>,
}

/// What a record's file holds.
#[derive(Deserialize)]
struct Kept<T> {
    tenant: String,
    made: u64,
    record: T,
}

/// As [`Kept`].
#[derive(Serialize)]
struct Keeping<'a, T> {
    tenant: &'a str,
    made: u64,
    record: &'a T,
}

/// What records are.
pub trait Record: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Record for T {}

const ENDING: &str = "json";

// === impl Shelf ===

impl<T: Record> Shelf<T> {
    /// The records of a folder, which is made if it is not there. What cannot be read is left out.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn read(folder: PathBuf) -> io::Result<Arc<Self>> {
        fs::create_dir_all(&folder)?;
        let mut records = HashMap::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
            if path.extension().is_none_or(|ending| ending != ENDING) {
                continue;
            }
            match (id, read(&path)) {
                (Some(id), Some(shelved)) => drop(records.insert(id.clone(), Shelved { id, ..shelved })),
                _ => warn!(file = %path.display(), "not a record"),
            }
        }
        let (records, writing) = (Mutex::new(records), Mutex::default());
        Ok(Arc::new(Self { folder, records, writing, writes: TaskTracker::new() }))
    }

    /// The tenant's record of this id.
    pub fn get(&self, tenant: &str, id: &str) -> Option<Arc<T>> {
        let records = self.records.lock();
        let found = records.get(id).filter(|shelved| shelved.tenant == tenant)?;
        Some(Arc::clone(&found.record))
    }

    /// All records, the newest first.
    pub fn all(&self) -> Vec<Shelved<T>> {
        let mut all: Vec<_> = self.records.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| (b.made, &b.id).cmp(&(a.made, &a.id)));
        all
    }

    /// The tenant's records, the newest first.
    pub fn of_tenant(&self, tenant: &str) -> Vec<Shelved<T>> {
        let mut all = self.all();
        all.retain(|shelved| shelved.tenant == tenant);
        all
    }

    /// How many records a tenant has, and bytes of them.
    pub fn extent(&self, tenant: &str) -> (usize, usize) {
        let records = self.records.lock();
        let own = records.values().filter(|shelved| shelved.tenant == tenant);
        own.fold((0, 0), |(count, bytes), shelved| (count + 1, bytes + shelved.bytes))
    }

    /// Adds a record.
    pub fn put(self: &Arc<Self>, tenant: &str, id: &str, record: T) -> JoinHandle<()> {
        let (tenant, id) = (tenant.to_owned(), id.to_owned());
        let made = micros(SystemTime::now());
        let bytes = serde_json::to_vec(&record).map_or(0, |text| text.len());
        let shelved = Shelved { id: id.clone(), tenant, made, bytes, record: Arc::new(record) };
        self.records.lock().insert(id.clone(), shelved);
        self.save(id)
    }

    /// Changes a record, if it is there.
    pub fn change(self: &Arc<Self>, id: &str, change: impl FnOnce(&mut T)) -> JoinHandle<()> {
        self.note(id, change);
        self.save(id.to_owned())
    }

    /// Changes a record in memory alone.
    pub fn note(&self, id: &str, change: impl FnOnce(&mut T)) {
        if let Some(shelved) = self.records.lock().get_mut(id) {
            change(Arc::make_mut(&mut shelved.record));
        }
    }

    /// Takes away the records that are not to stay; returns them.
    pub fn retain(self: &Arc<Self>, stays: impl Fn(&Shelved<T>) -> bool) -> Vec<Shelved<T>> {
        let gone: Vec<_> = self.records.lock().extract_if(|_, shelved| !stays(shelved)).collect();
        let gone: Vec<_> = gone.into_iter().map(|(_, shelved)| shelved).collect();
        for shelved in &gone {
            self.save(shelved.id.clone());
        }
        gone
    }

    /// Runs what waits for the disk, and is not waited for but at the end.
    pub fn later(&self, work: impl FnOnce() + Send + 'static) {
        drop(self.writes.spawn_blocking(work));
    }

    /// Waits until the disk has what memory has.
    pub async fn settle(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    /// The record's file shall be as the record is.
    fn save(self: &Arc<Self>, id: String) -> JoinHandle<()> {
        let shelf = Arc::clone(self);
        self.writes.spawn_blocking(move || {
            if let Err(error) = shelf.follow(&id) {
                warn!(%error, id, "a record is not on disk");
            }
        })
    }

    fn follow(&self, id: &str) -> io::Result<()> {
        let _only = self.writing.lock();
        let file = self.folder.join(id).with_extension(ENDING);
        let Some(Shelved { tenant, made, record, .. }) = self.records.lock().get(id).cloned() else {
            return match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let unfinished = file.with_extension("part");
        fs::write(&unfinished, serde_json::to_vec(&Keeping { tenant: &tenant, made, record: &*record })?)?;
        fs::rename(unfinished, file)
    }
}

fn read<T: Record>(file: &Path) -> Option<Shelved<T>> {
    let text = fs::read(file).ok()?;
    let Kept { tenant, made, record } = serde_json::from_slice(&text).ok()?;
    Some(Shelved { id: String::new(), tenant, made, bytes: text.len(), record: Arc::new(record) })
}

/// Since 1970.
pub fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

// === impl Shelved ===

impl<T> Clone for Shelved<T> {
    fn clone(&self) -> Self {
        let Self { id, tenant, made, bytes, record } = self;
        Self {
            id: id.clone(),
            tenant: tenant.clone(),
            made: *made,
            bytes: *bytes,
            record: Arc::clone(record),
        }
    }
}
