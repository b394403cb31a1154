//! Algorithms found by timing, on disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    super::Dtype,
    Sizes,
    blas::{Algorithm, Kind},
};

/// An algorithm and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// As cuBLASLt describes it.
    pub algorithm: Algorithm,
    /// Of one product, with weights that were not in L2.
    pub micros: f32,
}

/// A file for one kind of inputs, one card and one version of cuBLASLt. It saves time and nothing
/// else: when it cannot be read or written, algorithms are searched again.
#[derive(Debug)]
pub(super) struct Cache {
    file: PathBuf,
}

/// One shape of the file.
#[derive(Serialize, Deserialize)]
struct Entry {
    m: usize,
    n: usize,
    k: usize,
    #[serde(flatten)]
    found: Found,
}

// === impl Cache ===

impl Cache {
    pub(super) fn new(folder: &Path, (kind, dtype): (Kind, Dtype), card: &str, version: usize) -> Self {
        let card: String = card
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let kind = match kind {
            Kind::Plain => "gemm",
            Kind::E4m3 => "gemm-e4m3",
        };
        let dtype = match dtype {
            Dtype::Bf16 => "",
            Dtype::F16 => "-f16",
        };
        Self { file: folder.join(format!("{kind}{dtype}-{card}-{version}.json")) }
    }

    pub(super) fn read(&self) -> BTreeMap<Sizes, Found> {
        let entries: Vec<Entry> = fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        entries.into_iter().map(|Entry { m, n, k, found }| (Sizes { n, k, m }, found)).collect()
    }

    pub(super) fn write(&self, found: &BTreeMap<Sizes, Found>) {
        let entries: Vec<Entry> =
            found.iter().map(|(&Sizes { n, k, m }, found)| Entry { m, n, k, found: found.clone() }).collect();
        let Ok(json) = serde_json::to_vec_pretty(&entries) else { return };
        // Renamed when whole: another process may read it now.
        let partial = self.file.with_extension(format!("{}.partial", std::process::id()));
        let folder = self.file.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| fs::write(&partial, json));
        if written.and_then(|()| fs::rename(&partial, &self.file)).is_err() {
            drop(fs::remove_file(&partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_a_broken_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache =
            Cache::new(&folder.path().join("new"), (Kind::Plain, Dtype::Bf16), "NVIDIA H100 80GB", 130_000);
        assert!(cache.read().is_empty());
        let sizes = Sizes { n: 4096, k: 14_336, m: 8 };
        let found = BTreeMap::from([(sizes, Found { algorithm: [u64::MAX; 8], micros: 40.5 })]);
        cache.write(&found);
        assert_eq!(cache.read(), found);
        let other =
            Cache::new(&folder.path().join("new"), (Kind::Plain, Dtype::Bf16), "NVIDIA H100 80GB", 130_001);
        assert!(other.read().is_empty());
        let other =
            Cache::new(&folder.path().join("new"), (Kind::E4m3, Dtype::Bf16), "NVIDIA H100 80GB", 130_000);
        assert!(other.read().is_empty());
        let other =
            Cache::new(&folder.path().join("new"), (Kind::Plain, Dtype::F16), "NVIDIA H100 80GB", 130_000);
        assert!(other.read().is_empty());
        fs::write(&cache.file, "[{").unwrap();
        assert!(cache.read().is_empty());
    }
}
