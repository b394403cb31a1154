//! What a running cluster shows to whoever knocks: which sockets listen, what they answer without a
//! key and without a certificate; and that keys and prompts come out nowhere.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    certs::{baton, init, settings},
    sandbox::{Cluster, Outcome, PATIENCE, Plan, Process, complete},
};

const SETTINGS: &str = r#"
cluster = "exposure"
model = "mock"

[engine]
backend = "mock"
pages = 128

[frontend]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"
"#;

/// The TCP sockets on which a process listens, as the system has them.
fn listeners(process: &Process) -> BTreeSet<SocketAddr> {
    let proc = Path::new("/proc").join(process.id().to_string());
    let held: BTreeSet<String> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(proc.join(table)).unwrap());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        // The state is LISTEN, and the socket's number is one that the process holds.
        (fields[3] == "0A" && held.contains(fields[9])).then(|| address(fields[1]))
    })
    .collect()
}

/// An address as the kernel's tables write it: words of the network's bytes, read as the machine's.
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').unwrap();
    let words: Vec<u32> = (0..ip.len() / 8)
        .map(|at| u32::from_str_radix(&ip[at * 8..][..8], 16).unwrap().swap_bytes())
        .collect();
    let ip: IpAddr = match *words.as_slice() {
        [word] => Ipv4Addr::from(word).into(),
        _ => Ipv6Addr::from(words.iter().fold(0, |ip, word| ip << 32 | u128::from(*word))).into(),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).unwrap())
}

