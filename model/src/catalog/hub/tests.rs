mod server;

use std::{fs, path::Path, time::Duration};

use proptest::prelude::*;
use serde_json::json;
use server::{COMMIT, Server, sha256};
use ureq::tls::RootCerts;

use super::*;
use crate::{
    catalog::{listing::list_in, resolve_in},
    error::ModelError,
    fixture::Gguf,
};

const REPOSITORY: &str = "org/tiny";
const WEIGHTS: &str = "model.safetensors";

/// A cache on this machine, and what the environment may say.
struct Place {
    directory: tempfile::TempDir,
    token: Option<&'static str>,
    offline: bool,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), token: None, offline: false }
    }

    fn hub(&self, server: &Server) -> Hub {
        let cache = self.directory.path().join("hub");
        let (token, offline) = (self.token.map(str::to_owned), self.offline);
        let first_wait = Duration::from_millis(1);
        let roots = RootCerts::WebPki;
        Hub { settings: Settings { endpoint: server.endpoint(), token, cache, offline, roots, first_wait } }
    }

    fn pull(&self, server: &Server, name: &str) -> Result<PathBuf, HubError> {
        self.hub(server).pull(&Reference::parse(name).unwrap(), &mut |_| {})
    }

    fn find(&self, server: &Server, name: &str) -> Result<PathBuf, HubError> {
        self.hub(server).find(&Reference::parse(name).unwrap())
    }

    fn repository(&self) -> PathBuf {
        self.directory.path().join("hub/models--org--tiny")
    }

    /// Names of the blobs that are there, whole or not.
    fn blobs(&self) -> Vec<String> {
        names_in(&self.repository().join("blobs")).into_iter().collect()
    }
}

/// A tiny checkpoint of this project's own.
fn checkpoint() -> Vec<(&'static str, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/families/llama2");
    let read = |name| (name, fs::read(directory.join(name)).unwrap());
    ["config.json", "tokenizer.json", WEIGHTS].map(read).to_vec()
}

fn server() -> Server {
    let files = checkpoint();
    let server = files.iter().fold(Server::new(REPOSITORY), |server, (name, bytes)| server.with(name, bytes));
    server.with("README.md", b"# tiny").with("pytorch_model.bin", b"pickle").with("modeling.py", b"code")
}

fn weights() -> Vec<u8> {
    checkpoint().pop().unwrap().1
}

/// Where requests for bytes of large files began.
fn starts(server: &Server) -> Vec<u64> {
    let log = server.log().into_iter().filter(|request| request.host == "cdn");
    log.map(|request| request.start.unwrap_or(0)).collect()
}

