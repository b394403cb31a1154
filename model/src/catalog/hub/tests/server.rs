//! A server on loopback that behaves like the Hub, and fails when told to.
//!
//! Large files (`*.safetensors`, `*.gguf`) are redirected to another host of its own, with their
//! sha256 as the linked entity tag; small ones are sent at once, tagged with their git hash.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The commit of every revision that exists.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What one request said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `hub` or `cdn`.
    pub host: &'static str,
    pub method: String,
    pub path: String,
    /// First byte of the range that was asked for.
    pub start: Option<u64>,
    pub token: Option<String>,
}

/// The repository, and what goes wrong.
#[derive(Default)]
pub struct State {
    pub repository: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Further revisions than `main`.
    pub revisions: Vec<String>,
    /// In the listing without being files.
    pub listed: Vec<String>,
    /// Bytes after which the next answers of large files are cut; each is used once.
    pub cuts: VecDeque<usize>,
    /// Every answer of a large file is cut after so many bytes.
    pub always_cut: Option<usize>,
    /// Answers to the next requests to the Hub.
    pub failures: VecDeque<u16>,
    /// Large files come with a byte changed.
    pub damaged: bool,
    /// Large files come with so many bytes too many, in no announced length.
    pub excess: usize,
    pub ignores_ranges: bool,
    /// The repository is gated, and this opens it.
    pub token: Option<String>,
    pub log: Vec<Request>,
}

