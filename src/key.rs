//! `baton key new`: a key for a tenant, shown once; the file keeps its digest.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt};

use anyhow::{Context, Result};
use baton_frontend::{KeyRing, NewKey};

use crate::{
    args,
    terminal::{note, say},
};

/// Makes it, adds it, and says it on stdout alone.
///
/// # Errors
/// When the file is wrong already, or cannot be written.
pub fn new(args: &args::KeyNew) -> Result<()> {
    let file = args.file.display();
    if args.file.exists() {
        KeyRing::read(&args.file, &KeyRing::default())?;
    }
    let NewKey { key, entry } = NewKey::make(&args.tenant, args.rank)?;
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&args.file);
    // In one write, so that a server that looks sees all of it.
    opened
        .and_then(|mut to| to.write_all(entry.as_bytes()))
        .with_context(|| format!("cannot write {file}"))?;
    note(format_args!(
        "added to {file}; the key is not kept anywhere, and this is the only time it is shown:"
    ));
    say(key);
    Ok(())
}
