//! Process start to ready: from spawning `baton serve` to a 200 of `/ready`.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{median, process::ServerProcess, shown};
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
    let server = ServerProcess::start(&args::Settings::default())?;
    while !answers_ready(server.addr())? {
        ensure!(started.elapsed() < Duration::from_secs(60), "not ready after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(started.elapsed().as_secs_f64())
}

fn answers_ready(addr: &str) -> Result<bool> {
    Ok(get(addr, "/ready")?.starts_with("HTTP/1.1 200"))
}

/// A server's whole answer.
pub(super) fn get(addr: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
