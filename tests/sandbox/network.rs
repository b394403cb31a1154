//! A network whose every machine is a namespace of Linux, with an address of its own, and in which
//! what one says to another can be let vanish, one way or both. etcd has a name too, which can be
//! let be forgotten. Needs no rights of the system's: the tests that use it run in a process whose
//! users, network and `/etc/hosts` are its own.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

/// Machines on one bridge. The tests' own process, and the coordinator, are on the bridge itself.
pub struct Network {
    number: u8,
    machines: BTreeMap<String, Machine>,
}

/// A namespace that lives as long as a process that sleeps in it.
struct Machine {
    sleeper: Child,
    address: Ipv4Addr,
}

/// Where a test goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Here: this process has a network of its own.
    Own,
    /// Here, without: the system gives none.
    Shared,
    /// It has run to its end, in another process.
    Done,
}

/// Set where the network is the process's own.
const OWN: &str = "BATON_OWN_NETWORK";
/// On the bridge.
const COORDINATOR: &str = "coordinator";
/// Names by network.
static NAMES: Mutex<BTreeMap<u8, Ipv4Addr>> = Mutex::new(BTreeMap::new());
/// Gives a process another time of day than the system's (Debian: libfaketime).
const CLOCK: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Nobody's: what is sent there vanishes.
const NOBODY: &str = "02:00:00:00:00:01";

/// This process's own `/etc/hosts`.
fn hosts() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hosts-{}", std::process::id()))
}

/// Runs the test of this name again in a process that has a network of its own.
pub fn enter(test: &str) -> Within {
    if std::env::var_os(OWN).is_some() {
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        fs::write(hosts(), "").unwrap();
        run(Command::new("mount").arg("--bind").arg(hosts()).arg("/etc/hosts"));
        return Within::Own;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "--"]);
        command
    };
    let works =
        unshare().args(["ip", "link", "add", "bridge0", "type", "bridge"]).stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        return Within::Shared;
    }
    let mut again = unshare();
    again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(OWN, "1");
    run(&mut again);
    Within::Done
}

// === impl Network ===

impl Network {
    /// Addresses are those of `10.77.NUMBER.0/24`.
    pub fn new(number: u8) -> Self {
        let network = Self { number, machines: BTreeMap::new() };
        let bridge = network.bridge();
        run(Command::new("ip").args(["link", "add", &bridge, "type", "bridge"]));
        run(Command::new("ip").args(["addr", "add", &format!("10.77.{number}.1/24"), "dev", &bridge]));
        run(Command::new("ip").args(["link", "set", &bridge, "up"]));
        network
    }

    /// Adds a machine.
    pub fn add(&mut self, name: &str) {
        let index = self.machines.len() as u8 + 2;
        let address = Ipv4Addr::new(10, 77, self.number, index);
        // It says something when its namespace is there.
        let sleeper = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "echo; exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut machine = Machine { sleeper, address };
        machine.wait();
        let (cable, id) = (self.cable(index.into()), machine.sleeper.id().to_string());
        let ends = ["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &id];
        run(Command::new("ip").args(ends));
        run(Command::new("ip").args(["link", "set", &cable, "master", &self.bridge(), "up"]));
        run(command(&machine.at(), "ip").args(["addr", "add", &format!("{address}/24"), "dev", "eth0"]));
        run(command(&machine.at(), "ip").args(["link", "set", "eth0", "up"]));
        run(command(&machine.at(), "ip").args(["link", "set", "lo", "up"]));
        self.machines.insert(name.to_owned(), machine);
    }

    /// Names of all, the coordinator's among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.machines.keys().map(String::as_str).chain([COORDINATOR])
    }

    /// Where one is.
    pub fn address(&self, name: &str) -> Ipv4Addr {
        self.machines.get(name).map_or(Ipv4Addr::new(10, 77, self.number, 1), |machine| machine.address)
    }

    /// Words before a command that is to run on one of them.
    pub fn at(&self, name: &str) -> Vec<String> {
        self.machines.get(name).map_or_else(Vec::new, Machine::at)
    }

