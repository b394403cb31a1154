//! The program's commands and settings, as documents have them, are commands and settings.

use std::{fs, path::Path, process::Command};

use baton::{
    args::{Cli, Settings},
    config::ClusterConfig,
};
use clap::{Parser, error::ErrorKind};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/install.md",
    "docs/metrics.md",
    "docs/migrating.md",
    "docs/operating.md",
    "docs/promises.md",
    "docs/troubleshooting.md",
];

fn read(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// Blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// The program's words of a line in a shell; none if it is about something else.
fn words(line: &str) -> Option<Vec<String>> {
    let line = line.split(" # ").next()?.split(" | ").next()?.trim();
    let rest = ["baton ", "target/release/baton "].iter().find_map(|program| line.strip_prefix(program))?;
    if rest.contains("$(") || rest.contains('…') {
        return None;
    }
    // The shell's own idea of words.
    let split = Command::new("bash").args(["-c", &format!("set -f; printf '%s\\n' baton {rest}")]).output();
    Some(String::from_utf8(split.unwrap().stdout).unwrap().lines().map(str::to_owned).collect())
}

/// Whether an error is of what stands in for a value, or was left out.
fn is_borne(kind: ErrorKind, words: &[String], is_whole: bool) -> bool {
    let stands_in =
        |word: &String| word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    match kind {
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => words.iter().any(stands_in),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => !is_whole,
        _ => false,
    }
}

#[test]
fn commands_of_documents_are_commands() {
    let mut commands = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let blocks = blocks(&text, "sh").join("\n").replace("\\\n", " ");
        let whole = blocks.lines().map(|line| (line, true));
        let named =
            text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(|word| (word, false));
        for (line, is_whole) in whole.chain(named) {
            let Some(words) = words(line) else { continue };
            commands += 1;
            if let Err(error) = Cli::try_parse_from(&words) {
                assert!(is_borne(error.kind(), &words, is_whole), "{document}: {line}\n{error}");
            }
        }
    }
    assert!(commands >= 40, "only {commands} commands are named");
}

#[test]
fn settings_of_documents_are_settings() {
    let mut settings = 0;
    for document in DOCUMENTS {
        // The file of keys is another one.
        let text = read(document);
        for block in blocks(&text, "toml").into_iter().filter(|block| !block.starts_with("[tenants")) {
            let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
            fs::write(file.path(), block).unwrap();
            let asked = Settings { config: Some(file.path().to_owned()), model: None, set: Vec::new() };
            if let Err(error) = ClusterConfig::load(&asked) {
                panic!("{document}: {error:#}\n{block}");
            }
            settings += 1;
        }
    }
    assert!(settings >= 1, "no settings are named");
}
