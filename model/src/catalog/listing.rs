//! The models on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    hub::{Hub, HubError, gguf_files, names_in, repository_called},
    known::KNOWN,
    reference::{Pick, Reference},
};

/// A model on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it can be asked for by.
    pub name: String,
    /// Length of its files.
    pub bytes: u64,
    /// Where it lies.
    pub path: PathBuf,
}

/// What was pulled, by Baton or by Python: known models in `cache`, then the Hub's cache.
///
/// # Errors
/// When the environment does not say where the Hub's cache is.
pub fn list(cache: &Path) -> Result<Vec<Held>, HubError> {
    Hub::from_env().map(|hub| list_in(cache, &hub))
}

pub(super) fn list_in(cache: &Path, hub: &Hub) -> Vec<Held> {
    let known = KNOWN.iter().map(|known| (known.name.to_owned(), known.path(cache)));
    let mut held: Vec<_> = known
        .filter_map(|(name, path)| Some(Held { name, bytes: fs::metadata(&path).ok()?.len(), path }))
        .collect();
    for (repository, revision) in revisions(hub.cache()) {
        let name = if revision == "main" { repository.clone() } else { format!("{repository}@{revision}") };
        let reference = |pick| Reference { repository: repository.clone(), revision: revision.clone(), pick };
        let Some(snapshot) = hub.snapshot(&reference(Pick::Only)) else { continue };
        let names = names_in(&snapshot);
        let length = |name: &String| fs::metadata(snapshot.join(name)).map_or(0, |found| found.len());
        if let Ok(path) = hub.find(&reference(Pick::Only)).as_ref().map(PathBuf::as_path)
            && path.is_dir()
        {
            let bytes = names.iter().map(length).sum();
            held.push(Held { name: name.clone(), bytes, path: path.to_owned() });
        }
        for file in gguf_files(&names) {
            let revision = name.strip_prefix(&repository).unwrap_or_default();
            let name = format!("{repository}/{file}{revision}");
            held.push(Held { name, bytes: length(&file), path: snapshot.join(&file) });
        }
    }
    held
}

/// Every repository in the Hub's cache with each of its branches and tags, in order.
fn revisions(cache: &Path) -> Vec<(String, String)> {
    let directories = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for directory in directories {
        let name = directory.file_name().into_string().ok();
        let Some(repository) = name.and_then(|name| repository_called(&name)) else { continue };
        let refs = names_in(&directory.path().join("refs"));
        found.extend(refs.into_iter().map(|revision| (repository.clone(), revision)));
    }
    found.sort();
    found
}
