//! The Hugging Face Hub, and the cache on this machine that Python's `huggingface_hub` shares.
//!
//! - [`Hub`]: where both are, from the environment; what is here, and how it gets here
//! - `settings`: the environment
//! - `choice`: which of a repository's files make a model
//! - `snapshot`: the cache's layout
//! - `session`: requests, redirects, and who may see the token
//! - `download`: one file, through cuts
//! - `digest`: whether a file is what the Hub announced
//!
//! `hf-hub` has the addresses, the names in the cache and the listing. Its own download is not
//! used: it checks no digest, appends whatever comes to an unfinished file, and sends the token
//! to the hosts that the Hub redirects to.

mod choice;
mod digest;
mod download;
mod error;
mod session;
mod settings;
mod snapshot;

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

pub use self::{
    choice::gguf_files,
    error::HubError,
    snapshot::{names_in, repository_called, repository_of},
};
use self::{
    choice::{Choice, choose},
    session::{Remote, Session},
    settings::Settings,
    snapshot::Snapshot,
};
use super::{Progress, reference::Reference};

/// The Hub and its cache, as the environment says.
pub struct Hub {
    settings: Settings,
}

/// A repository at a revision.
fn repository(reference: &Reference) -> Repo {
    Repo::with_revision(reference.repository.clone(), RepoType::Model, reference.revision.clone())
}

// === impl Hub ===

impl Hub {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and what else Python's `huggingface_hub` does.
    ///
    /// # Errors
    /// When certificates that the environment names cannot be read, or there is no home.
    pub fn from_env() -> Result<Self, HubError> {
        Settings::read(&|name| std::env::var_os(name)).map(|settings| Self { settings })
    }

    /// Where repositories lie.
    pub fn cache(&self) -> &Path {
        &self.settings.cache
    }

    /// The path of a model that is here, whole: a snapshot's directory, or a GGUF file in it.
    ///
    /// # Errors
    /// Says what is not here.
    pub fn find(&self, reference: &Reference) -> Result<PathBuf, HubError> {
        let snapshot = Snapshot::find(self.held(reference), reference)?;
        let missing = |what: String| HubError::NotHere { what, cache: self.settings.cache.clone() };
        match choose(&reference.repository, &snapshot.names(), &reference.pick) {
            Ok(Choice::Gguf(file)) => Ok(snapshot.path.join(file)),
            Ok(Choice::Checkpoint(checkpoint)) => {
                let shards = checkpoint.shards(&snapshot.path)?;
                let absent = shards.into_iter().find(|shard| !snapshot.path.join(shard).is_file());
                absent.map_or(Ok(snapshot.path), |shard| {
                    Err(missing(format!("{shard} of {}", reference.repository)))
                })
            }
            // Here may be less than there is.
            Err(error @ HubError::Ambiguous { .. }) => Err(error),
            Err(error) => Err(missing(error.to_string())),
        }
    }

    /// Brings a model here as it is on the Hub now, checks it, and returns its path.
    ///
    /// # Errors
    /// When the Hub does not give it, what comes is not what was announced, or the disk is full.
    pub fn pull(
        &self,
        reference: &Reference,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, HubError> {
        if self.settings.offline {
            return self.find(reference).map_err(HubError::offline);
        }
        let session = Session::new(&self.settings, reference)?;
        progress(Progress::Note(&format!("asking {} for {}", self.settings.endpoint, reference.repository)));
        let (commit, names) = session.list()?;
        let snapshot = Snapshot::new(self.held(reference), commit);
        let path = match choose(&reference.repository, &names, &reference.pick)? {
            Choice::Gguf(file) => {
                self.bring(&session, &snapshot, std::slice::from_ref(&file), progress)?;
                snapshot.path.join(file)
            }
            Choice::Checkpoint(checkpoint) => {
                self.bring(&session, &snapshot, &checkpoint.settings, progress)?;
                let shards = checkpoint.shards(&snapshot.path)?;
                if let Some(absent) = shards.iter().find(|shard| !names.contains(*shard)) {
                    let (repository, file) = (reference.repository.clone(), absent.clone());
                    return Err(HubError::Lacks { repository, file });
                }
                self.bring(&session, &snapshot, &shards, progress)?;
                snapshot.path.clone()
            }
        };
        // Last, so that the revision names a whole model or what it named before.
        snapshot.name(reference)?;
        progress(Progress::Note(&format!("{} is at {}", reference.repository, path.display())));
        Ok(path)
    }

    /// Fetches files that are not here or are not right, and links them into the snapshot.
    fn bring(
        &self,
        session: &Session<'_>,
        snapshot: &Snapshot,
        files: &[String],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let remotes: Result<Vec<Remote>, _> =
            files.iter().map(|file| session.remote(&snapshot.commit, file)).collect();
        let remotes = remotes?;
        snapshot.check_space(&remotes)?;
        for remote in &remotes {
            download::bring(session, snapshot, remote, progress)?;
        }
        Ok(())
    }

    /// The directory of what is here of a repository at a revision.
    pub fn snapshot(&self, reference: &Reference) -> Option<PathBuf> {
        Snapshot::find(self.held(reference), reference).ok().map(|snapshot| snapshot.path)
    }

    fn held(&self, reference: &Reference) -> CacheRepo {
        Cache::new(self.settings.cache.clone()).repo(repository(reference))
    }
}

#[cfg(test)]
mod tests;
