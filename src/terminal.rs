//! Words for a person: stdout for what was asked for, stderr for the rest.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

use std::{
    fmt::Display,
    io::Write,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry;

/// A model on its way into memory: a bar on a terminal, otherwise a line at its start and one
/// at its end.
pub struct LoadingBar {
    name: String,
    bar: ProgressBar,
    total: Once,
    started: Instant,
}

/// Requests on their way: a bar on a terminal, otherwise nothing.
pub struct CountBar {
    bar: ProgressBar,
    failed: AtomicUsize,
}

/// A line on stdout.
pub fn say(line: impl Display) {
    println!("{line}");
}

/// Text on stdout without a line's end, shown at once.
pub fn show(text: &str) {
    print!("{text}");
    drop(std::io::stdout().flush());
}

/// A line on stderr.
pub fn note(line: impl Display) {
    if telemetry::is_json() {
        tracing::info!("{line}");
    } else {
        eprintln!("{line}");
    }
}

/// An error with its causes.
pub fn complain(error: &anyhow::Error) {
    if telemetry::is_json() {
        tracing::error!("{error:#}");
    } else {
        eprintln!("error: {error:#}");
    }
}

// === impl LoadingBar ===

impl LoadingBar {
    /// Starts now.
    pub fn start(name: &str) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        let target =
            if telemetry::is_json() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(format!("loading {name}"));
        if bar.is_hidden() {
            note(format_args!("loading {name}"));
        }
        Self { name: name.to_owned(), bar, total: Once::new(), started: Instant::now() }
    }

    /// So many bytes of so many are there. May be called from several threads.
    pub fn show(&self, done: u64, total: u64) {
        self.total.call_once(|| self.bar.set_length(total));
        self.bar.set_position(done);
    }

    /// Everything is there, and takes `bytes` of memory.
    pub fn finish(self, bytes: usize) {
        let took = Duration::from_millis(self.started.elapsed().as_millis() as u64);
        if self.bar.is_hidden() {
            note(format_args!("loaded {}: {} of weights in {took:?}", self.name, HumanBytes(bytes as u64)));
        }
        self.bar.finish_and_clear();
    }
}

// === impl CountBar ===

impl CountBar {
    /// None of `total` is done.
    pub fn start(name: &str, total: usize) -> Self {
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} {elapsed} of {duration}");
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(name.to_owned());
        Self { bar, failed: AtomicUsize::new(0) }
    }

    /// So many more are done, some of which came to nothing.
    pub fn advance(&self, done: usize, failed: usize) {
        let failed = self.failed.fetch_add(failed, Ordering::Relaxed) + failed;
        if failed > 0 {
            self.bar.set_message(format!("{failed} without answer"));
        }
        self.bar.inc(done as u64);
    }

    /// All are done.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
