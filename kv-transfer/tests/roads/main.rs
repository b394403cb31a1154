//! The roads from card to card, between two processes: this one receives (or
//! sends, where said so), and starts itself again for the other end. Plain device memory
//! stands for pages. Needs a card; `nccl` needs libnccl.so.2 and, on one card,
//! `NCCL_MULTI_RANK_GPU_ENABLE=1`. `BATON_CARDS=0,1` sends from card 0 to card 1, `BATON_ROADS=cuda_ipc` leaves NCCL out.
//!
//! - `pages`: device memory that knows what it should hold
//! - `other`: the other process, told what to do by lines on its input
//! - `bytes`: every byte, bit buckets, wrong checksums, pages of the machine's memory
//! - `loss`: processes that die, and paths that are closed
//! - `figures`: rates beside copies of the same run, on demand
//! - `own`: what NCCL moves by itself, for the same table
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::print_stdout, reason = "tests tell each other and people what they did")]

mod bytes;
mod figures;
mod loss;
mod other;
mod own;
mod pages;

use std::time::Duration;

use baton_kernels::cuda::Gpu;
use baton_kv_transfer::transport::card::Limits;

/// Which road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// Memory that the receiver maps.
    CudaIpc,
    /// Two ranks.
    Nccl,
}

const ROADS: [Road; 2] = [Road::CudaIpc, Road::Nccl];

/// Time that tests bear without progress.
const STALL: Duration = Duration::from_secs(20);

/// Time for two ranks to join.
const JOIN: Duration = Duration::from_secs(40);

impl Road {
    fn name(self) -> &'static str {
        match self {
            Self::CudaIpc => "cuda_ipc",
            Self::Nccl => "nccl",
        }
    }

    fn named(name: &str) -> Self {
        ROADS.into_iter().find(|road| road.name() == name).unwrap()
    }
}

/// Those that are tested: all, or `BATON_ROADS`.
fn roads() -> Vec<Road> {
    match std::env::var("BATON_ROADS") {
        Ok(names) => names.split(',').map(Road::named).collect(),
        Err(_) => ROADS.to_vec(),
    }
}

/// The cards of the sender and the receiver.
fn cards() -> (usize, usize) {
    let cards = std::env::var("BATON_CARDS").unwrap_or_else(|_| "0,0".to_owned());
    let (from, to) = cards.split_once(',').unwrap();
    (from.parse().unwrap(), to.parse().unwrap())
}

fn open(card: usize) -> Gpu {
    Gpu::open_any(card).expect("these tests need an NVIDIA card")
}

fn limits(slot_bytes: usize, slots: usize) -> Limits {
    Limits { slot_bytes, slots, stall: STALL, checked: !unchecked() }
}

/// Whether figures are without checksums: `BATON_CHECKSUM=none`.
fn unchecked() -> bool {
    std::env::var("BATON_CHECKSUM").is_ok_and(|value| value == "none")
}
