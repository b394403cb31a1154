//! The API over HTTPS, while its certificate is renewed; and a process that is
//! asked to read files that it does not have.

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version::TLS13,
    },
};

use crate::{
    certs::{baton, init, settings},
    sandbox::{Cluster, PATIENCE, eventually},
};

/// A client's connection that lasts.
struct Line(BufReader<TlsStream<TcpStream>>);

// === impl Line ===

impl Line {
    /// Takes the authority of `certs` alone.
    async fn open(addr: SocketAddr, certs: &Path) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certs.join("ca.crt")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = TcpStream::connect(addr).await?;
        let name = ServerName::IpAddress(addr.ip().into());
        Ok(Self(BufReader::new(TlsConnector::from(Arc::new(config)).connect(name, socket).await?)))
    }

    /// What the server has shown.
    fn shown(&self) -> Vec<u8> {
        self.0.get_ref().get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// Asks for `path`: the answer's first line.
    async fn get(&mut self, path: &str) -> std::io::Result<String> {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: here\r\n\r\n").as_bytes()).await?;
        let (mut first, mut bytes) = (String::new(), 0);
        self.0.read_line(&mut first).await?;
        loop {
            let mut header = String::new();
            self.0.read_line(&mut header).await?;
            let header = header.trim().to_ascii_lowercase();
            if let Some(length) = header.strip_prefix("content-length:") {
                bytes = length.trim().parse().unwrap();
            }
            if header.is_empty() {
                break;
            }
        }
        self.0.read_exact(&mut vec![0; bytes]).await?;
        Ok(first)
    }
}

fn served_over_https(certs: &Path) -> String {
    let (own, dir) = (settings(certs), certs.display());
    let tls =
        format!("[frontend]\ntls = {{ cert = \"{dir}/coordinator.crt\", key = \"{dir}/coordinator.key\" }}");
    let node = "nodes = [{ id = \"all\", roles = [\"coordinator\", \"prefill\", \"decode\"] }]\n";
    // All roles in one process want a certificate of all; this one speaks to itself alone.
    let own = own.replace("tls = true", "tls = false").replace("[frontend]", &tls);
    let (before, rest) = own.split_once("[tls]").unwrap();
    format!("{before}{node}[engine]{}", rest.split_once("[engine]").unwrap().1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_over_https_shows_renewed_certificates() {
    let [certs, others] = [(); 2].map(|()| TempDir::new().unwrap());
    init(certs.path());
    init(others.path());
    let cluster = Cluster::start_embedded(&served_over_https(certs.path())).await;
    let addr: SocketAddr = cluster.url.strip_prefix("https://").unwrap().parse().unwrap();
    let open = || Line::open(addr, certs.path());
    let mut first = open().await.unwrap();
    assert!(first.get("/ready").await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(first.get("/v1/models").await.unwrap().starts_with("HTTP/1.1 200"));
    // Who knows another authority goes by himself, and who speaks no TLS is told nothing.
    assert!(Line::open(addr, others.path()).await.is_err());
    assert!(cluster.http.get(format!("http://{addr}/ready")).send().await.is_err());

    let dir = certs.path().to_str().unwrap();
    let renewed = baton(&["certs", "renew", "--dir", dir, "--name", "10.0.0.9"]);
    assert!(renewed.status.success(), "{renewed:?}");
    eventually("the new certificate is shown", || async {
        (open().await.unwrap().shown() != first.shown()).then_some(())
    })
    .await;
    assert!(first.get("/ready").await.unwrap().starts_with("HTTP/1.1 200"), "what stands goes on");
    // A key of another certificate has no effect.
    let before = open().await.unwrap().shown();
    std::fs::copy(certs.path().join("decode.key"), certs.path().join("coordinator.key")).unwrap();
    cluster.nodes["local"].wait_for("kept the certificates as they were", PATIENCE);
    assert_eq!(open().await.unwrap().shown(), before);
}

/// A command of ours, with a line to read.
fn told(line: &'static str, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    let command = command.args(args.split_whitespace()).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who refuses before it reads has hung up.
    drop(child.stdin.take().unwrap().write_all(line.as_bytes()));
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_call_the_api_over_https_of_the_authority_that_they_are_told() {
    let [certs, others] = [(); 2].map(|()| TempDir::new().unwrap());
    init(certs.path());
    init(others.path());
    let cluster = Cluster::start_embedded(&served_over_https(certs.path())).await;
    let (url, dir) = (cluster.url.clone(), others.path().display());
    let batch = format!("{dir}/calls.jsonl");
    let call = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "mock", "prompt": "a", "max_tokens": 2}}"#;
    std::fs::write(&batch, call).unwrap();
    let commands = [
        format!("chat --url {url}"),
        format!("probe {url}/ready"),
        format!("doctor --url {url}"),
        format!("batch {batch} {dir}/answers.jsonl --url {url}"),
        format!("bench serve --url {url} --clients 1 --sessions 2 --warm-up 0 --input 20 --output 4"),
    ];
    tokio::task::block_in_place(|| {
        for command in commands {
            let with = |authority: &TempDir| {
                told("hello\n", &format!("{command} --ca {}/ca.crt", authority.path().display()))
            };
            let (taken, refused) = (with(&certs), with(&others));
            let said = String::from_utf8_lossy(&taken.stdout).into_owned();
            assert!(taken.status.success(), "{command}: {said} {}", String::from_utf8_lossy(&taken.stderr));
            let said =
                [&refused.stdout, &refused.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
            let said = said.concat();
            assert!(said.contains("invalid peer certificate"), "{command}: {said}");
            // A doctor looks at more than the cluster.
            assert_eq!(refused.status.success(), command.starts_with("doctor"), "{command}: {said}");
        }
    });
    let doctor = |more: &str| {
        let said = told("", &format!("doctor --url {url} {more}")).stdout;
        String::from_utf8(said).unwrap()
    };
    tokio::task::block_in_place(|| {
        let ca = certs.path().join("ca.crt");
        let found = doctor(&format!("--ca {}", ca.display()));
        assert!(found.contains(&format!(" nodes are ready at {url}")), "{found}");
        // Browsers do not know it, but whoever has the cluster's certificates does.
        assert!(doctor("").contains("--ca FILE"));
        let config = certs.path().join("cluster.toml");
        std::fs::write(&config, settings(certs.path())).unwrap();
        assert!(doctor(&format!("--config {}", config.display())).contains(" nodes are ready"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_files_to_be_read_again_ends_no_process() {
    let cluster = Cluster::start_embedded(
        "model = \"mock\"\n[engine]\nbackend = \"mock\"\n[frontend]\nlisten = \"127.0.0.1:0\"\n",
    )
    .await;
    for _ in 0..3 {
        cluster.nodes["local"].signal("HUP");
        let ready = cluster.http.get(format!("{}/ready", cluster.url)).send().await.unwrap();
        assert!(ready.status().is_success());
    }
}

#[test]
fn https_with_a_key_of_another_certificate_does_not_start() {
    let certs = TempDir::new().unwrap();
    init(certs.path());
    let dir = certs.path().display();
    let tls = format!("frontend.tls={{cert='{dir}/coordinator.crt',key='{dir}/decode.key'}}");
    let ended = baton(&[
        "serve",
        "--set",
        "engine.backend=mock",
        "--set",
        "model=mock",
        "--set",
        "frontend.listen=127.0.0.1:0",
        "--set",
        &tls,
    ]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !ended.status.success() && said.contains("frontend.tls") && said.contains("decode.key"),
        "{said}"
    );
}
