//! Child processes: killed when dropped, their output kept.

use std::{
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::network::{Network, command};

/// A child with its output lines.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// A single-member etcd on free ports.
pub struct Etcd {
    /// Its client URL.
    pub client_url: String,
    process: Option<Process>,
    data: PathBuf,
    peer_url: String,
    /// With certificates, where they are.
    certs: Option<PathBuf>,
    /// Words before its command.
    at: Vec<String>,
    /// By which it is called, if not by its address.
    host: Option<String>,
}

// === impl Process ===

impl Process {
    /// Starts `program`; panics when it cannot be started.
    pub fn start(name: &str, program: &str, args: &[&str]) -> Self {
        Self::spawn(name, Command::new(program).args(args))
    }

    /// Starts a command; panics when it cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers = outputs.map(|output| {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            })
        });
        Self { name: name.to_owned(), child, lines, readers: readers.into() }
    }

    /// The first line that contains `text`; panics with the output when it does not come.
    pub fn wait_for(&self, text: &str, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(line) = self.line_with(text) {
                return line;
            }
            assert!(Instant::now() < deadline, "{}: no line with {text:?} in:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where its gRPC listens, from its first words.
    pub fn control_addr(&self) -> Option<String> {
        Some(self.line_with(" control ")?.split(" control ").nth(1)?.trim().to_owned())
    }

    /// Where its metrics are, if it serves no API.
    pub fn metrics_url(&self) -> Option<String> {
        Some(self.line_with("metrics at ")?.split("metrics at ").nth(1)?.trim().to_owned())
    }

    /// Its number, as the system counts.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All output so far.
    pub fn output(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Sends a signal by name, for example `STOP`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot send SIG{signal} to {}", self.name);
    }

    /// Waits until it has ended; panics with the output when it does not.
    pub fn wait_for_exit(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn line_with(&self, text: &str) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        for reader in self.readers.drain(..) {
            drop(reader.join());
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.output());
        }
    }
}

// === impl Etcd ===

impl Etcd {
    /// Starts etcd with its data under `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_at(("http", Ipv4Addr::LOCALHOST), dir, None, Vec::new())
    }

    /// The same for clients with certificates, which `baton certs init` has put into `certs`.
    pub fn start_certified(dir: &Path, certs: &Path) -> Self {
        Self::start_at(("https", Ipv4Addr::LOCALHOST), dir, Some(certs.to_owned()), Vec::new())
    }

    /// The same on a machine of its own.
    pub fn start_apart(dir: &Path, certs: &Path, network: &Network) -> Self {
        let (address, at) = (network.address("etcd"), network.at("etcd"));
        let etcd = Self::start_at(("https", address), dir, Some(certs.to_owned()), at);
        Self { host: Some(network.name()), ..etcd }
    }

    fn start_at(
        (scheme, address): (&str, Ipv4Addr),
        dir: &Path,
        certs: Option<PathBuf>,
        at: Vec<String>,
    ) -> Self {
        let client_url = format!("{scheme}://{address}:{}", free_port());
        let peer_url = format!("http://127.0.0.1:{}", free_port());
        let data = dir.join("etcd");
        let mut etcd = Self { client_url, process: None, data, peer_url, certs, at, host: None };
        etcd.resume();
        etcd
    }

    /// How nodes reach it, in words of a config file.
    pub fn to_toml(&self) -> String {
        let (address, port) = self.client_url.rsplit_once(':').unwrap();
        let url = self.host.as_ref().map(|host| format!("https://{host}:{port}"));
        let url = url.unwrap_or_else(|| format!("{address}:{port}"));
        let mut text = format!("\n[registry]\nkind = \"etcd\"\nendpoints = [\"{url}\"]\n");
        if let Some(certs) = self.certs.as_ref().map(|certs| certs.display()) {
            text += &format!(
                "ca = \"{certs}/ca.crt\"\ncert = \"{certs}/{{roles}}.crt\"\nkey = \"{certs}/{{roles}}.key\"\n"
            );
        }
        text
    }

    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it and starts it without any data.
    pub fn empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.data).unwrap();
        self.resume();
    }

    /// Sends a signal by name.
    pub fn signal(&self, signal: &str) {
        self.process.as_ref().expect("etcd runs").signal(signal);
    }

    /// Starts it (again) on the same ports and data.
    pub fn resume(&mut self) {
        let program = std::env::var("BATON_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let cluster = format!("default={}", self.peer_url);
        let data = self.data.to_str().unwrap();
        let args = [
            ("--data-dir", data),
            ("--listen-client-urls", self.client_url.as_str()),
            ("--advertise-client-urls", self.client_url.as_str()),
            ("--listen-peer-urls", self.peer_url.as_str()),
            ("--initial-advertise-peer-urls", self.peer_url.as_str()),
            ("--initial-cluster", cluster.as_str()),
        ];
        let mut args: Vec<&str> = args.iter().flat_map(|(flag, value)| [*flag, *value]).collect();
        let files = self.certs.iter().flat_map(|certs| {
            [("--trusted-ca-file", "ca.crt"), ("--cert-file", "etcd.crt"), ("--key-file", "etcd.key")]
                .map(|(flag, name)| format!("{flag}={}", certs.join(name).display()))
        });
        let files: Vec<String> = files.collect();
        args.extend(files.iter().map(String::as_str));
        if self.certs.is_some() {
            args.push("--client-cert-auth");
        }
        let process = Process::spawn("etcd", command(&self.at, &program).args(&args));
        process.wait_for("ready to serve client requests", Duration::from_secs(30));
        self.process = Some(process);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
