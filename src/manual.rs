//! `baton completions` and `baton man`: what shells and `man` know of this program, made from
//! its arguments.

use std::{io::Write, path::Path};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Writes what completes the program's words in `shell` to stdout.
///
/// # Errors
/// When stdout takes no more.
pub fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "baton", &mut script);
    std::io::stdout().write_all(&script).context("cannot write to stdout")
}

/// Writes a man page a command into `dir`, which is made if it is not there.
///
/// # Errors
/// When a page cannot be written.
pub fn pages(dir: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.with_context(|| format!("cannot write into {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::ValueEnum;

    use super::*;

    /// Names of the pages of a command and all below it.
    fn names(command: &clap::Command, above: &str) -> Vec<String> {
        let name = format!("{above}{}", command.get_name());
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        let below: Vec<_> = below.flat_map(|below| names(below, &format!("{name}-"))).collect();
        [format!("{name}.1")].into_iter().chain(below).collect()
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(&dir.path().join("man1")).unwrap();
        for name in names(&Cli::command(), "") {
            let page = std::fs::read_to_string(dir.path().join("man1").join(&name)).unwrap_or_default();
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
    }

    #[test]
    fn every_shell_is_told_of_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "baton", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }

    #[test]
    fn bash_reads_its_own() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "baton", &mut script);
        // `serve --` has --config among what may come next.
        let asked = r#"
            COMP_WORDS=(baton serve --) COMP_CWORD=2
            _baton baton -- serve
            printf '%s\n' "${COMPREPLY[@]}"
        "#;
        // It is longer than an argument may be.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("script");
        script.extend_from_slice(asked.as_bytes());
        std::fs::write(&file, script).unwrap();
        let said = Command::new("bash").arg(&file).output().unwrap();
        let offered = String::from_utf8_lossy(&said.stdout);
        assert!(offered.lines().any(|word| word == "--config"), "{said:?}");
    }
}
