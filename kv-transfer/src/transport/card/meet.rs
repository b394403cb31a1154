//! What the two ends of a road from card to card need before they meet.

use baton_kernels::cuda::Gpu;
use tokio::task::spawn_blocking;

use super::Limits;
use crate::{
    SessionError, TransferConfig, TransportKind,
    transport::{Checksum, Link, PathError, offer::Terms},
};

/// Smallest slot: probes fit in.
const MIN_SLOT_BYTES: usize = 1 << 20;

/// The card that this node's pages are on.
///
/// # Errors
/// When pages are not on a card, or it cannot be used.
pub fn card(config: &TransferConfig, kind: TransportKind) -> Result<Gpu, SessionError> {
    let not_here = |reason: String| SessionError::NotHere { transport: kind.as_str(), reason };
    let device = config.device.ok_or_else(|| not_here("pages are not on a card".to_owned()))?;
    Gpu::open_any(device).map_err(|error| not_here(error.to_string()))
}

/// What a session allows on such a path, which has so many slots.
pub fn limits(terms: &Terms, slots: usize) -> Limits {
    let config = &terms.config;
    let slot_bytes = config.frame_bytes().max(config.probe_bytes() as usize).max(MIN_SLOT_BYTES);
    Limits {
        slot_bytes: slot_bytes.next_multiple_of(MIN_SLOT_BYTES),
        slots,
        stall: config.stall_timeout(),
        checked: terms.checksum != Checksum::None,
    }
}

/// Makes an end, which waits for the card and the other end, without blocking the runtime.
///
/// # Errors
/// Those of `make`.
pub async fn made<E: ?Sized + 'static>(
    make: impl FnOnce() -> Result<Link<E>, PathError> + Send + 'static,
) -> Result<Link<E>, PathError>
where
    Link<E>: Send,
{
    spawn_blocking(make).await.map_err(|_| PathError::Closed)?
}
