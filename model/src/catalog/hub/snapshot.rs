//! The cache's layout: `models--ORG--NAME/{blobs,refs,snapshots}`, as Python writes it.
//!
//! A blob is called by its entity tag; a snapshot is a directory of links to blobs, called by
//! its commit; a ref is a file that holds the commit of a branch or tag.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use hf_hub::CacheRepo;

use super::{
    super::{
        Progress,
        reference::{Reference, is_commit},
    },
    error::HubError,
    session::Remote,
};

const PREFIX: &str = "models--";
/// No model's repository has files deeper than this.
const MAX_DEPTH: usize = 4;

/// A repository at a commit, in the cache.
pub struct Snapshot {
    held: CacheRepo,
    /// The commit.
    pub commit: String,
    /// The directory with its files.
    pub path: PathBuf,
}

/// The repository's name, if `path` is a snapshot.
pub fn repository_of(path: &Path) -> Option<String> {
    let snapshots = path.parent().filter(|parent| parent.ends_with("snapshots"))?;
    repository_called(snapshots.parent()?.file_name()?.to_str()?)
}

/// The repository whose directory is called so.
pub fn repository_called(directory: &str) -> Option<String> {
    directory.strip_prefix(PREFIX).map(|name| name.replacen("--", "/", 1))
}

/// The files below a directory, by their path in it. Links that lead nowhere are no files.
pub fn names_in(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(directory, "", MAX_DEPTH, &mut names);
    names
}

fn collect(directory: &Path, prefix: &str, depth: usize, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        if entry.path().is_file() {
            names.insert(name);
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), &format!("{name}/"), depth - 1, names);
        }
    }
}

/// An error of the file system at `path`.
pub fn refused(path: &Path) -> impl Fn(io::Error) -> HubError + '_ {
    |source| HubError::Io { path: path.to_owned(), source }
}

// === impl Snapshot ===

impl Snapshot {
    /// At a commit, which need not be here.
    pub fn new(held: CacheRepo, commit: String) -> Self {
        let path = held.pointer_path(&commit);
        Self { held, commit, path }
    }

    /// The one that a reference's revision names here.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(held: CacheRepo, reference: &Reference) -> Result<Self, HubError> {
        let revision = &reference.revision;
        let root = root(&held);
        let named = || fs::read_to_string(root.join("refs").join(revision)).ok();
        let commit = if is_commit(revision) { Some(revision.clone()) } else { named() };
        let commit = commit.map(|commit| commit.trim().to_owned()).filter(|commit| is_commit(commit));
        let found = commit.map(|commit| Self::new(held, commit)).filter(|this| this.path.is_dir());
        found.ok_or_else(|| HubError::NotHere {
            what: format!("{}@{revision}", reference.repository),
            cache: root.parent().unwrap_or(&root).to_owned(),
        })
    }

    /// Its files.
    pub fn names(&self) -> BTreeSet<String> {
        names_in(&self.path)
    }

    /// Where a blob lies.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.held.blob_path(etag)
    }

    /// Where a blob grows.
    pub fn unfinished(&self, etag: &str) -> PathBuf {
        self.held.blob_path(&format!("{etag}.incomplete"))
    }

    /// Waits until no other process fetches this blob; Python's waits for the same lock.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn lock(&self, etag: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<File, HubError> {
        let root = root(&self.held);
        let (cache, folder) = (root.parent().unwrap_or(&root), root.file_name().unwrap_or_default());
        let path = cache.join(".locks").join(folder).join(format!("{etag}.lock"));
        let blobs = self.blob(etag);
        for directory in [path.parent(), blobs.parent()].into_iter().flatten() {
            fs::create_dir_all(directory).map_err(refused(directory))?;
        }
        let lock = File::create(&path).map_err(refused(&path))?;
        if lock.try_lock().is_err() {
            progress(Progress::Note("another pull is at work; waiting for it"));
            lock.lock().map_err(refused(&path))?;
        }
        Ok(lock)
    }

    /// Makes a blob one of this snapshot's files.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn link(&self, remote: &Remote) -> Result<(), HubError> {
        let pointer = self.path.join(&remote.file);
        let up = "../".repeat(2 + remote.file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", remote.etag));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let directory = pointer.parent().unwrap_or(&self.path);
        fs::create_dir_all(directory).map_err(refused(directory))?;
        // Renamed, so that a reader finds the old file or the new one.
        let unnamed = directory.join(format!(".link-{}-{}", std::process::id(), remote.etag));
        let made = std::os::unix::fs::symlink(&target, &unnamed);
        made.and_then(|()| fs::rename(&unnamed, &pointer)).map_err(refused(&pointer))
    }

    /// Makes a branch or tag mean this snapshot.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn name(&self, reference: &Reference) -> Result<(), HubError> {
        if is_commit(&reference.revision) {
            return Ok(());
        }
        self.held.create_ref(&self.commit).map_err(refused(&root(&self.held)))
    }

    /// Whether what is still to come fits.
    ///
    /// # Errors
    /// When it does not, or the cache cannot be written.
    pub fn check_space(&self, remotes: &[Remote]) -> Result<(), HubError> {
        let root = root(&self.held);
        fs::create_dir_all(&root).map_err(refused(&root))?;
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let missing = |remote: &Remote| match self.blob(&remote.etag).exists() {
            true => 0,
            false => remote.bytes.saturating_sub(length(self.unfinished(&remote.etag))),
        };
        let needed = remotes.iter().map(missing).fold(0, u64::saturating_add);
        let found = rustix::fs::statvfs(&root).map_err(|error| refused(&root)(error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if needed > free {
            return Err(HubError::Space { needed, free, path: root });
        }
        Ok(())
    }
}

/// The repository's directory.
fn root(held: &CacheRepo) -> PathBuf {
    let snapshot = held.pointer_path("-");
    snapshot.ancestors().nth(2).unwrap_or(&snapshot).to_owned()
}
