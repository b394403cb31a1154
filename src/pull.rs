//! `baton model pull`.

use anyhow::Result;

use crate::terminal;

/// Makes the model available and prints where it is.
///
/// # Errors
/// When it cannot be fetched or its digest is wrong.
pub fn run(name: &str) -> Result<()> {
    let path = baton_model::pull(name, &baton_model::default_cache(), &mut |note| terminal::note(note))?;
    terminal::say(path.display());
    Ok(())
}
