//! `baton serve` as a child process, and what a process has used.

use std::{
    io::{self, BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::args::Settings;

/// A process of our own: killed when dropped, and ended when this one is gone, however that came.
pub(super) struct Owned {
    process: Child,
    /// Ends it when the pipe that it reads ends.
    leash: Child,
}

/// A server of our own on a port of the system's choice.
pub(super) struct ServerProcess {
    process: Owned,
    /// Open, so that the server may go on to write.
    _output: BufReader<ChildStdout>,
    said: Said,
}

/// What it said of itself when it started.
#[derive(Debug, Default)]
struct Said {
    addr: String,
    /// Where its admin API is, if it has one.
    admin: Option<String>,
    /// Where its last node is called, if it has one.
    control: Option<String>,
}

/// Units of the times in `/proc`: a second has 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

// === impl Owned ===

impl Owned {
    /// Starts it.
    ///
    /// # Errors
    /// When the system does not.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command.spawn()?;
        let leash = Command::new("sh")
            .args(["-c", "read -r _; kill \"$0\"", &process.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match leash {
            Ok(leash) => Ok(Self { process, leash }),
            Err(error) => {
                end(&mut process);
                Err(error)
            }
        }
    }
}

impl Drop for Owned {
    /// The leash first: what it ends must not be another process of the same number.
    fn drop(&mut self) {
        end(&mut self.leash);
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    drop(process.kill());
    drop(process.wait());
}

// === impl ServerProcess ===

impl ServerProcess {
    /// Starts it and waits until it says that it is ready.
    pub(super) fn start(settings: &Settings) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        Self::start_as(command, settings, "ready at http://")
    }

    /// One node of a cluster, by a command that names the program, and waits for
    /// the line on which `announces` stands before an address.
    pub(super) fn start_node(
        mut command: Command,
        settings: &Settings,
        id: &str,
        announces: &str,
    ) -> Result<Self> {
        command.args(["serve", "--node", id]);
        Self::start_as(command, settings, announces)
    }

    fn start_as(mut command: Command, settings: &Settings, announces: &str) -> Result<Self> {
        command.args(["--set", "frontend.listen=127.0.0.1:0"]);
        if let Some(config) = &settings.config {
            command.arg("--config").arg(config);
        }
        command.args(settings.set.iter().flat_map(|set| ["--set", set]));
        command.args(settings.model.iter().flat_map(|model| ["--model", model]));
        let mut process = Owned::start(command.stdout(Stdio::piped()).stderr(Stdio::null()))?;
        let mut output = BufReader::new(process.process.stdout.take().context("no output")?);
        let said = Said::read(&mut output, announces)?;
        Ok(Self { process, _output: output, said })
    }

    /// Its base URL.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.said.addr)
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> &str {
        &self.said.addr
    }

    /// Where its admin API listens, with `admin.listen` among its settings.
    pub(super) fn admin(&self) -> Option<&str> {
        self.said.admin.as_deref()
    }

    /// Where its node is called, if it is one.
    pub(super) fn control(&self) -> Option<&str> {
        self.said.control.as_deref()
    }

    /// Memory that it has, as the system counts it.
    pub(super) fn resident_bytes(&self) -> Result<usize> {
        resident_bytes(&self.process.process.id().to_string())
    }

    /// Seconds of processor time that it has used.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.process.process.id().to_string())
    }
}

// === impl Said ===

impl Said {
    /// Reads up to the line on which `announces` stands before an address.
    fn read(output: &mut impl BufRead, announces: &str) -> Result<Self> {
        let mut said = Self::default();
        for line in output.lines() {
            let line = line?;
            let behind = |words: &str| Some(line.split_once(words)?.1.trim().to_owned());
            said.admin = said.admin.or_else(|| behind("admin at http://"));
            said.control = behind(" control ").or(said.control);
            if let Some(addr) = behind(announces) {
                addr.split('/').next().unwrap_or_default().clone_into(&mut said.addr);
                return Ok(said);
            }
        }
        anyhow::bail!("the server ended before it was ready")
    }
}

/// Seconds of processor time that a process has used; `self` is this one.
pub(super) fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("unexpected form of /proc/*/stat")?;
    let ticks =
        |index: usize| fields.split_whitespace().nth(index).and_then(|field| field.parse::<f64>().ok());
    let used = ticks(11).zip(ticks(12)).context("unexpected form of /proc/*/stat")?;
    Ok((used.0 + used.1) / TICKS)
}

/// Memory that a process has, as the system counts it; `self` is this one.
pub(super) fn resident_bytes(process: &str) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    Ok(kib.context("unexpected form of /proc/self/status")? << 10)
}
