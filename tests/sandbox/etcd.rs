//! An etcd of one member or of several, whose members can be ended, stopped and given back an old disk.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{
    Process,
    network::{Network, command},
};

/// One etcd, on free ports.
pub struct Etcd {
    members: Vec<Member>,
    /// With certificates, where they are.
    certs: Option<PathBuf>,
    /// By which it is called, if not by its address.
    host: Option<String>,
}

struct Member {
    /// Also its machine's, if it has one.
    name: String,
    process: Option<Process>,
    data: PathBuf,
    client_url: String,
    peer_url: String,
    /// Where it says without a certificate whether it leads.
    metrics_url: String,
    /// Words before its command.
    at: Vec<String>,
}

/// Until members agree on who leads.
const ELECTION: Duration = Duration::from_secs(30);

// === impl Etcd ===

impl Etcd {
    /// Starts etcd with its data under `dir`.
    pub fn start(dir: &Path) -> Self {
        let member = Member::new("etcd", ("http", Ipv4Addr::LOCALHOST), (dir, Vec::new()));
        Self::with(vec![member], None, None)
    }

    /// The same for clients with certificates, which `baton certs init` has put into `certs`.
    pub fn start_certified(dir: &Path, certs: &Path) -> Self {
        let member = Member::new("etcd", ("https", Ipv4Addr::LOCALHOST), (dir, Vec::new()));
        Self::with(vec![member], Some(certs.to_owned()), None)
    }

    /// The same on machines of its own. A single member is called by its name.
    pub fn start_apart(dir: &Path, certs: &Path, network: &Network) -> Self {
        let names: Vec<_> = network.names().filter(|name| name.starts_with("etcd")).collect();
        let at = |name: &&str| Member::new(name, ("https", network.address(name)), (dir, network.at(name)));
        let host = (names.len() == 1).then(|| network.name());
        Self::with(names.iter().map(at).collect(), Some(certs.to_owned()), host)
    }

    fn with(members: Vec<Member>, certs: Option<PathBuf>, host: Option<String>) -> Self {
        let mut etcd = Self { members, certs, host };
        etcd.resume();
        etcd
    }

    /// How nodes reach it, in words of a config file.
    pub fn to_toml(&self) -> String {
        let url = |member: &Member| {
            let (address, port) = member.client_url.rsplit_once(':').unwrap();
            let named = self.host.as_ref().map(|host| format!("https://{host}:{port}"));
            format!("\"{}\"", named.unwrap_or_else(|| format!("{address}:{port}")))
        };
        let urls = self.members.iter().map(url).collect::<Vec<_>>().join(", ");
        let mut text = format!("\n[registry]\nkind = \"etcd\"\nendpoints = [{urls}]\n");
        if let Some(certs) = self.certs.as_ref().map(|certs| certs.display()) {
            text += &format!(
                "ca = \"{certs}/ca.crt\"\ncert = \"{certs}/{{roles}}.crt\"\nkey = \"{certs}/{{roles}}.key\"\n"
            );
        }
        text
    }

    /// Whether these are its members.
    pub fn has(&self, members: &[&str]) -> bool {
        self.names().eq(members.iter().copied())
    }

