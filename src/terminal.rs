//! Words for a person: stdout for what was asked for, stderr for the rest.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a terminal program")]

use std::{fmt::Display, io::Write};

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
