//! What the system takes for a write to each of so many callers at a pace, by
//! a thread alone on the first core that does nothing else. Whoever sends each
//! token when it comes takes as much, whatever else they do.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use rustix::{
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};
use tokio::{io::AsyncReadExt, runtime::Runtime, task::JoinSet};

use super::{PACE_US, STREAMED};

/// About what the event of a token has, as a chunk of HTTP.
const EVENT: [u8; 240] = [b'x'; 240];

/// Microseconds of the first core's processor for each write. Readers have the core of `runtime`.
///
/// # Errors
/// When the system has no more sockets, or a connection breaks.
pub(super) fn write_us(runtime: &Runtime, streams: usize) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        near.push(TcpStream::connect(listener.local_addr()?)?);
        far.push(listener.accept()?.0);
    }
    let writing = thread::spawn(move || write(near));
    runtime.block_on(read(far))?;
    writing.join().map_err(|_| anyhow!("the writer panicked"))?
}

fn write(mut callers: Vec<TcpStream>) -> Result<f64> {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first)?;
    for caller in &callers {
        caller.set_nodelay(true)?;
    }
    let (began, used) = (Instant::now(), used());
    for step in 0..STREAMED {
        let next = began + Duration::from_micros((step * PACE_US) as u64);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        for caller in &mut callers {
            caller.write_all(&EVENT)?;
        }
    }
    Ok((self::used() - used).as_secs_f64() * 1e6 / (STREAMED * callers.len()) as f64)
}

/// Of this thread's processor, so far.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Reads until everyone has written everything.
async fn read(callers: Vec<TcpStream>) -> Result<()> {
    let mut reading = JoinSet::new();
    for caller in callers {
        caller.set_nonblocking(true)?;
        let mut caller = tokio::net::TcpStream::from_std(caller)?;
        reading.spawn(async move {
            let mut buffer = [0; 4096];
            while caller.read(&mut buffer).await? > 0 {}
            std::io::Result::Ok(())
        });
    }
    while let Some(read) = reading.join_next().await {
        read??;
    }
    Ok(())
}