    /// The same for a node, whose time of day can be set, if this system has what that needs.
    pub fn node_at(&self, name: &str) -> Vec<String> {
        let clock = self.clock(name);
        let mut words = self.at(name);
        if self.machines.contains_key(name) && Path::new(CLOCK).exists() {
            let preload = format!("LD_PRELOAD={CLOCK}");
            let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
            words.extend(["env", &preload, &file, "FAKETIME_CACHE_DURATION=1"].map(str::to_owned));
            words.push("FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned());
            self.set_clock(name, 0);
        }
        words
    }

    /// Whether clocks can be set.
    pub fn has_clocks() -> bool {
        Path::new(CLOCK).exists()
    }

    /// Sets a node's time of day so many seconds off the system's, within a second.
    pub fn set_clock(&self, name: &str, seconds: i64) {
        fs::write(self.clock(name), format!("{seconds:+}")).unwrap();
    }

    fn clock(&self, name: &str) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}-{name}", self.number))
    }

    /// etcd's name.
    pub fn name(&self) -> String {
        format!("etcd-{}", self.number)
    }

    /// Whether anybody finds etcd's address by its name.
    pub fn set_named(&self, is_named: bool) {
        let mut names = NAMES.lock().unwrap();
        names.remove(&self.number);
        names.extend(is_named.then(|| (self.number, self.address("etcd"))));
        let lines: String =
            names.iter().map(|(number, address)| format!("{address} etcd-{number}\n")).collect();
        fs::write(hosts(), "127.0.0.1 localhost\n".to_owned() + &lines).unwrap();
    }

    /// What `from` says does not reach `to` any more.
    pub fn cut(&self, from: &str, to: &str) {
        let (address, device) = (self.address(to).to_string(), self.device(from));
        let way = ["neigh", "replace", &address, "lladdr", NOBODY, "nud", "permanent", "dev", &device];
        run(command(&self.at(from), "ip").args(way));
    }

    /// It does again.
    pub fn mend(&self, from: &str, to: &str) {
        let address = self.address(to).to_string();
        run(command(&self.at(from), "ip").args(["neigh", "del", &address, "dev", &self.device(from)]));
    }

    /// Of what a machine says, so many packets of a hundred vanish at random, and the others go at this rate,
    /// in front of which up to 0.3 s of them wait.
    pub fn roughen(&self, name: &str, lost: u32, kbit: u32) {
        // In classic BPF: a random number below the bound is a packet that is dropped.
        let bound = (u64::from(u32::MAX) * u64::from(lost) / 100).to_string();
        let program = format!("4,32 0 0 4294963256,53 1 0 {bound},6 0 0 2,6 0 0 4294967295");
        let rate = format!("{kbit}kbit");
        self.tc(name, &["qdisc", "add", "dev", "eth0", "clsact"]);
        self.tc(name, &["filter", "add", "dev", "eth0", "egress", "bpf", "da", "bytecode", &program]);
        let queue = ["root", "tbf", "rate", &rate, "burst", "8kb", "latency", "300ms"];
        self.tc(name, &[&["qdisc", "add", "dev", "eth0"], &queue[..]].concat());
    }

    /// All of it arrives again.
    pub fn smooth(&self, name: &str) {
        self.tc(name, &["qdisc", "del", "dev", "eth0", "clsact"]);
        self.tc(name, &["qdisc", "del", "dev", "eth0", "root"]);
    }

    fn tc(&self, name: &str, words: &[&str]) {
        run(command(&self.at(name), "tc").args(words));
    }

    fn device(&self, name: &str) -> String {
        if self.machines.contains_key(name) { "eth0".to_owned() } else { self.bridge() }
    }

    /// The bridge's end of it.
    fn cable(&self, index: usize) -> String {
        format!("v{}-{index}", self.number)
    }

    fn bridge(&self) -> String {
        format!("bridge{}", self.number)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Cables go with the namespaces, but not at once, and the next network may have the same names.
        for index in 2..self.machines.len() + 2 {
            drop(Command::new("ip").args(["link", "del", &self.cable(index)]).status());
        }
        self.machines.clear();
        drop(Command::new("ip").args(["link", "del", &self.bridge()]).status());
    }
}

// === impl Machine ===

impl Machine {
    fn wait(&mut self) {
        let mut said = [0];
        let out = self.sleeper.stdout.as_mut().unwrap();
        std::io::Read::read_exact(out, &mut said).unwrap();
    }

    fn at(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/ns/net", self.sleeper.id());
        ["nsenter", &namespace, "--"].map(str::to_owned).into()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.sleeper.kill());
        drop(self.sleeper.wait());
    }
}

/// A program behind the words that say where it is to run.
pub fn command(at: &[String], program: &str) -> Command {
    let mut words = at.iter().map(String::as_str).chain([program]);
    let mut command = Command::new(words.next().unwrap_or(program));
    command.args(words);
    command
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
