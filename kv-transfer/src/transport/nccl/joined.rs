//! How two ends join, and how they wait for what the other one is needed for.

use std::{
    io,
    net::TcpStream,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use baton_kernels::cuda::{
    Gpu, Mark, Nccl,
    nccl::{ID_BYTES, Pair},
};

use super::super::{
    PathError,
    card::{Limits, failed, signals::Signals},
};

/// Between two looks at a transfer that takes longer than a moment.
const NAP: Duration = Duration::from_micros(50);

/// Looks at a transfer without a nap.
const LOOKS: u32 = 2_000;

/// Marks that are not set.
pub fn marks(gpu: &Gpu, count: usize) -> Result<Vec<Mark>, PathError> {
    (0..count).map(|_| Mark::new(gpu).map_err(failed)).collect()
}

/// The socket beside the data.
pub fn signals(socket: TcpStream, limits: &Limits) -> io::Result<Signals> {
    socket.set_nodelay(true)?;
    Signals::new(socket, limits.stall)
}

/// Joins the other end as rank 0 or 1, within `limit`.
pub fn join(
    nccl: &'static Nccl,
    gpu: &Gpu,
    (id, rank): (&[u8; ID_BYTES], bool),
    (signals, limit): (&Signals, Duration),
) -> Result<Pair, PathError> {
    let (until, closed) = (Instant::now() + limit, signals.closed());
    let given_up = || Instant::now() >= until || closed.load(Ordering::SeqCst);
    // Beside what gathers and scatters.
    let gpu = gpu.beside().map_err(failed)?;
    nccl.join(&gpu, id, rank, &given_up).map_err(failed)
}

/// Waits for something on the card that the peer is needed for.
pub fn wait(pair: &Pair, signals: &mut Signals, done: &dyn Fn() -> bool) -> Result<(), PathError> {
    let (since, mut looks) = (Instant::now(), 0_u32);
    while !done() {
        looks += 1;
        if looks < LOOKS {
            std::hint::spin_loop();
            continue;
        }
        if signals.closed().load(Ordering::SeqCst) {
            return Err(PathError::Closed);
        }
        if since.elapsed() >= signals.stall() {
            return Err(PathError::Stalled);
        }
        // A peer that has died says nothing on the card; its socket does.
        signals.look()?;
        pair.check().map_err(failed)?;
        std::thread::sleep(NAP);
    }
    Ok(())
}

/// When a call of NCCL is given up.
pub fn deadline(signals: &Signals) -> impl Fn() -> bool {
    let (until, closed) = (Instant::now() + signals.stall(), signals.closed().clone());
    move || Instant::now() >= until || closed.load(Ordering::SeqCst)
}