#[test]
fn a_pulled_checkpoint_loads_and_only_its_files_were_fetched() {
    let (place, server) = (Place::new(), server());
    let path = place.pull(&server, REPOSITORY).unwrap();
    assert_eq!(path, place.repository().join("snapshots").join(COMMIT));
    let model = crate::load(&path).unwrap();
    assert_eq!(model.name, REPOSITORY);
    let fetched: Vec<_> = names_in(&path).into_iter().collect();
    assert_eq!(fetched, ["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(fs::read_to_string(place.repository().join("refs/main")).unwrap(), COMMIT);
    let target = fs::read_link(path.join(WEIGHTS)).unwrap();
    assert_eq!(target, Path::new("../../blobs").join(sha256(&weights())));
    server.log();
    // A second pull asks, and fetches nothing.
    assert_eq!(place.pull(&server, REPOSITORY).unwrap(), path);
    assert!(server.log().iter().all(|it| it.method == "HEAD" || it.path.starts_with("/api/")));
    assert_eq!(place.find(&server, REPOSITORY).unwrap(), path);
    assert!(server.log().is_empty());
}

#[test]
fn shards_are_those_of_the_index() {
    let mut files = checkpoint();
    let whole = files.pop().unwrap().1;
    let server = files.iter().fold(Server::new(REPOSITORY), |server, (name, bytes)| server.with(name, bytes));
    let index = json!({ "weight_map": { "a": "model-1.safetensors", "b": "model-2.safetensors" } });
    let server = server
        .with("model.safetensors.index.json", index.to_string().as_bytes())
        .with("model-1.safetensors", &whole)
        .with("consolidated.safetensors", b"the same again");
    let place = Place::new();
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Lacks { ref file, .. } if file == "model-2.safetensors"), "{error}");
    assert!(matches!(place.find(&server, REPOSITORY), Err(HubError::NotHere { .. })));
    let server = server.with("model-2.safetensors", b"more");
    let path = place.pull(&server, REPOSITORY).unwrap();
    assert!(path.join("model-2.safetensors").is_file() && !path.join("consolidated.safetensors").exists());
    // Python leaves such a snapshot when it is interrupted.
    fs::remove_file(path.join("model-1.safetensors")).unwrap();
    let error = place.find(&server, REPOSITORY).unwrap_err();
    assert!(error.to_string().contains("model-1.safetensors"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn cut_connections_are_continued(cuts in prop::collection::vec(1usize..40_000, 0..6)) {
        let (place, server) = (Place::new(), server());
        server.state().cuts = cuts.iter().copied().collect();
        let path = place.pull(&server, REPOSITORY).unwrap();
        prop_assert_eq!(fs::read(path.join(WEIGHTS)).unwrap(), weights());
        let mut expected = vec![0];
        for cut in cuts {
            let next = expected.last().unwrap() + cut as u64;
            if next >= weights().len() as u64 {
                break;
            }
            expected.push(next);
        }
        prop_assert_eq!(starts(&server), expected);
    }
}

#[test]
fn a_pull_that_was_cut_for_good_is_continued_by_the_next() {
    let (place, server) = (Place::new(), server());
    server.state().cuts = [700].into();
    server.state().always_cut = Some(0);
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Cut { at: 700, .. }), "{error}");
    // It tried again, but not for ever.
    assert_eq!(starts(&server), [0, 700, 700, 700, 700, 700]);
    assert!(place.blobs().contains(&format!("{}.incomplete", sha256(&weights()))));
    assert!(matches!(place.find(&server, REPOSITORY), Err(HubError::NotHere { .. })));
    server.state().always_cut = None;
    let mut first = None;
    let reference = Reference::parse(REPOSITORY).unwrap();
    let path = place.hub(&server).pull(&reference, &mut |progress| {
        if let Progress::File { name: WEIGHTS, done, .. } = progress {
            first.get_or_insert(done);
        }
    });
    assert_eq!(fs::read(path.unwrap().join(WEIGHTS)).unwrap(), weights());
    assert_eq!(starts(&server), [700]);
    assert_eq!(first, Some(700));
    assert!(place.blobs().iter().all(|blob| !blob.ends_with("incomplete")));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (place, server) = (Place::new(), server());
    server.state().cuts = [900].into();
    server.state().ignores_ranges = true;
    let path = place.pull(&server, REPOSITORY).unwrap();
    assert_eq!(fs::read(path.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let (place, server) = (Place::new(), server());
    server.state().damaged = true;
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Digest { .. }), "{error}");
    assert!(place.blobs().iter().all(|blob| !blob.contains(&sha256(&weights()))));
    assert!(place.find(&server, REPOSITORY).is_err());
    server.state().damaged = false;
    let path = place.pull(&server, REPOSITORY).unwrap();
    // Damage of later is found too.
    fs::write(path.join(WEIGHTS), "damaged").unwrap();
    fs::write(path.join("config.json"), "damaged").unwrap();
    place.pull(&server, REPOSITORY).unwrap();
    crate::load(&path).unwrap();
}

#[test]
fn no_more_is_written_than_was_announced() {
    let (place, server) = (Place::new(), server());
    server.state().excess = 5;
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Length { .. }), "{error}");
    assert!(place.blobs().iter().all(|blob| !blob.contains(&sha256(&weights()))));
    // An unfinished file that is longer than the file begins anew.
    server.state().excess = 0;
    let unfinished = place.repository().join("blobs").join(format!("{}.incomplete", sha256(&weights())));
    fs::write(unfinished, vec![0; weights().len() + 1]).unwrap();
    let path = place.pull(&server, REPOSITORY).unwrap();
    assert_eq!(fs::read(path.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn only_the_hub_sees_the_token() {
    let mut place = Place::new();
    let server = server();
    server.state().token = Some("secret".to_owned());
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }) && error.to_string().contains("HF_TOKEN"), "{error}");
    place.token = Some("wrong");
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Refused { .. }) && error.to_string().contains("licence"), "{error}");
    server.log();
    place.token = Some("secret");
    place.pull(&server, REPOSITORY).unwrap();
    let log = server.log();
    assert!(log.iter().any(|request| request.host == "cdn"));
    for request in log {
        let seen = (request.host == "hub").then(|| "secret".to_owned());
        assert_eq!(request.token, seen, "{request:?}");
    }
}

