//! An etcd of its own for each test.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
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
        let (client, peer) = (free_address(), free_address());
        let data = tempfile::tempdir().unwrap();
        let child = spawn(client, peer, data.path().join("first"));
        Self { child, client, peer, data }
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
        self.child = spawn(self.client, self.peer, self.data.path().join("second"));
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn spawn(client: SocketAddr, peer: SocketAddr, data: PathBuf) -> Child {
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
    while TcpStream::connect(client).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "etcd exited at once");
        assert!(Instant::now() < deadline, "etcd does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    child
}
