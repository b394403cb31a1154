//! Logs: to stderr, filtered by `RUST_LOG` (default `warn`, and `info` for Baton's own rooms).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Installs the process's one subscriber. Prompt text is never logged.
///
/// # Errors
/// When a subscriber is installed already.
pub fn init(quiet: bool) -> anyhow::Result<()> {
    let default = if quiet { "warn" } else { "warn,baton=info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("{error}"))
}
