//! What NCCL moves by itself from card to card, with no gather, scatter, check word or announcement: sends in
//! groups, and one-sided puts into a window of the receiver (2.29 and later).
#![expect(unsafe_code, reason = "calls of a C library found at run time")]

use std::{
    ffi::{c_int, c_uint, c_void},
    mem::transmute_copy,
    ptr::null_mut,
    time::Instant,
};

use baton_kernels::cuda::{Gpu, Nccl, cudarc::driver::sys, nccl::ID_BYTES};
use libloading::Library;

use crate::{
    cards,
    figures::{MOST_BYTES, MOST_FRAMES, RUNS, median},
    open,
    other::Other,
};

/// Bytes of each rank's memory: of the receiver's, the window.
const MEMORY: usize = 128 << 20;

/// Frames of a group: as many as a road has unanswered.
const GROUP: usize = 4;

/// `ncclInt8` and `NCCL_WIN_COLL_SYMMETRIC`.
const BYTES: c_int = 0;
const SYMMETRIC: c_int = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; ID_BYTES]);

/// `ncclWaitSignalDesc_t`.
#[repr(C)]
struct Awaited {
    operations: c_int,
    peer: c_int,
    signal: c_int,
    context: c_int,
}

type Place = *mut *mut c_void;
type Handle = *mut c_void;
type InitRank = unsafe extern "C" fn(Place, c_int, Id, c_int) -> c_int;
type Transfer = unsafe extern "C" fn(Handle, usize, c_int, c_int, Handle, sys::CUstream) -> c_int;
type Put = unsafe extern "C" fn(
    Handle,
    usize,
    c_int,
    c_int,
    Handle,
    usize,
    c_int,
    c_int,
    c_uint,
    Handle,
    sys::CUstream,
) -> c_int;
type Wait = unsafe extern "C" fn(c_int, *mut Awaited, Handle, sys::CUstream) -> c_int;

/// How frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Send,
    Put,
}

/// One of two ranks, which lives as long as its process.
pub struct Rank {
    nccl: Library,
    gpu: Gpu,
    communicator: Handle,
    memory: Handle,
    /// If this NCCL has puts.
    window: Option<Handle>,
    peer: c_int,
}

impl Rank {
    /// Joins the other one.
    pub fn join(card: usize, id: [u8; ID_BYTES], rank: c_int) -> Self {
        let gpu = open(card).beside().unwrap();
        gpu.context().bind_to_thread().unwrap();
        // SAFETY: the library that the roads have loaded already.
        let nccl = unsafe { Library::new("libnccl.so.2") }.unwrap();
        let (mut communicator, mut memory, mut window) = (null_mut(), null_mut(), null_mut());
        let call = |name| function(&nccl, name).unwrap();
        // SAFETY, here and below: types and arguments are those of NCCL's header.
        let windowed = unsafe {
            let init: InitRank = transmute_copy(&call(b"ncclCommInitRank\0"));
            done(init(&raw mut communicator, 2, Id(id), rank));
            let allocate: unsafe extern "C" fn(Place, usize) -> c_int =
                transmute_copy(&call(b"ncclMemAlloc\0"));
            done(allocate(&raw mut memory, MEMORY));
            let has_puts = function(&nccl, b"ncclPutSignal\0").is_some();
            if has_puts {
                let register: unsafe extern "C" fn(Handle, Handle, usize, Place, c_int) -> c_int =
                    transmute_copy(&call(b"ncclCommWindowRegister\0"));
                done(register(communicator, memory, MEMORY, &raw mut window, SYMMETRIC));
            }
            has_puts
        };
        Self { nccl, gpu, communicator, memory, window: windowed.then_some(window), peer: 1 - rank }
    }

    /// Holds these bytes.
    fn fill(&self, bytes: &[u8]) {
        self.gpu.context().bind_to_thread().unwrap();
        // SAFETY: as many as there are.
        unsafe { sys::cuMemcpyHtoD_v2(self.memory as u64, bytes.as_ptr().cast(), MEMORY) }.result().unwrap();
    }