#[test]
fn offline_only_the_cache_is_used() {
    let mut place = Place::new();
    let server = server();
    place.offline = true;
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Offline { .. }) && text.contains("org/tiny@main"), "{text}");
    assert!(text.contains("HF_HUB_OFFLINE") && server.log().is_empty(), "{text}");
    place.offline = false;
    let path = place.pull(&server, REPOSITORY).unwrap();
    server.log();
    place.offline = true;
    assert_eq!(place.pull(&server, REPOSITORY).unwrap(), path);
    assert!(server.log().is_empty());
}

#[test]
fn revisions_are_kept_apart() {
    let (place, server) = (Place::new(), server());
    server.state().revisions = vec!["v1".to_owned(), "refs%2Fpr%2F1".to_owned()];
    let path = place.pull(&server, "org/tiny@v1").unwrap();
    assert_eq!(place.find(&server, "org/tiny@v1").unwrap(), path);
    assert!(matches!(place.find(&server, REPOSITORY), Err(HubError::NotHere { .. })));
    assert_eq!(place.pull(&server, "org/tiny@refs/pr/1").unwrap(), path);
    assert_eq!(fs::read_to_string(place.repository().join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert_eq!(place.find(&server, &format!("org/tiny@{COMMIT}")).unwrap(), path);
    let error = place.pull(&server, "org/tiny@v9").unwrap_err();
    assert!(matches!(error, HubError::NoRevision { .. }) && error.to_string().contains("v9"), "{error}");
    let error = place.pull(&server, "org/other").unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }) && error.to_string().contains("org/other"), "{error}");
}

#[test]
fn a_quantisation_is_pulled_alone() {
    let place = Place::new();
    let content = Gguf::tiny().bytes();
    let server = Server::new(REPOSITORY)
        .with("tiny-Q4_K_M.gguf", &content)
        .with("tiny-Q8_0.gguf", b"other")
        .with("mmproj-Q8_0.gguf", b"images");
    let path = place.pull(&server, "org/tiny:q4_k_m").unwrap();
    let model = crate::load(&path).unwrap();
    assert_eq!(model.name, "tiny-Q4_K_M");
    assert_eq!(place.blobs(), [sha256(&content)]);
    assert_eq!(place.find(&server, "org/tiny:Q4_K_M").unwrap(), path);
    assert_eq!(place.find(&server, "org/tiny").unwrap(), path);
    assert!(matches!(place.find(&server, "org/tiny:Q8_0"), Err(HubError::NotHere { .. })));
    let error = place.pull(&server, "org/tiny:Q2_K").unwrap_err().to_string();
    assert!(error.contains("tiny-Q4_K_M.gguf, tiny-Q8_0.gguf") && !error.contains("mmproj"), "{error}");
    let error = place.pull(&server, "org/tiny").unwrap_err();
    assert!(matches!(error, HubError::Ambiguous { .. }), "{error}");
    let path = place.pull(&server, "org/tiny/tiny-Q8_0.gguf").unwrap();
    assert_eq!(fs::read(path).unwrap(), b"other");
    // Two are here now.
    assert!(matches!(place.find(&server, "org/tiny"), Err(HubError::Ambiguous { .. })));
}

#[test]
fn hostile_answers_are_refused() {
    for hostile in ["../../x", "/etc/passwd", "a/../../x.gguf", "..\\x", ""] {
        let (place, server) = (Place::new(), server());
        server.state().listed = vec![hostile.to_owned()];
        let error = place.pull(&server, REPOSITORY).unwrap_err();
        assert!(matches!(error, HubError::Hostile { .. }), "{hostile}: {error}");
        assert!(!place.repository().exists());
    }
    let (place, server) = (Place::new(), server());
    let index = json!({ "weight_map": { "a": "../../../x.safetensors" } }).to_string();
    let server = server.with("model.safetensors.index.json", index.as_bytes());
    assert!(matches!(place.pull(&server, REPOSITORY), Err(HubError::Index { .. })));
}

#[test]
fn pickles_are_refused_by_name() {
    let server = Server::new(REPOSITORY)
        .with("config.json", b"{}")
        .with("tokenizer.json", b"{}")
        .with("pytorch_model.bin", b"pickle");
    let error = Place::new().pull(&server, REPOSITORY).unwrap_err();
    assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
}

