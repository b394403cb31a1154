//! Child processes: killed when dropped, their output kept.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A child with its output lines.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// What the system has given to a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Bytes of memory that are there.
    pub resident: usize,
    /// Open descriptors.
    pub fds: usize,
    pub threads: usize,
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

    /// What it holds now.
    pub fn held(&self) -> Held {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
        };
        Held {
            resident: number("VmRSS:") << 10,
            fds: std::fs::read_dir(proc.join("fd")).unwrap().count(),
            threads: number("Threads:"),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Whether the system gives it more address space than it has.
    pub fn may_grow(&self, may: bool) {
        let limit = if may { "--as=unlimited:unlimited" } else { "--as=1:unlimited" };
        let status = Command::new("prlimit").args(["--pid", &self.child.id().to_string(), limit]).status();
        assert!(status.is_ok_and(|status| status.success()), "{} keeps its limits", self.name);
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

// === impl Held ===

impl Held {
    /// The greater number of each.
    pub fn or_more(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            fds: self.fds.max(other.fds),
            threads: self.threads.max(other.threads),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.resident as f64 / f64::from(1 << 20);
        write!(f, "{mib:.0} MiB, {} descriptors, {} threads", self.fds, self.threads)
    }
}
