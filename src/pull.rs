//! `baton model pull` and `baton model list`.

use std::path::PathBuf;

use anyhow::Result;
use baton_model::Progress;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal;

/// A line is said each time so many tenths of a file are there, where no bar can be drawn.
const TENTHS: u64 = 2;
/// A file of no more bytes gets one line, when it is there.
const SMALL: u64 = 1 << 20;

/// Makes the model available and prints where it is.
///
/// # Errors
/// When it cannot be fetched or its digest is wrong.
pub fn run(name: &str) -> Result<()> {
    terminal::say(fetch(name)?.display());
    Ok(())
}

/// Prints the models of this machine: name, size, path.
///
/// # Errors
/// When the environment does not say where they lie.
pub fn list() -> Result<()> {
    let models = baton_model::list(&baton_model::default_cache())?;
    let width = models.iter().map(|model| model.name.len()).max().unwrap_or(0);
    for model in models {
        let bytes = HumanBytes(model.bytes).to_string();
        terminal::say(format_args!("{:width$}  {bytes:>10}  {}", model.name, model.path.display()));
    }
    Ok(())
}

/// Brings a model onto this machine and shows how far it is.
///
/// # Errors
/// When it cannot be had.
pub fn fetch(name: &str) -> Result<PathBuf> {
    let mut shown = Shown::new();
    Ok(baton_model::pull(name, &baton_model::default_cache(), &mut |progress| shown.show(progress))?)
}

/// A pull on the terminal: a bar for each file, or lines if nobody watches.
struct Shown {
    bar: ProgressBar,
    /// The file on its way, and how many tenths of it were said to be there.
    file: Option<(String, u64)>,
}

// === impl Shown ===

impl Shown {
    fn new() -> Self {
        let style =
            ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())), file: None }
    }

    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Note(text) => self.bar.suspend(|| terminal::note(text)),
            Progress::File { name, done, total } => self.advance(name, done, total),
        }
    }

    fn advance(&mut self, name: &str, done: u64, total: u64) {
        let tenths = if total == 0 { 10 } else { (u128::from(done) * 10 / u128::from(total)) as u64 };
        let said = match &self.file {
            Some((file, tenths)) if file == name => Some(*tenths),
            _ => None,
        };
        if said.is_none() {
            self.bar.reset();
            self.bar.set_length(total);
            self.bar.set_message(name.to_owned());
        }
        self.bar.set_position(done);
        if said.is_none_or(|said| tenths >= said + TENTHS || (tenths == 10 && said < 10)) {
            self.file = Some((name.to_owned(), tenths));
            if self.bar.is_hidden() && (done == total || total > SMALL) {
                terminal::note(format_args!("{name}: {} of {}", HumanBytes(done), HumanBytes(total)));
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