#[test]
fn a_busy_hub_is_asked_again_and_a_broken_one_not_for_ever() {
    let (place, server) = (Place::new(), server());
    server.state().failures = [503, 429, 500].into();
    place.pull(&server, REPOSITORY).unwrap();
    server.log();
    server.state().failures = vec![502; 20].into();
    let error = place.pull(&server, REPOSITORY).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 502, .. }), "{error}");
    assert_eq!(server.log().len(), 6);
    let hub = place.hub(&server);
    drop(server);
    let error = hub.pull(&Reference::parse(REPOSITORY).unwrap(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
}

#[test]
fn concurrent_pulls_fetch_once() {
    let (place, server) = (Place::new(), server());
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| place.pull(&server, REPOSITORY))).collect();
        for pull in pulls {
            assert!(pull.join().unwrap().is_ok());
        }
    });
    assert_eq!(starts(&server), [0]);
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let (place, server) = (Place::new(), server());
    let reference = Reference::parse(REPOSITORY).unwrap();
    let hub = place.hub(&server);
    let session = Session::new(&hub.settings, &reference).unwrap();
    let mut remote = session.remote(COMMIT, WEIGHTS).unwrap();
    let snapshot = Snapshot::new(hub.held(&reference), COMMIT.to_owned());
    snapshot.check_space(std::slice::from_ref(&remote)).unwrap();
    remote.bytes = 1 << 60;
    let error = snapshot.check_space(&[remote]).unwrap_err();
    assert!(matches!(error, HubError::Space { needed, .. } if needed == 1 << 60), "{error}");
}

#[test]
fn what_python_pulled_is_found() {
    // As huggingface_hub lays it out, with a file that it copied in place of a link.
    let (place, server) = (Place::new(), server());
    let snapshot = place.repository().join("snapshots").join(COMMIT);
    for directory in [&snapshot, &place.repository().join("blobs"), &place.repository().join("refs")] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(place.repository().join("refs/main"), COMMIT).unwrap();
    assert!(matches!(place.find(&server, REPOSITORY), Err(HubError::NotHere { .. })));
    for (name, content) in checkpoint() {
        let blob = place.repository().join("blobs").join(sha256(&content));
        fs::write(&blob, &content).unwrap();
        if name == "config.json" {
            fs::write(snapshot.join(name), &content).unwrap();
        } else {
            std::os::unix::fs::symlink(format!("../../blobs/{}", sha256(&content)), snapshot.join(name))
                .unwrap();
        }
    }
    let path = place.find(&server, REPOSITORY).unwrap();
    assert_eq!(crate::load(&path).unwrap().name, REPOSITORY);
    assert!(server.log().is_empty());
    // A pull fetches what is not among the blobs, and not the weights.
    place.pull(&server, REPOSITORY).unwrap();
    assert_eq!(starts(&server), [] as [u64; 0]);
}

#[test]
fn a_path_comes_before_a_name_and_a_name_is_looked_up() {
    let (place, server) = (Place::new(), server());
    let resolve = |name: &str| resolve_in(name, place.directory.path(), &|| Ok(place.hub(&server)));
    let error = resolve(REPOSITORY).unwrap_err();
    assert!(matches!(error, ModelError::NotPulled { .. }), "{error}");
    assert!(matches!(resolve("no/such/model"), Err(ModelError::Unknown { .. })));
    let path = place.pull(&server, REPOSITORY).unwrap();
    assert_eq!(resolve(REPOSITORY).unwrap(), path);
    let here = place.directory.path().to_str().unwrap();
    assert_eq!(resolve(here).unwrap(), place.directory.path());
    assert!(server.log().iter().all(|request| !request.path.contains("such")));
}

#[test]
fn models_here_are_listed() {
    let (place, server) = (Place::new(), server());
    assert_eq!(list_in(place.directory.path(), &place.hub(&server)), []);
    let path = place.pull(&server, REPOSITORY).unwrap();
    server.state().revisions = vec!["v1".to_owned()];
    server.state().files.insert("tiny-Q4_0.gguf".to_owned(), b"gguf".to_vec());
    let file = place.pull(&server, "org/tiny/tiny-Q4_0.gguf@v1").unwrap();
    let held = list_in(place.directory.path(), &place.hub(&server));
    let names: Vec<_> = held.iter().map(|held| (held.name.as_str(), held.path.as_path())).collect();
    // Both revisions are of one commit here.
    assert!(names.contains(&(REPOSITORY, path.as_path())), "{names:?}");
    assert!(names.contains(&("org/tiny/tiny-Q4_0.gguf@v1", file.as_path())), "{names:?}");
    for held in held {
        assert!(held.bytes >= 4 && Reference::parse(&held.name).is_some(), "{held:?}");
    }
}
