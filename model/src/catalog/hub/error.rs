//! Why the Hub's models cannot be had.

use std::{io, path::PathBuf, time::Duration};

/// Why a model of the Hub cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum HubError {
    #[error("there is no home for the cache: set HF_HOME")]
    NoHome,
    #[error("cannot use the certificates of SSL_CERT_FILE={}: {reason}", path.display())]
    Certificates { path: PathBuf, reason: String },
    #[error("{what} is not in {}", cache.display())]
    NotHere { what: String, cache: PathBuf },
    #[error("{what} is not in {}, and HF_HUB_OFFLINE forbids to fetch it", cache.display())]
    Offline { what: String, cache: PathBuf },
    #[error("cannot reach {url}: {reason}")]
    Network { url: String, reason: String },
    #[error("the certificate of {url} is not trusted ({reason}); if it is yours, name it in SSL_CERT_FILE")]
    Untrusted { url: String, reason: String },
    #[error("{url} answers {status}")]
    Status { url: String, status: u16, wait: Option<Duration> },
    #[error("{url} answers what the Hub would not: {reason}")]
    Answer { url: String, reason: String },
    #[error("{page} may be private, or not exist; for a private one set HF_TOKEN")]
    NotFound { page: String },
    #[error("{page} has no revision `{revision}`")]
    NoRevision { page: String, revision: String },
    #[error("{page} is only for those who accepted its licence: do so on that page, then set HF_TOKEN")]
    Gated { page: String },
    #[error("{page} is not open to the token of HF_TOKEN: accept its licence on that page with that account")]
    Refused { page: String },
    #[error("{repository} lists the file `{name}`, which would lie outside of its directory")]
    Hostile { repository: String, name: String },
    #[error("{repository} has no {file}")]
    Lacks { repository: String, file: String },
    #[error(
        "{repository} has only pickled weights ({file}), which are programs when read; safetensors and gguf are supported"
    )]
    Pickles { repository: String, file: String },
    #[error("{repository} has neither safetensors nor gguf files that fit")]
    NoModel { repository: String },
    #[error("{repository} has no {wanted} (there are: {available})")]
    NoSuchFile { repository: String, wanted: String, available: String },
    #[error(
        "{repository} has several models; name one as ORG/NAME:QUANTISATION or ORG/NAME/FILE: {matching}"
    )]
    Ambiguous { repository: String, matching: String },
    #[error("{repository} has {file} in several parts, which is not supported; choose another quantisation")]
    Split { repository: String, file: String },
    #[error("{} is no index of weights: {reason}", path.display())]
    Index { path: PathBuf, reason: String },
    #[error(
        "{file} was cut at byte {at} of {total} ({reason}); what came is kept, and the next pull goes on there"
    )]
    Cut { file: String, at: u64, total: u64, reason: String },
    #[error("{file} has {found} bytes, but {announced} were announced; it was removed")]
    Length { file: String, found: u64, announced: u64 },
    #[error("{file} has the digest {found}, but {announced} was announced; it was removed")]
    Digest { file: String, found: String, announced: String },
    #[error("{needed} bytes are needed in {}, where {free} are free", path.display())]
    Space { needed: u64, free: u64, path: PathBuf },
    #[error("cannot write to {}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

// === impl HubError ===

impl HubError {
    /// Whether another attempt may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// What is not here, said by someone who may not fetch it.
    pub(super) fn offline(self) -> Self {
        match self {
            Self::NotHere { what, cache } => Self::Offline { what, cache },
            other => other,
        }
    }
}