    /// Names of its members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.name.as_str())
    }

    /// Who leads, and one that does not.
    pub async fn leader(&self) -> (String, String) {
        let http = baton::client::http(None).unwrap();
        let begun = std::time::Instant::now();
        loop {
            for member in &self.members {
                let asked = http.get(format!("{}/metrics", member.metrics_url)).timeout(ELECTION / 10).send();
                let Ok(answer) = asked.await else { continue };
                if answer.text().await.is_ok_and(|text| text.contains("\netcd_server_is_leader 1")) {
                    let other = self.names().find(|name| *name != member.name).unwrap_or(&member.name);
                    return (member.name.clone(), other.to_owned());
                }
            }
            assert!(begun.elapsed() < ELECTION, "no member of etcd leads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills it; its data stays.
    pub fn kill(&mut self) {
        self.members.iter_mut().for_each(|member| member.process = None);
    }

    /// Kills one member; its data stays.
    pub fn kill_member(&mut self, name: &str) {
        self.member(name).process = None;
    }

    /// Keeps what every member has on its disk now, to be [given back](Self::give_old_disks) later.
    pub fn remember(&self) {
        // Files of a running member are whole up to where they end, as after a loss of power.
        self.members.iter().for_each(|member| copy(&member.data, &member.old()));
    }

    /// Members that are dead get a copy of the disk that was kept; theirs lies aside.
    pub fn give_old_disks(&self) {
        for member in self.members.iter().filter(|member| member.process.is_none()) {
            drop(fs::remove_dir_all(member.aside()));
            fs::rename(&member.data, member.aside()).unwrap();
            copy(&member.old(), &member.data);
        }
    }

    /// Members that are dead get their own disk back.
    pub fn give_own_disks(&self) {
        for member in self.members.iter().filter(|member| member.process.is_none()) {
            fs::remove_dir_all(&member.data).unwrap();
            fs::rename(member.aside(), &member.data).unwrap();
        }
    }

    /// Starts members that are dead without waiting for them: they may end at once.
    pub fn try_to_resume(&mut self) {
        let (peers, certs) = (self.peers(), self.certs.clone());
        let dead = self.members.iter_mut().filter(|member| member.process.is_none());
        dead.for_each(|member| member.start(&peers, certs.as_deref()));
    }

    /// Kills it and starts it without any data.
    pub fn empty(&mut self) {
        self.kill();
        self.members.iter().for_each(|member| fs::remove_dir_all(&member.data).unwrap());
        self.resume();
    }

    /// Sends a signal by name to all members.
    pub fn signal(&self, signal: &str) {
        self.members.iter().for_each(|member| member.process.as_ref().expect("etcd runs").signal(signal));
    }

    /// The process of a member that runs.
    pub fn process(&self, name: &str) -> &Process {
        let member = self.members.iter().find(|member| member.name == name).unwrap();
        member.process.as_ref().expect("the member runs")
    }

    /// Starts those that are dead (again) on the same ports and data.
    pub fn resume(&mut self) {
        self.try_to_resume();
        self.members.iter().for_each(Member::wait);
    }

    fn peers(&self) -> String {
        let peers = self.members.iter().map(|member| format!("{}={}", member.name, member.peer_url));
        peers.collect::<Vec<_>>().join(",")
    }

    fn member(&mut self, name: &str) -> &mut Member {
        self.members.iter_mut().find(|member| member.name == name).unwrap()
    }
}

// === impl Member ===

impl Member {
    fn new(name: &str, (scheme, address): (&str, Ipv4Addr), (dir, at): (&Path, Vec<String>)) -> Self {
        Self {
            name: name.to_owned(),
            process: None,
            data: dir.join(name),
            client_url: format!("{scheme}://{address}:{}", free_port()),
            peer_url: format!("http://{address}:{}", free_port()),
            metrics_url: format!("http://{address}:{}", free_port()),
            at,
        }
    }

    /// Where the disk of before is.
    fn old(&self) -> PathBuf {
        self.data.with_extension("old")
    }

    /// Where its own is while it has that one.
    fn aside(&self) -> PathBuf {
        self.data.with_extension("aside")
    }

    fn start(&mut self, peers: &str, certs: Option<&Path>) {
        let program = std::env::var("BATON_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let mut command = command(&self.at, &program);
        command.arg("--data-dir").arg(&self.data);
        for (flag, value) in [
            ("--name", self.name.as_str()),
            ("--listen-client-urls", &self.client_url),
            ("--advertise-client-urls", &self.client_url),
            ("--listen-peer-urls", &self.peer_url),
            ("--initial-advertise-peer-urls", &self.peer_url),
            ("--listen-metrics-urls", &self.metrics_url),
            ("--initial-cluster", peers),
        ] {
            command.args([flag, value]);
        }
        if let Some(certs) = certs {
            for (flag, file) in
                [("--trusted-ca-file", "ca.crt"), ("--cert-file", "etcd.crt"), ("--key-file", "etcd.key")]
            {
                command.arg(flag).arg(certs.join(file));
            }
            command.arg("--client-cert-auth");
        }
        self.process = Some(Process::spawn(&self.name, &mut command));
    }

    fn wait(&self) {
        self.process.as_ref().unwrap().wait_for("ready to serve client requests", ELECTION);
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-rT").args([from, to]).status().unwrap();
    assert!(status.success(), "cannot copy {}", from.display());
}

/// Below those that the system gives to callers: one of them would hold it while a member is dead.
fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let ports = || 10_000 + (64 * std::process::id() + ASKED.fetch_add(1, Ordering::Relaxed)) % 20_000;
    let mut ports = std::iter::repeat_with(|| ports() as u16).take(20_000);
    ports.find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()).expect("a port is free")
}
