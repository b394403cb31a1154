//! How much is kept and done of files and batches.

use serde::Deserialize;

use crate::ConfigError;

/// Settings of files and batches, section `[frontend.batches]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchLimits {
    /// Largest file that is taken.
    pub max_file_bytes: usize,
    /// Most files of a tenant, those included that batches make.
    pub max_files: usize,
    /// Most bytes of them.
    pub max_bytes: u64,
    /// How long files and finished batches are kept whose owner says nothing else.
    pub kept_seconds: u64,
    /// Most lines of a batch.
    pub max_lines: usize,
    /// Most batches of a tenant that are not finished.
    pub max_batches: usize,
    /// Lines answered at once, of all batches. Each other call that runs takes the place of one,
    /// but for the last.
    pub max_running: usize,
    /// Time for a whole batch.
    pub batch_seconds: u64,
}

// === impl BatchLimits ===

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            max_file_bytes: 128 << 20,
            max_files: 1000,
            max_bytes: 1 << 30,
            kept_seconds: 30 * 86_400,
            max_lines: 50_000,
            max_batches: 16,
            max_running: 8,
            batch_seconds: 86_400,
        }
    }
}

impl BatchLimits {
    /// Whether every setting can work.
    ///
    /// # Errors
    /// The first one that cannot.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("batches.max_file_bytes", self.max_file_bytes as u64),
            ("batches.kept_seconds", self.kept_seconds),
            ("batches.max_lines", self.max_lines as u64),
            ("batches.max_running", self.max_running as u64),
            ("batches.batch_seconds", self.batch_seconds),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((setting, _)) => Err(ConfigError { setting, expected: "positive" }),
            None => Ok(()),
        }
    }
}
