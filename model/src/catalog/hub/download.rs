//! One file, through cuts.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use super::{
    super::Progress,
    digest::{Hasher, Kind},
    error::HubError,
    session::{Remote, Session, text},
    snapshot::{Snapshot, refused},
};

const BUFFER: usize = 1 << 18;
const PARTIAL: u16 = 206;

/// A file that grows; left where it is, it goes on growing in the next pull.
struct Unfinished<'a> {
    remote: &'a Remote,
    path: PathBuf,
    file: File,
    /// Of the bytes that are there.
    hasher: Hasher,
    bytes: u64,
}

/// Makes sure that a file is in the snapshot and is what was announced.
///
/// # Errors
/// When it does not come, comes wrong, or cannot be written.
pub fn bring(
    session: &Session<'_>,
    snapshot: &Snapshot,
    remote: &Remote,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let _lock = snapshot.lock(&remote.etag, progress)?;
    let blob = snapshot.blob(&remote.etag);
    if !is_right(&blob, remote)? {
        let mut unfinished = Unfinished::open(snapshot.unfinished(&remote.etag), remote)?;
        unfinished.grow(session, progress)?;
        unfinished.finish(&blob)?;
    }
    snapshot.link(remote)
}

/// Whether the blob is there; one that is wrong is removed.
fn is_right(blob: &Path, remote: &Remote) -> Result<bool, HubError> {
    if !blob.exists() {
        return Ok(false);
    }
    let (mut hasher, mut bytes) = (Hasher::new(Kind::of(&remote.etag), remote.bytes), 0);
    hash(&mut File::open(blob).map_err(refused(blob))?, &mut hasher, &mut bytes).map_err(refused(blob))?;
    let right =
        bytes == remote.bytes && hasher.finish().is_none_or(|found| found == remote.etag.to_lowercase());
    if !right {
        fs::remove_file(blob).map_err(refused(blob))?;
    }
    Ok(right)
}

fn hash(file: &mut File, hasher: &mut Hasher, bytes: &mut u64) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..read]);
        *bytes += read as u64;
    }
}

// === impl Unfinished ===

impl<'a> Unfinished<'a> {
    /// Goes on where another pull stopped.
    fn open(path: PathBuf, remote: &'a Remote) -> Result<Self, HubError> {
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = opened.map_err(refused(&path))?;
        let hasher = Hasher::new(Kind::of(&remote.etag), remote.bytes);
        let mut this = Self { remote, file, hasher, bytes: 0, path };
        hash(&mut this.file, &mut this.hasher, &mut this.bytes).map_err(refused(&this.path))?;
        if this.bytes > remote.bytes {
            this.restart()?;
        }
        Ok(this)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(refused(&self.path))?;
        self.hasher = Hasher::new(Kind::of(&self.remote.etag), self.remote.bytes);
        self.bytes = 0;
        Ok(())
    }

    /// Fetches until all is here; attempts that bring something do not use up patience.
    fn grow(
        &mut self,
        session: &Session<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let mut patience = session.patience();
        while self.bytes < self.remote.bytes {
            let before = self.bytes;
            if let Err(error) = self.receive(session, progress) {
                if self.bytes > before {
                    patience.renew();
                }
                patience.bear(self.as_cut(error))?;
            }
        }
        Ok(())
    }

    /// One request's worth.
    fn receive(
        &mut self,
        session: &Session<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let response = session.get(self.remote, self.bytes)?;
        if response.status().as_u16() != PARTIAL {
            // The whole file comes, whatever was asked for.
            self.restart()?;
        } else {
            let range = text(response.headers(), "content-range").unwrap_or_default();
            if !range.starts_with(&format!("bytes {}-", self.bytes)) {
                let (url, reason) = (self.remote.file.clone(), format!("bytes `{range}`"));
                return Err(HubError::Answer { url, reason });
            }
        }
        let announced = response.body().content_length().map(|length| self.bytes.saturating_add(length));
        if let Some(found) = announced.filter(|found| *found != self.remote.bytes) {
            return Err(self.wrong_length(found));
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            self.tell(progress);
            let read = body.read(&mut buffer).map_err(|error| self.cut(&error.to_string()))?;
            if read == 0 {
                break;
            }
            if self.bytes + read as u64 > self.remote.bytes {
                return Err(self.wrong_length(self.bytes + read as u64));
            }
            self.file.write_all(&buffer[..read]).map_err(refused(&self.path))?;
            self.hasher.update(&buffer[..read]);
            self.bytes += read as u64;
        }
        if self.bytes < self.remote.bytes { Err(self.cut("the connection ended")) } else { Ok(()) }
    }

    fn tell(&self, progress: &mut dyn FnMut(Progress<'_>)) {
        progress(Progress::File { name: &self.remote.file, done: self.bytes, total: self.remote.bytes });
    }

    fn cut(&self, reason: &str) -> HubError {
        let (file, reason) = (self.remote.file.clone(), reason.to_owned());
        HubError::Cut { file, at: self.bytes, total: self.remote.bytes, reason }
    }

    /// What ends a pull that has begun says where it stopped.
    fn as_cut(&self, error: HubError) -> HubError {
        match error {
            HubError::Network { reason, .. } if self.bytes > 0 => self.cut(&reason),
            other => other,
        }
    }

    fn wrong_length(&self, found: u64) -> HubError {
        // If this fails, the next pull finds it too long or of a wrong digest.
        let _ = fs::remove_file(&self.path);
        HubError::Length { file: self.remote.file.clone(), found, announced: self.remote.bytes }
    }

    /// Gives the file its name, if it is right.
    fn finish(self, blob: &Path) -> Result<(), HubError> {
        let announced = self.remote.etag.to_lowercase();
        if let Some(found) = self.hasher.finish().filter(|found| *found != announced) {
            fs::remove_file(&self.path).map_err(refused(&self.path))?;
            return Err(HubError::Digest { file: self.remote.file.clone(), found, announced });
        }
        self.file.sync_all().map_err(refused(&self.path))?;
        fs::rename(&self.path, blob).map_err(refused(blob))
    }
}
