//! What tenants leave here.

use std::{io, path::PathBuf, sync::Arc};

use tempfile::TempDir;

use crate::{
    Config, batches::Batches, files::Files, openai::responses::Responses, replay::StoreError,
    reply::unix_seconds,
};

/// All of it.
pub struct Shelves {
    pub(crate) files: Files,
    pub(crate) batches: Batches,
    pub(crate) responses: Arc<Responses>,
    /// Where there is no state directory: it goes with the process.
    _temporary: Option<TempDir>,
}

// === impl Shelves ===

impl Shelves {
    /// With what is in the state directory of `config`, if it names one.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(config: &Config) -> Result<Arc<Self>, StoreError> {
        let config = config.clone();
        let opened = tokio::task::spawn_blocking(move || Self::read(&config)).await;
        opened.map_err(StoreError::of)?.map(Arc::new).map_err(StoreError::of)
    }

    fn read(config: &Config) -> io::Result<Self> {
        let temporary = if config.state_dir.is_none() {
            Some(tempfile::Builder::new().prefix("baton-").tempdir()?)
        } else {
            None
        };
        let at = temporary.as_ref().map(|folder| folder.path().to_owned());
        let at: PathBuf = config.state_dir.clone().or(at).unwrap_or_default();
        let files = Files::read(&at.join("files"), &config.batches)?;
        let batches = Batches::read(&at.join("batches"), &config.batches)?;
        let responses = Responses::read(&at.join("responses"), &config.responses)?;
        files.sweep_contents(|id| batches.writes(id))?;
        Ok(Self { files, batches, responses, _temporary: temporary })
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&self) {
        let now = unix_seconds();
        self.files.remove(|file| file.record.expires <= now && !self.batches.reads(&file.id));
        self.batches.sweep();
        self.responses.sweep();
    }

    /// Waits until the disk has everything.
    pub(crate) async fn settle(&self) {
        self.files.settle().await;
        self.batches.settle().await;
        self.responses.settle().await;
    }
}
