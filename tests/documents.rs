//! The program's commands and settings, as documents have them, are commands and settings, and
//! what they point to is there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use baton::{
    args::{Cli, Settings},
    config::ClusterConfig,
};
use clap::{Parser, error::ErrorKind};

/// Tells of the past, when commands were others.
const HISTORY: &str = "CHANGELOG.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document but the list of them, by its path from the root.
fn documents() -> BTreeSet<String> {
    let folder = |folder: &str| fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = folder("").chain(folder("docs")).map(|path| path.strip_prefix(root()).unwrap().to_owned());
    let names = files.filter_map(|path| path.to_str().map(str::to_owned));
    names.filter(|name| name.ends_with(".md") && name != "docs/SUMMARY.md").collect()
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

/// Targets of links, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    let prose = lines.flat_map(|line| line.split('`').step_by(2));
    prose.flat_map(|part| part.split("](").skip(1).filter_map(|rest| rest.split(')').next())).collect()
}

/// What GitHub and mdBook name a heading by.
fn anchor(heading: &str) -> String {
    let letters = heading.trim().to_lowercase();
    let kept = letters.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    headings.map(anchor).collect()
}

/// The file that a link in a document points to, from the root.
fn target(document: &str, link: &str) -> String {
    let beside = Path::new(document).parent().unwrap().join(link);
    let mut path = PathBuf::new();
    for part in beside.components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{document}: {link} leaves the checkout"),
            part => path.push(part),
        }
    }
    path.to_str().unwrap().to_owned()
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut followed = 0;
    for document in documents() {
        let text = read(&document);
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { document.clone() } else { target(&document, file) };
            assert!(root().join(&file).exists(), "{document} points to {link}, which is not there");
            let is_found = anchor.is_empty() || anchors(&read(&file)).contains(anchor);
            assert!(is_found, "{document} points to {link}, and {file} has no such heading");
            followed += 1;
        }
    }
    assert!(followed >= 15, "only {followed} links are found");
}

#[test]
fn the_site_has_every_document() {
    let listed = links(&read("docs/SUMMARY.md")).iter().map(|link| target("docs/SUMMARY.md", link)).collect();
    assert_eq!(documents(), listed, "docs/SUMMARY.md lists what scripts/site makes pages of");
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
    for document in documents().into_iter().filter(|document| document != HISTORY) {
        let text = read(&document);
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
    for document in documents().into_iter().filter(|document| document != HISTORY) {
        // The file of keys is another one.
        let text = read(&document);
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