/// What comes back from `addr` for these bytes before it hangs up or says nothing more.
async fn answer(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let mut said = Vec::new();
    if socket.write_all(bytes).await.is_ok() {
        let reading = async {
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = socket.read(&mut part).await {
                said.extend_from_slice(&part[..read]);
            }
        };
        let _ = timeout(Duration::from_millis(500), reading).await;
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()
}

/// Sends a prompt of such a text; it must be answered.
async fn ask(cluster: &Cluster, key: Option<&str>, text: &str) {
    let body = json!({"model": "mock", "prompt": text, "max_tokens": 8, "ignore_eos": true});
    let mut call = cluster.http.post(format!("{}/v1/completions", cluster.url)).json(&body);
    if let Some(key) = key {
        call = call.bearer_auth(key);
    }
    let answer = call.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_socket_that_listens_is_on_loopback_and_said() {
    let cluster = Cluster::start(&Plan { settings: SETTINGS.to_owned(), prefill: 2, decode: 2 }).await;
    let body = json!({"model": "mock", "prompt": vec![40; 100], "max_tokens": 8, "stream": true});
    assert_eq!(complete(&cluster.http, &cluster.url, &body).await.outcome, Outcome::Done);
    for (node, process) in &cluster.nodes {
        let listening = listeners(process);
        // Its gRPC or its API, and its metrics or its admin API.
        assert!(listening.len() >= 2, "{node}: {listening:?}");
        for addr in listening {
            assert!(addr.ip().is_loopback(), "{node} listens on {addr}");
            assert!(
                process.output().contains(&addr.to_string()),
                "{node} does not say that it listens on {addr}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_key_or_certificate_no_socket_tells_more_than_probes_and_metrics() {
    let dir = TempDir::new().unwrap();
    init(dir.path());
    let (users, operators) = (Keys::new(dir.path(), "users"), Keys::new(dir.path(), "operators"));
    let settings = settings(dir.path())
        .replace("[frontend]", &format!("[frontend]\nkeys_file = \"{}\"", users.file))
        + &format!("\n[admin]\nlisten = \"127.0.0.1:0\"\nkeys_file = \"{}\"\n", operators.file);
    let cluster = Cluster::start_certified(&Plan { settings, prefill: 2, decode: 2 }, dir.path()).await;
    ask(&cluster, Some(&users.key), "here").await;
    let mut open = BTreeSet::new();
    for (node, process) in &cluster.nodes {
        for addr in listeners(process) {
            for path in ["/", "/v1/models", "/metrics", "/health", "/ready", "/admin/v1/nodes", "/console/"] {
                let said = answer(addr, &get(path)).await;
                if said.starts_with("HTTP/1.1 200") {
                    open.insert(path);
                } else {
                    let refused =
                        ["HTTP/1.1 401", "HTTP/1.1 404"].iter().any(|refusal| said.starts_with(refusal));
                    assert!(refused || !said.contains("HTTP"), "{node}, {addr}{path}: {said}");
                }
            }
            // HTTP/2 in the open, as gRPC without certificates begins.
            let said = answer(addr, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
            assert!(!said.contains("mock"), "{node}, {addr}: {said}");
        }
    }
    // The console's pages have nothing in them: what they show, they ask for with a key.
    assert_eq!(open, BTreeSet::from(["/console/", "/health", "/metrics", "/ready"]));
}

/// Words that stand for a prompt, an answer's field and a header that nobody but their sender may see again.
const CANARIES: [&str; 3] = ["canary-of-a-prompt", "canary-of-a-field", "canary-of-a-header"];

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_prompts_come_out_in_no_log_metric_or_admin_answer() {
    let dir = TempDir::new().unwrap();
    let (users, operators) = (Keys::new(dir.path(), "users"), Keys::new(dir.path(), "operators"));
    let settings = SETTINGS.replace("[frontend]", &format!("[frontend]\nkeys_file = \"{}\"", users.file))
        + &format!("keys_file = \"{}\"\n", operators.file);
    let cluster = Cluster::start(&Plan { settings, prefill: 1, decode: 1 }).await;
    ask(&cluster, Some(&users.key), CANARIES[0]).await;
    // Calls that fail: for their key, their body, their field, their model; and one that is cut off.
    let wrong = users.key.replace(|digit: char| digit.is_ascii_digit(), "7");
    for (key, body) in [
        (&wrong, json!({"model": "mock", "prompt": CANARIES[0]}).to_string()),
        (&users.key, format!("{{\"model\": \"mock\", \"prompt\": \"{}\"", CANARIES[0])),
        (&users.key, json!({"model": "mock", "prompt": CANARIES[0], "max_tokens": CANARIES[1]}).to_string()),
        (&users.key, json!({"model": CANARIES[1], "prompt": CANARIES[0]}).to_string()),
    ] {
        let call = cluster.http.post(format!("{}/v1/completions", cluster.url)).bearer_auth(key);
        let call = call.header("content-type", "application/json").header("x-made-up", CANARIES[2]);
        assert!(call.body(body).send().await.unwrap().status().is_client_error());
    }
    let cut = json!({"model": "mock", "prompt": CANARIES[0], "max_tokens": 400, "ignore_eos": true, "stream": true});
    let call =
        cluster.http.post(format!("{}/v1/completions", cluster.url)).bearer_auth(&users.key).json(&cut);
    let mut stream = call.send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    let mut said: Vec<(String, String)> = Vec::new();
    let admin = cluster.nodes["coordinator"].wait_for("admin at ", PATIENCE);
    let admin = admin.split("admin at ").nth(1).unwrap().trim().to_owned();
    for path in ["cluster", "nodes", "requests", "queue", "limits", "prefix-index", "incidents", "audit"] {
        let call = cluster.http.get(format!("{admin}/admin/v1/{path}")).bearer_auth(&operators.key);
        let answer = call.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        said.push((path.to_owned(), answer.text().await.unwrap()));
    }
    drop(stream);
    for (node, process) in &cluster.nodes {
        let metrics = process.metrics_url().unwrap_or_else(|| format!("{}/metrics", cluster.url));
        said.push((metrics.clone(), cluster.http.get(metrics).send().await.unwrap().text().await.unwrap()));
        said.push((node.clone(), process.output()));
    }
    let secrets = [&*users.key, &*operators.key, &*wrong].into_iter().chain(CANARIES);
    for (secret, (place, text)) in secrets.flat_map(|secret| said.iter().map(move |said| (secret, said))) {
        assert!(!text.contains(secret), "{secret} is in {place}: {text}");
    }
}

/// A file with one key.
struct Keys {
    file: String,
    key: String,
}

// === impl Keys ===

impl Keys {
    fn new(dir: &Path, tenant: &str) -> Self {
        let file = dir.join(tenant).with_extension("toml").display().to_string();
        let made = baton(&["key", "new", "--tenant", tenant, "--file", &file]);
        assert!(made.status.success(), "{made:?}");
        Self { file, key: String::from_utf8(made.stdout).unwrap().trim().to_owned() }
    }
}
