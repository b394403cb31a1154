//! Files of operators' acts: whether all that was written is there, as it was written.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use baton_admin::Chain;

use crate::terminal::say;

/// Checks files that follow each other.
///
/// # Errors
/// When a line was changed or is missing, a file is missing between two, or the last line is not the one that is known.
pub(super) fn run(files: &[PathBuf], last: Option<&str>, json: bool) -> Result<()> {
    let mut before: Option<Chain> = None;
    let mut chains = Vec::new();
    for file in files {
        let chain = Chain::of(file)?;
        let name = file.display();
        let is_next = before.as_ref().is_none_or(|before| chain.lines == 0 || chain.follows(before));
        ensure!(
            is_next,
            "{name} does not begin where the file before it ends: what was between them is gone"
        );
        if !json {
            say(line(&name.to_string(), &chain));
        }
        if chain.lines > 0 {
            before = Some(chain.clone());
        }
        chains.push(chain);
    }
    let found = before.map(|chain| chain.hash).unwrap_or_default();
    ensure!(
        last.is_none_or(|wanted| wanted == found),
        "the last line has another hash, {found}: what came behind it is gone"
    );
    if json {
        say(serde_json::to_string_pretty(&chains)?);
    }
    Ok(())
}

fn line(file: &str, chain: &Chain) -> String {
    let Chain { lines, number, after, hash } = chain;
    if *lines == 0 {
        return format!("{file}: empty");
    }
    let first = number + 1 - lines;
    let begins = if after.is_empty() { "the very first".to_owned() } else { format!("after {after}") };
    format!("{file}: lines {first} to {number} are whole, {begins}; the last hash is {hash}")
}