/// Listening on two addresses until dropped.
pub struct Server {
    state: Arc<Mutex<State>>,
    hub: SocketAddr,
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The name of a large file in the cache.
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn git(content: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hasher.update(content);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf")
}

// === impl Server ===

impl Server {
    pub fn new(repository: &str) -> Self {
        let state = State { repository: repository.to_owned(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let stop = Arc::new(AtomicBool::new(false));
        // Another host than the Hub, as far as any client can tell.
        let (hub, cdn) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.2:0").unwrap());
        let addresses = vec![hub.local_addr().unwrap(), cdn.local_addr().unwrap()];
        let serve = |listener: TcpListener, host: &'static str| {
            let (state, stop, cdn) = (Arc::clone(&state), Arc::clone(&stop), addresses[1]);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    // A client may go away at any time.
                    let _ = answer(&stream.unwrap(), host, cdn, &state);
                }
            })
        };
        let threads = vec![serve(hub, "hub"), serve(cdn, "cdn")];
        Self { state, hub: addresses[0], addresses, stop, threads }
    }

    pub fn with(self, file: &str, content: &[u8]) -> Self {
        self.state().files.insert(file.to_owned(), content.to_vec());
        self
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The requests since the last call.
    pub fn log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for address in &self.addresses {
            // Wakes the accept loop; if it is gone already, so be it.
            let _ = TcpStream::connect(address);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// An answer without its body.
struct Head {
    status: u16,
    headers: Vec<(&'static str, String)>,
}

fn answer(
    stream: &TcpStream,
    host: &'static str,
    cdn: SocketAddr,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let request = read(stream, host)?;
    let mut state = state.lock().unwrap();
    state.log.push(request.clone());
    let (head, body) = if host == "cdn" { state.large(&request) } else { state.hub(&request, cdn) };
    let mut text = format!("HTTP/1.1 {} -\r\nconnection: close\r\n", head.status);
    let announces = head.headers.iter().any(|(name, _)| *name == "content-length");
    let chunked = host == "cdn" && state.excess > 0;
    if !announces && !chunked {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    if chunked {
        text.push_str("transfer-encoding: chunked\r\n");
    }
    for (name, value) in head.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut stream = stream;
    stream.write_all(text.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    if chunked {
        stream.write_all(format!("{:x}\r\n", body.len()).as_bytes())?;
        stream.write_all(&body)?;
        return stream.write_all(b"\r\n0\r\n\r\n");
    }
    let cut =
        if host == "cdn" && head.status < 300 { state.cuts.pop_front().or(state.always_cut) } else { None };
    stream.write_all(&body[..cut.unwrap_or(usize::MAX).min(body.len())])
}

fn read(stream: &TcpStream, host: &'static str) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { host, method, path, start: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                request.start = value.trim_start_matches("bytes=").split('-').next().unwrap().parse().ok();
            }
            "authorization" => request.token = Some(value.trim_start_matches("Bearer ").to_owned()),
            _ => {}
        }
    }
    Ok(request)
}

// === impl State ===

impl State {
    /// The API and `resolve`.
    fn hub(&mut self, request: &Request, cdn: SocketAddr) -> (Head, Vec<u8>) {
        let refused = |status, code: &str| {
            (Head { status, headers: vec![("x-error-code", code.to_owned())] }, Vec::new())
        };
        if let Some(status) = self.failures.pop_front() {
            return refused(status, "");
        }
        let path = request.path.split('?').next().unwrap();
        let listing = format!("/api/models/{}/revision/", self.repository);
        let resolve = format!("/{}/resolve/", self.repository);
        if !path.starts_with(&listing) && !path.starts_with(&resolve) {
            return refused(401, "RepoNotFound");
        }
        if self.token.is_some() && self.token != request.token {
            return refused(if request.token.is_some() { 403 } else { 401 }, "GatedRepo");
        }
        let known = |revision: &str| {
            revision == "main" || revision == COMMIT || self.revisions.iter().any(|known| known == revision)
        };
        if let Some(revision) = path.strip_prefix(&listing) {
            return if known(revision) { self.listing() } else { refused(404, "RevisionNotFound") };
        }
        let rest = path.strip_prefix(&resolve).unwrap();
        let (revision, file) = rest.split_once('/').unwrap();
        let Some(content) = self.files.get(file).filter(|_| known(revision)) else {
            return refused(404, "EntryNotFound");
        };
        let mut headers = vec![("x-repo-commit", COMMIT.to_owned())];
        if !is_large(file) {
            headers.push(("etag", format!("\"{}\"", git(content))));
            return (Head { status: 200, headers }, content.clone());
        }
        headers.push(("x-linked-etag", format!("\"{}\"", sha256(content))));
        headers.push(("x-linked-size", content.len().to_string()));
        headers.push(("etag", "\"of-the-pointer\"".to_owned()));
        headers.push(("location", format!("http://{cdn}/{file}?signed")));
        (Head { status: 302, headers }, Vec::new())
    }

    fn listing(&self) -> (Head, Vec<u8>) {
        let names = self.files.keys().chain(&self.listed);
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        let repository = &self.repository;
        let info = json!({ "id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings,
            "private": false, "downloads": 1, "likes": 1, "tags": [] });
        let headers = vec![("content-type", "application/json".to_owned())];
        (Head { status: 200, headers }, info.to_string().into_bytes())
    }

    /// A large file, or the rest of it.
    fn large(&self, request: &Request) -> (Head, Vec<u8>) {
        let file = request.path.trim_start_matches('/').split('?').next().unwrap();
        let Some(content) = self.files.get(file) else {
            return (Head { status: 404, headers: Vec::new() }, Vec::new());
        };
        let mut content = content.clone();
        if self.damaged {
            *content.last_mut().unwrap() ^= 1;
        }
        let total = content.len();
        content.resize(total + self.excess, 0);
        match request.start.filter(|_| !self.ignores_ranges) {
            Some(start) if start as usize >= total => (Head { status: 416, headers: Vec::new() }, Vec::new()),
            Some(start) => {
                let range = format!("bytes {start}-{}/{total}", total - 1);
                let headers = vec![("content-range", range)];
                (Head { status: 206, headers }, content.split_off(start as usize))
            }
            None => (Head { status: 200, headers: Vec::new() }, content),
        }
    }
}
