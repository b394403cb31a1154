//! The other process: this test binary again, told what to do line by line.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
    sync::Arc,
};

use baton_kv_transfer::transport::{
    Checksum, FrameReceiver, FrameSender, Link, PathError, Placement, cuda_ipc, nccl,
};
use baton_protocol::{FrameHeader, KvSource};
use parking_lot::Mutex;

use crate::{
    JOIN, Road, cards, limits, open, own,
    pages::{Host, Pages, frame},
};

/// How the other process learns its part.
const PART: &str = "BATON_CARD_PART";

/// Begins what it says.
const MARK: &str = "other: ";

/// The other process. Dropping it kills it.
pub struct Other {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

/// Starts a sender, and takes frames from it.
pub fn sender(road: Road, slot_bytes: usize, slots: usize) -> (Other, Link<dyn FrameReceiver>) {
    let gpu = open(cards().1);
    let limits = limits(slot_bytes, slots);
    match road {
        Road::CudaIpc => {
            let (name, listener) = unix_listener();
            let other = Other::start(&format!("send cuda_ipc {name} {slot_bytes} {slots}"));
            (other, cuda_ipc::receiver(&gpu, listener.accept().unwrap().0, &limits).unwrap())
        }
        Road::Nccl => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let other = Other::start(&format!("send nccl {addr} {slot_bytes} {slots}"));
            (other, nccl::receiver(&gpu, listener.accept().unwrap().0, (&limits, JOIN)).unwrap())
        }
    }
}

/// Starts a receiver, and sends frames to it.
pub fn receiver(road: Road, slot_bytes: usize, slots: usize) -> (Other, Link<dyn FrameSender>) {
    let gpu = open(cards().0);
    let limits = limits(slot_bytes, slots);
    match road {
        Road::CudaIpc => {
            let (name, listener) = unix_listener();
            let other = Other::start(&format!("recv cuda_ipc {name} {slot_bytes} {slots}"));
            (other, cuda_ipc::sender(&gpu, listener.accept().unwrap().0, &limits).unwrap())
        }
        Road::Nccl => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let other = Other::start(&format!("recv nccl {addr} {slot_bytes} {slots}"));
            (other, nccl::sender(&gpu, listener.accept().unwrap().0, (&limits, JOIN)).unwrap())
        }
    }
}

fn unix_listener() -> (String, UnixListener) {
    let name = format!("baton-card-{:016x}", fastrand::u64(..));
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    (name, listener)
}

impl Other {
    /// Starts it for a part.
    pub fn start(part: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "other::the_other_process", "--ignored", "--nocapture"]);
        command.env(PART, part).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Tells it what to do.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{line}").unwrap();
    }

    /// The next thing that it says.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.said.read_line(&mut line).unwrap() > 0, "the other process is gone");
            if let Some((_, said)) = line.split_once(MARK) {
                return said.trim().to_owned();
            }
        }
    }

    /// Kills it, without warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends frames as a session does.
pub fn send(
    sender: &mut dyn FrameSender,
    frames: impl Iterator<Item = FrameHeader>,
    source: &Arc<dyn KvSource>,
) -> Result<(), PathError> {
    let mut frames = frames;
    let mut begun = VecDeque::new();
    loop {
        while begun.len() <= sender.ahead()
            && let Some(header) = frames.next()
        {
            sender.begin(&header, source)?;
            begun.push_back(header);
        }
        let Some(header) = begun.pop_front() else { return Ok(()) };
        sender.send(&header, source, None)?;
    }
}

fn say(what: &str) {
    println!("{MARK}{what}");
}

/// Lines: `fill SEED`, `send BYTES FIRST FRAMES`, `damage BYTES SEQ`, `host SEED BYTES`, `close`.
fn be_sender(road: Road, addr: &str, slot_bytes: usize, slots: usize) {
    let gpu = open(cards().0);
    let limits = limits(slot_bytes, slots);
    let mut link = match road {
        Road::CudaIpc => cuda_ipc::sender(&gpu, unix(addr), &limits),
        Road::Nccl => nccl::sender(&gpu, TcpStream::connect(addr).unwrap(), (&limits, JOIN)),
    }
    .unwrap();
    let mut pages: Option<Arc<dyn KvSource>> = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        let sent = match words[0] {
            "fill" => {
                pages = Some(Pages::filled(&gpu, number(1) as u32));
                Ok(())
            }
            "send" => {
                let frames = (number(2)..number(2) + number(3)).map(|seq| frame(seq, number(1)));
                send(&mut *link.end, frames, pages.as_ref().unwrap())
            }
            "damage" => {
                let (header, source) = (frame(number(2), number(1)), pages.as_ref().unwrap());
                let right = link.end.checksum(Checksum::Crc32c, &header, source).unwrap();
                link.end.send(&header, source, Some(right ^ 1)).map(drop)
            }
            "host" => {
                let bytes = (0..number(2)).map(|at| (at * number(1)) as u8).collect();
                let source: Arc<dyn KvSource> = Arc::new(Host(Mutex::new(bytes)));
                send(&mut *link.end, std::iter::once(frame(0, number(2))), &source)
            }
            _ => break,
        };
        say(&match sent {
            Ok(()) => format!("did {}", words[0]),
            Err(error) => format!("failed {error}"),
        });
    }
}

/// Takes frames until the path ends.
fn be_receiver(road: Road, addr: &str, slot_bytes: usize, slots: usize) {
    let gpu = open(cards().1);
    let limits = limits(slot_bytes, slots);
    let mut link = match road {
        Road::CudaIpc => cuda_ipc::receiver(&gpu, unix(addr), &limits),
        Road::Nccl => nccl::receiver(&gpu, TcpStream::connect(addr).unwrap(), (&limits, JOIN)),
    }
    .unwrap();
    let pages = Pages::empty(&gpu);
    say("ready");
    let mut taken = 0;
    while let Ok(received) = link.end.recv(&mut |_| Placement::Land(pages.clone())) {
        assert!(received.intact);
        taken += 1;
    }
    say(&format!("took {taken}"));
}

fn unix(name: &str) -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

#[test]
#[ignore = "the other end of other tests"]
fn the_other_process() {
    let part = std::env::var(PART).expect("started by another test only");
    let words: Vec<&str> = part.split(' ').collect();
    let number = |at: usize| words[at].parse().unwrap();
    match words[0] {
        "own" => own::be_sender(words[1], say),
        "send" => be_sender(Road::named(words[1]), words[2], number(3), number(4)),
        _ => be_receiver(Road::named(words[1]), words[2], number(3), number(4)),
    }
}
