//! An etcd of its own for each test.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A running etcd on free loopback ports; killed when dropped.
pub(super) struct Etcd {
    child: Child,
    client: SocketAddr,
    peer: SocketAddr,
    data: TempDir,
}

impl Etcd {
    pub(super) fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        for attempt in 0..TRIES {
            let (client, peer) = (free_address(), free_address());
            if let Some(child) = spawn(client, peer, data.path().join(format!("first-{attempt}"))) {
                return Self { child, client, peer, data };
            }
        }
        panic!("etcd did not start in {TRIES} tries");
    }

    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.client
    }

    /// Sends a signal by name to this child.
    pub(super) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Kills it and starts another at the same address that knows nothing.
    pub(super) fn restart_empty(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut children = (0..TRIES).filter_map(|attempt| {
            spawn(self.client, self.peer, self.data.path().join(format!("second-{attempt}")))
        });
        self.child = children.next().expect("etcd starts again at its address");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts before a test gives up on finding free ports.
const TRIES: usize = 5;

/// Below those that the system gives to callers: one of them would hold it while etcd is dead.
fn free_address() -> SocketAddr {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let ports = || 10_000 + (64 * std::process::id() + ASKED.fetch_add(1, Ordering::Relaxed)) % 20_000;
    let mut addresses =
        std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], ports() as u16))).take(20_000);
    addresses.find(|address| TcpListener::bind(address).is_ok()).expect("a port is free")
}

/// None when etcd ended at once: another program was faster to take a port.
fn spawn(client: SocketAddr, peer: SocketAddr, data: PathBuf) -> Option<Child> {
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(data).args(["--name", "test", "--unsafe-no-fsync"]);
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("test={peer_url}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command
        .spawn()
        .expect("these tests need the program etcd in PATH (Debian: apt-get install etcd-server)");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_healthy(client) {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(Instant::now() < deadline, "etcd does not become healthy");
        thread::sleep(Duration::from_millis(20));
    }
    Some(child)
}

/// Whether etcd itself answers there. A connection alone says nothing: one to
/// a port that nobody listens on may meet its own other end.
fn is_healthy(client: SocketAddr) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(client)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /health HTTP/1.1\r\nhost: {client}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
}
