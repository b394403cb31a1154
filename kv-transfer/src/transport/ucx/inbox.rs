#![expect(unsafe_code, reason = "UCX calls back with pointers")]
//! What has come to a worker and waits to be taken: filled by UCX's callbacks,
//! which run only while the worker's thread lets UCX work.

use std::{
    collections::BTreeMap,
    ffi::c_void,
    ptr::{null_mut, slice_from_raw_parts},
};

use baton_protocol::frame::HEADER_BYTES;
use ucx_rs::sys;

use super::{
    MAX_ADDRESS_BYTES,
    head::{Head, Kind},
};

/// Steps that may wait. Only small ones do: the bytes of others wait at their sender.
const QUEUED: u64 = 1024;

/// Steps up to this size come with their bytes.
pub const EAGER: usize = 8 << 10;

/// What a worker has been told.
pub struct Inbox {
    secret: [u8; 32],
    /// The step that is taken next.
    pub next: u64,
    steps: BTreeMap<u64, Arrived>,
    /// The address of whoever said hello.
    pub caller: Option<Vec<u8>>,
    /// Our hello was heard.
    pub taken: bool,
    /// The number after the last step.
    pub bye: Option<u64>,
    /// What broke the endpoint.
    pub failed: Option<sys::ucs_status_t>,
    /// The peer does what no sender does.
    pub nonsense: bool,
}

/// A step that waits.
pub struct Arrived {
    /// Names its bytes to UCX; null where there are none.
    pub data: *mut c_void,
    /// How many.
    pub bytes: usize,
    /// The checksum that came with it.
    pub told: u32,
    /// The frame that begins with it.
    pub frame: Option<[u8; HEADER_BYTES]>,
}

// === impl Inbox ===

impl Inbox {
    /// Hears only those who know `secret`.
    pub fn new(secret: [u8; 32]) -> Self {
        let steps = BTreeMap::new();
        let (caller, taken, bye, failed) = (None, false, None, None);
        Self { secret, next: 0, steps, caller, taken, bye, failed, nonsense: false }
    }

    /// The next step, without taking it.
    pub fn peek(&self) -> Option<&Arrived> {
        self.steps.get(&self.next)
    }

    /// Takes the next step.
    pub fn take(&mut self) -> Option<Arrived> {
        let step = self.steps.remove(&self.next)?;
        self.next += 1;
        Some(step)
    }

    /// Everything that nobody will take.
    pub fn drain(&mut self) -> impl Iterator<Item = Arrived> {
        std::mem::take(&mut self.steps).into_values()
    }

    /// Whether the step's bytes are kept.
    fn keep(&mut self, head: &Head, data: *mut c_void, bytes: usize) -> bool {
        let ahead = head.number.checked_sub(self.next).filter(|ahead| *ahead < QUEUED);
        if ahead.is_none() || self.steps.contains_key(&head.number) {
            self.nonsense = true;
            return false;
        }
        let data = if bytes == 0 { null_mut() } else { data };
        self.steps.insert(head.number, Arrived { data, bytes, told: head.told, frame: head.frame });
        bytes > 0
    }
}

/// UCX has a message.
///
/// # Safety
/// Called by UCX alone, with the worker's inbox as `arg`.
pub unsafe extern "C" fn arrived(
    arg: *mut c_void,
    header: *const c_void,
    header_bytes: usize,
    data: *mut c_void,
    bytes: usize,
    param: *const sys::ucp_am_recv_param_t,
) -> sys::ucs_status_t {
    // SAFETY: the worker's inbox, which nothing borrows while UCX works; the others are UCX's own.
    let (inbox, header, attr) =
        unsafe { (&mut *arg.cast::<Inbox>(), bytes_of(header, header_bytes), (*param).recv_attr) };
    let is_here = attr & u64::from(sys::ucp_am_recv_attr_t_UCP_AM_RECV_ATTR_FLAG_RNDV) == 0;
    let Some(head) = Head::decode(header, &inbox.secret) else { return sys::ucs_status_t_UCS_OK };
    match head.kind {
        Kind::Hello => {
            if is_here && (1..=MAX_ADDRESS_BYTES).contains(&bytes) && inbox.caller.is_none() {
                // SAFETY: UCX has all bytes of the message here.
                inbox.caller = Some(unsafe { bytes_of(data, bytes) }.to_vec());
            }
        }
        Kind::Taken => inbox.taken = true,
        Kind::Bye => inbox.bye = Some(head.number),
        Kind::Step if is_here && bytes > EAGER => inbox.nonsense = true,
        Kind::Step => {
            if inbox.keep(&head, data, bytes) {
                return sys::ucs_status_t_UCS_INPROGRESS;
            }
        }
    }
    sys::ucs_status_t_UCS_OK
}

/// UCX has lost the peer.
///
/// # Safety
/// As [`arrived`].
pub unsafe extern "C" fn failed(arg: *mut c_void, _: sys::ucp_ep_h, status: sys::ucs_status_t) {
    // SAFETY: as above.
    unsafe { (*arg.cast::<Inbox>()).failed = Some(status) };
}

/// # Safety
/// `bytes` bytes must be there, or none.
unsafe fn bytes_of<'a>(at: *const c_void, bytes: usize) -> &'a [u8] {
    // SAFETY: by the caller's promise.
    if at.is_null() || bytes == 0 { &[] } else { unsafe { &*slice_from_raw_parts(at.cast(), bytes) } }
}
