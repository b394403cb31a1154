use std::{
    fs,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;

/// A tiny checkpoint of every family.
fn checkpoints() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.join("config.json").is_file()).collect()
}

#[test]
fn progress_ends_at_its_total() {
    let paths = checkpoints();
    assert_eq!(paths.len(), 14);
    for path in paths {
        let heard = Mutex::new(Vec::new());
        let progress = |done, total| heard.lock().unwrap().push((done, total));
        check_and_pack(&path, Loading { progress: Some(&progress), ..Loading::default() }).unwrap();
        let (done, totals): (Vec<u64>, Vec<u64>) = heard.into_inner().unwrap().into_iter().unzip();
        let total = totals[0];
        assert!(totals.iter().all(|other| *other == total), "{}", path.display());
        assert_eq!(done.into_iter().max(), Some(total), "{}", path.display());
    }
}

#[test]
fn a_model_is_loaded_by_the_threads_that_compute_with_it() {
    let pool = ComputePool::new(2).unwrap();
    let heard = AtomicUsize::new(0);
    let progress = |_, _| {
        heard.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        assert!(thread.name().is_some_and(|name| name.starts_with("compute-")), "{thread:?}");
    };
    let how = Loading { progress: Some(&progress), ..Loading::default() };
    pool.run(|| check_and_pack(&checkpoints()[0], how)).unwrap();
    assert!(heard.into_inner() > 0);
}

#[test]
fn a_path_is_served_under_the_models_name() {
    let place = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = format!("models--org--tiny/snapshots/{commit}");
    for (path, name) in [
        (make(&format!("{snapshot}/config.json")).parent().unwrap().to_owned(), "org/tiny"),
        (make(&format!("{snapshot}/tiny-q4_0.gguf")), "tiny-q4_0"),
        (make("smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"), "smollm2-135m"),
        (make("llama/config.json").parent().unwrap().to_owned(), "llama"),
        (place.path().join("llama/../llama"), "llama"),
    ] {
        assert_eq!(served_name(path.to_str().unwrap()), name);
    }
    for typed in ["smollm2-135m", "org/tiny:Q4_K_M", "mock"] {
        assert_eq!(served_name(typed), typed);
    }
}
