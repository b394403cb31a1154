//! Logs: to stderr, filtered by `RUST_LOG` (default `warn`, and `info` for Baton's own rooms).

use std::{
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The form of what is written to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for a person.
    #[default]
    Text,
    /// An object a line, with `timestamp`, `level`, `message`, `target`, and what the line names.
    Json,
}

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Installs the process's one subscriber. Prompt text is never logged.
///
/// # Errors
/// When a subscriber is installed already.
pub fn init(quiet: bool, format: LogFormat) -> anyhow::Result<()> {
    let default = if quiet { "warn" } else { "warn,baton=info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let installed = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("{error}"))
}

/// Whether nothing but objects may be written to stderr.
pub(crate) fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}