    fn held(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        // SAFETY: as many as there are.
        unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.memory as u64, MEMORY) }
            .result()
            .unwrap();
        bytes
    }

    /// Sends so many frames, or receives them as rank 1.
    fn transfer(&self, bytes: usize, frames: usize) {
        let name: &[u8] = if self.peer == 1 { b"ncclSend\0" } else { b"ncclRecv\0" };
        // SAFETY: see above; places are within the memory.
        let one: Transfer = unsafe { transmute_copy(&function(&self.nccl, name).unwrap()) };
        self.grouped(bytes, frames, |at, stream| unsafe {
            one(self.memory.byte_add(at), bytes, BYTES, self.peer, self.communicator, stream)
        });
    }

    fn put(&self, bytes: usize, frames: usize) {
        let window = self.window.unwrap();
        // SAFETY: see above; places are within the memory and the window.
        let one: Put = unsafe { transmute_copy(&function(&self.nccl, b"ncclPutSignal\0").unwrap()) };
        self.grouped(bytes, frames, |at, stream| unsafe {
            let from = self.memory.byte_add(at);
            one(from, bytes, BYTES, self.peer, window, at, 0, 0, 0, self.communicator, stream)
        });
    }

    fn grouped(&self, bytes: usize, frames: usize, one: impl Fn(usize, sys::CUstream) -> c_int) {
        type Group = unsafe extern "C" fn() -> c_int;
        let stream = self.gpu.stream().cu_stream();
        // SAFETY: see above.
        let [start, end]: [Group; 2] = [b"ncclGroupStart\0".as_slice(), b"ncclGroupEnd\0"]
            .map(|name| unsafe { transmute_copy(&function(&self.nccl, name).unwrap()) });
        for first in (0..frames).step_by(GROUP) {
            done(unsafe { start() });
            for frame in first..frames.min(first + GROUP) {
                done(one(frame % (MEMORY / bytes) * bytes, stream));
            }
            done(unsafe { end() });
        }
    }

    /// Enqueues waiting for so many puts.
    fn wait(&self, frames: usize) {
        let mut awaited = Awaited { operations: frames as c_int, peer: self.peer, signal: 0, context: 0 };
        // SAFETY: see above.
        let result = unsafe {
            let wait: Wait = transmute_copy(&function(&self.nccl, b"ncclWaitSignal\0").unwrap());
            wait(1, &raw mut awaited, self.communicator, self.gpu.stream().cu_stream())
        };
        done(result);
    }
}

fn function(nccl: &Library, name: &[u8]) -> Option<*const ()> {
    // SAFETY: only its address is taken here.
    unsafe { nccl.get::<*const ()>(name) }.ok().map(|found| *found)
}

#[track_caller]
fn done(result: c_int) {
    assert_eq!(result, 0, "a call of NCCL failed");
}

fn pattern() -> Vec<u8> {
    (0..MEMORY as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// The other end: lines are `put BYTES FRAMES` and `send BYTES FRAMES`.
pub fn be_sender(id: &str, say: fn(&str)) {
    let byte = |at: usize| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap();
    let rank = Rank::join(cards().0, std::array::from_fn(byte), 0);
    rank.fill(&pattern());
    say("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        match words[0] {
            "put" => rank.put(number(1), number(2)),
            "send" => rank.transfer(number(1), number(2)),
            _ => break,
        }
        rank.gpu.synchronize().unwrap();
        say("done");
    }
}

/// GB/s of one way, after the bytes that came were looked at.
fn rate(rank: &Rank, other: &mut Other, way: Way, bytes: usize) -> f64 {
    let mut run = |frames: usize| {
        let begun = Instant::now();
        match way {
            Way::Put => {
                other.tell(&format!("put {bytes} {frames}"));
                rank.wait(frames);
            }
            Way::Send => {
                other.tell(&format!("send {bytes} {frames}"));
                rank.transfer(bytes, frames);
            }
        }
        rank.gpu.synchronize().unwrap();
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(other.hear(), "done");
        seconds / frames as f64
    };
    rank.fill(&vec![0; MEMORY]);
    run(MEMORY / bytes);
    assert!(rank.held() == pattern(), "other bytes came than were sent");
    let frames = (MOST_BYTES / bytes).min(MOST_FRAMES);
    bytes as f64 / 1e9 / median((0..RUNS).map(|_| run(frames)).collect())
}

/// Prints what NCCL itself moves at each size, beside copies.
pub fn figures(sizes: &[usize], copies: &[f64]) {
    let id = Nccl::load().unwrap().new_id().unwrap();
    let name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut other = Other::start(&format!("own {name}"));
    let rank = Rank::join(cards().1, id, 1);
    assert_eq!(other.hear(), "ready");
    let ways = [(Way::Send, "send and receive"), (Way::Put, "one-sided put")];
    for (way, name) in ways {
        if way == Way::Put && rank.window.is_none() {
            println!("NCCL {} has no one-sided put", Nccl::load().unwrap().version());
            continue;
        }
        for (kib, copy) in sizes.iter().zip(copies) {
            let rate = rate(&rank, &mut other, way, kib << 10);
            println!("| {name} | {GROUP} | {kib} KiB | {rate:.1} | {copy:.1} | {:.2} | |", rate / copy);
        }
    }
}
