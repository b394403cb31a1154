//! `docs/promises.md` and `SECURITY.md` name tests that exist.

use std::{fs, path::Path};

/// Words in backquotes, in order.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn promises_name_tests_that_exist() {
    for (page, least) in [("docs/promises.md", 25), ("SECURITY.md", 20)] {
        let tests = named_tests(page);
        assert!(tests >= least, "{page} names only {tests} tests");
    }
}

/// How many tests a page names, each behind its file; all must be there.
fn named_tests(page: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(page)).unwrap();
    let (mut file, mut source, mut tests) = ("", String::new(), 0);
    for word in quoted(&text) {
        if word.ends_with(".rs") {
            source = fs::read_to_string(root.join(word)).unwrap_or_else(|error| panic!("{word}: {error}"));
            file = word;
        } else if word.contains('_') && word.chars().all(|char| char.is_ascii_lowercase() || char == '_') {
            assert!(source.contains(&format!("fn {word}(")), "{page}: {file} has no test {word}");
            tests += 1;
        }
    }
    tests
}
