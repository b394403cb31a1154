//! Words for a person: stdout for what was asked for, stderr for the rest.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

use std::{
    fmt::Display,
    io::Write,
    sync::Once,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A model on its way into memory: a bar on a terminal, otherwise a line at its start and one
/// at its end.
pub struct LoadingBar {
    name: String,
    bar: ProgressBar,
    total: Once,
    started: Instant,
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
    eprintln!("{line}");
}

/// An error with its causes.
pub fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

// === impl LoadingBar ===

impl LoadingBar {
    /// Starts now.
    pub fn start(name: &str) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
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
