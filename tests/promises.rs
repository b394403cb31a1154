//! `docs/promises.md` names tests that exist.

use std::{fs, path::Path};

/// Words in backquotes, in order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn promises_name_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let (mut file, mut source, mut tests) = ("", String::new(), 0);
    for word in quoted(&promises) {
        if word.ends_with(".rs") {
            source = fs::read_to_string(root.join(word)).unwrap_or_else(|error| panic!("{word}: {error}"));
            file = word;
        } else if word.contains('_') && word.chars().all(|char| char.is_ascii_lowercase() || char == '_') {
            assert!(source.contains(&format!("fn {word}(")), "{file} has no test {word}");
            tests += 1;
        }
    }
    assert!(tests >= 15, "only {tests} tests are named");
}
