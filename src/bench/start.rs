//! Process start to ready: from spawning `baton serve` to a 200 of `/ready`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{median, shown};
use crate::{args, terminal::say};

/// What came out.
pub struct Measured {
    /// Median of the runs.
    pub median_seconds: f64,
}

/// Prints the table.
///
/// # Errors
/// When the server does not become ready.
pub fn run(args: &args::BenchStart) -> Result<()> {
    measure(args).map(drop)
}

/// Starts the server a few times.
///
/// # Errors
/// When the server does not become ready.
pub fn measure(args: &args::BenchStart) -> Result<Measured> {
    let seconds: Vec<f64> = (0..args.runs).map(|_| once()).collect::<Result<_>>()?;
    let ms: Vec<f64> = seconds.iter().map(|s| s * 1e3).collect();
    say(format_args!("process start to ready, embedded, real model: {} ms", shown(&ms)));
    Ok(Measured { median_seconds: median(&seconds) })
}

fn once() -> Result<f64> {
    let started = Instant::now();
    let mut server = Command::new(std::env::current_exe()?)
        .args(["serve", "--set", "frontend.listen=127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let outcome = until_ready(server.stdout.take().context("no output")?, started);
    drop(server.kill());
    drop(server.wait());
    outcome
}

fn until_ready(output: impl Read, started: Instant) -> Result<f64> {
    let lines = BufReader::new(output).lines();
    let mut ready = lines
        .map_while(Result::ok)
        .filter_map(|line| line.split("ready at http://").nth(1).map(str::to_owned));
    let addr = ready.next().context("the server ended before it was ready")?;
    while !answers_ready(addr.trim())? {
        ensure!(started.elapsed() < Duration::from_secs(60), "not ready after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(started.elapsed().as_secs_f64())
}

fn answers_ready(addr: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(addr)?;
    write!(stream, "GET /ready HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}
