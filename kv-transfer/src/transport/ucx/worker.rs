#![expect(unsafe_code, reason = "UCX is a C library")]
//! One end of a path: a worker of UCX, its endpoint, and what is under way.
//!
//! The thread that sends or receives lets UCX work. While it waits it looks
//! again for a moment, then sleeps at the worker's event file. Whatever fails
//! ends the endpoint and the worker before the caller has its memory back.
//!
//! - [`outgoing`], [`incoming`]: frames
//! - [`ending`]: what is left when it is over: nothing

mod ending;
mod incoming;
mod outgoing;

use std::{
    collections::VecDeque,
    ffi::c_void,
    hint::spin_loop,
    os::fd::BorrowedFd,
    ptr::{NonNull, null_mut, slice_from_raw_parts},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use ucx_rs::sys;

use super::{
    bell::Bell,
    context::{Context, Staging, check},
    flight::{Flight, is_done, request},
    head::{Head, Kind},
    inbox::{self, Inbox},
};
use crate::transport::PathError;
pub use outgoing::Posted;

/// Bytes of a step: little enough that several stay in a core's cache.
pub const STEP: usize = 256 << 10;

/// Steps under way at once: those of two frames of usual size.
pub const WINDOW: usize = 8;

/// The one kind of active message.
const MESSAGE: u32 = 1;

/// How long to look again before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);

/// Longest sleep at once.
const NAP: Duration = Duration::from_secs(1);

/// One byte after the other, and a list of pieces, in UCX's words.
const BYTES: u64 = 1 << sys::ucp_dt_type_UCP_DATATYPE_SHIFT;
const PIECES: u64 = sys::ucp_dt_type_UCP_DATATYPE_IOV as u64;

/// One end. Only one thread at a time has it.
pub struct Worker {
    raw: sys::ucp_worker_h,
    /// Null until the peer is known.
    endpoint: sys::ucp_ep_h,
    inbox: NonNull<Inbox>,
    secret: [u8; 32],
    address: Vec<u8>,
    /// Goes before the context, after the worker.
    staging: Option<Staging>,
    /// Whether what arrives goes through it, or only what nobody wants.
    staged: bool,
    _context: Arc<Context>,
    bell: Arc<Bell>,
    /// When UCX had something to do.
    active: Instant,
    /// Steps sent so far.
    sent: u64,
    /// Those under way, the oldest first. UCX uses their memory.
    flights: VecDeque<Flight>,
}

// SAFETY: the worker is made for one thread at a time (SERIALIZED); nothing
// else has its pointers.
unsafe impl Send for Worker {}

// === impl Worker ===

impl Worker {
    /// Without a peer yet; hears only those who know `secret`. If `staged`, UCX sees no pages.
    ///
    /// # Errors
    /// When UCX or the system has no more of what it needs.
    pub fn new(context: &Arc<Context>, secret: [u8; 32], staged: bool) -> Result<Self, PathError> {
        let bell = Arc::new(Bell::new()?);
        let staging = Some(Staging::new(context, STEP * WINDOW)?);
        let params = sys::ucp_worker_params_t {
            field_mask: u64::from(sys::ucp_worker_params_field_UCP_WORKER_PARAM_FIELD_THREAD_MODE),
            thread_mode: sys::ucs_thread_mode_t_UCS_THREAD_MODE_SERIALIZED,
            ..Default::default()
        };
        let mut raw = null_mut();
        // SAFETY: `params` names what it has; `raw` is filled or the call fails.
        check(unsafe { sys::ucp_worker_create(context.raw(), &params, &mut raw) })?;
        let mut worker = Self {
            raw,
            endpoint: null_mut(),
            inbox: NonNull::from(Box::leak(Box::new(Inbox::new(secret)))),
            secret,
            address: Vec::new(),
            staging,
            _context: context.clone(),
            bell,
            active: Instant::now(),
            sent: 0,
            staged,
            flights: VecDeque::with_capacity(WINDOW),
        };
        let fields = sys::ucp_am_handler_param_field_UCP_AM_HANDLER_PARAM_FIELD_ID
            | sys::ucp_am_handler_param_field_UCP_AM_HANDLER_PARAM_FIELD_FLAGS
            | sys::ucp_am_handler_param_field_UCP_AM_HANDLER_PARAM_FIELD_CB
            | sys::ucp_am_handler_param_field_UCP_AM_HANDLER_PARAM_FIELD_ARG;
        let handler = sys::ucp_am_handler_param_t {
            field_mask: u64::from(fields),
            id: MESSAGE,
            flags: sys::ucp_am_cb_flags_UCP_AM_FLAG_WHOLE_MSG
                | sys::ucp_am_cb_flags_UCP_AM_FLAG_PERSISTENT_DATA,
            cb: Some(inbox::arrived),
            arg: worker.inbox.as_ptr().cast(),
        };
        // SAFETY: the inbox outlives the worker.
        check(unsafe { sys::ucp_worker_set_am_recv_handler(raw, &handler) })?;
        worker.address = address_of(raw)?;
        Ok(worker)
    }

    /// Where others find it.
    pub fn address(&self) -> &[u8] {
        &self.address
    }

    /// What closes it.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// Goes to the worker at `address` and waits until it has answered.
    ///
    /// # Errors
    /// When nobody answers in time.
    pub fn call(&mut self, address: &[u8], limit: Duration) -> Result<(), PathError> {
        self.or_end(|worker| {
            worker.face(address)?;
            worker.told(Kind::Hello, limit)?;
            let begun = Instant::now();
            while !worker.inbox().taken {
                worker.turn(begun, Some(limit))?;
            }
            Ok(())
        })
    }

    /// Waits until somebody calls who knows the secret.
    ///
    /// # Errors
    /// When the path is closed first.
    pub fn answer(&mut self, limit: Duration) -> Result<(), PathError> {
        self.or_end(|worker| {
            let caller = loop {
                if let Some(caller) = worker.inbox_mut().caller.take() {
                    break caller;
                }
                worker.turn(Instant::now(), None)?;
            };
            worker.face(&caller)?;
            worker.told(Kind::Taken, limit)
        })
    }

    /// Makes the endpoint. Not the one that UCX offers for replies, which it destroys by itself.
    fn face(&mut self, address: &[u8]) -> Result<(), PathError> {
        let fields = sys::ucp_ep_params_field_UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
            | sys::ucp_ep_params_field_UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
            | sys::ucp_ep_params_field_UCP_EP_PARAM_FIELD_ERR_HANDLER;
        let params = sys::ucp_ep_params_t {
            field_mask: u64::from(fields),
            address: address.as_ptr().cast(),
            err_mode: sys::ucp_err_handling_mode_t_UCP_ERR_HANDLING_MODE_PEER,
            err_handler: sys::ucp_err_handler { cb: Some(inbox::failed), arg: self.inbox.as_ptr().cast() },
            ..Default::default()
        };
        // SAFETY: whoever knows the secret sent the address as its UCX made it; the inbox outlives the endpoint.
        check(unsafe { sys::ucp_ep_create(self.raw, &params, &mut self.endpoint) })
    }

    /// Says something and waits until it has left.
    fn told(&mut self, kind: Kind, limit: Duration) -> Result<(), PathError> {
        let (mut said, begun) = (self.say(kind)?, Instant::now());
        while !is_done(&mut said)? {
            self.turn(begun, Some(limit))?;
        }
        Ok(())
    }

    fn or_end<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, PathError>) -> Result<T, PathError> {
        if self.raw.is_null() {
            return Err(PathError::Closed);
        }
        work(self).inspect_err(|_| self.end())
    }

    /// A step that has not begun yet.
    fn flight(&self, number: u64, pieces: Vec<sys::ucp_dt_iov_t>, bytes: usize, staged: bool) -> Flight {
        let at = (number % WINDOW as u64) as usize * STEP;
        let slot = self.staging.as_ref().filter(|_| staged).map(|staging| staging.at(at, bytes));
        Flight { request: null_mut(), pieces, slot, bytes }
    }

    /// Where UCX finds a flight's memory, how much of it, and what it should know of it.
    fn operands(&self, flight: &Flight) -> (*mut c_void, usize, sys::ucp_request_param_t) {
        let mut param = sys::ucp_request_param_t {
            op_attr_mask: sys::ucp_op_attr_t_UCP_OP_ATTR_FIELD_DATATYPE
                | sys::ucp_op_attr_t_UCP_OP_ATTR_FIELD_FLAGS,
            flags: sys::ucp_send_am_flags_UCP_AM_SEND_FLAG_COPY_HEADER,
            datatype: PIECES,
            ..Default::default()
        };
        match (flight.slot, &self.staging) {
            (Some(slot), Some(staging)) => {
                param.op_attr_mask |= sys::ucp_op_attr_t_UCP_OP_ATTR_FIELD_MEMH;
                (param.datatype, param.memh) = (BYTES, staging.handle());
                (slot.cast(), flight.bytes, param)
            }
            _ => (flight.pieces.as_ptr().cast_mut().cast(), flight.pieces.len(), param),
        }
    }

    fn oldest_done(&mut self) -> Result<Option<Flight>, PathError> {
        let Some(oldest) = self.flights.front_mut() else { return Ok(None) };
        Ok(if is_done(&mut oldest.request)? { self.flights.pop_front() } else { None })
    }

    /// Whether the peer is gone and everything that it sent has been taken.
    fn has_said_bye(&self) -> bool {
        let inbox = self.inbox();
        inbox.bye.is_some_and(|after| after <= inbox.next)
    }

    /// Lets UCX work; sleeps where there is nothing to do until there is.
    fn turn(&mut self, since: Instant, limit: Option<Duration>) -> Result<(), PathError> {
        if self.progress() {
            self.active = Instant::now();
        }
        let inbox = self.inbox();
        if self.bell.is_rung() || inbox.failed.is_some() {
            return Err(PathError::Closed);
        }
        if inbox.nonsense {
            return Err(nonsense());
        }
        let left = limit.map(|limit| limit.saturating_sub(since.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(PathError::Stalled);
        }
        if self.active.elapsed() < SPIN {
            spin_loop();
            return Ok(());
        }
        self.sleep(left.unwrap_or(NAP).min(NAP))
    }

    fn sleep(&self, longest: Duration) -> Result<(), PathError> {
        let mut event = 0;
        // SAFETY: the worker lives; it fills `event`.
        check(unsafe { sys::ucp_worker_get_efd(self.raw, &mut event) })?;
        // SAFETY: as above. It refuses where there is something to do.
        match unsafe { sys::ucp_worker_arm(self.raw) } {
            sys::ucs_status_t_UCS_ERR_BUSY => return Ok(()),
            armed => check(armed)?,
        }
        // SAFETY: the worker's file, which it closes when it goes.
        let event = unsafe { BorrowedFd::borrow_raw(event) };
        let mut files = [PollFd::new(&event, PollFlags::IN), PollFd::new(self.bell.event(), PollFlags::IN)];
        match poll(&mut files, Timespec::try_from(longest).ok().as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(PathError::Io(error.into())),
        }
    }

    fn progress(&mut self) -> bool {
        // SAFETY: the worker lives, and its callbacks have the inbox alone.
        unsafe { sys::ucp_worker_progress(self.raw) != 0 }
    }

    fn inbox(&self) -> &Inbox {
        // SAFETY: callbacks write to it only inside `progress`, which takes the worker whole.
        unsafe { self.inbox.as_ref() }
    }

    fn inbox_mut(&mut self) -> &mut Inbox {
        // SAFETY: as above.
        unsafe { self.inbox.as_mut() }
    }

    /// Sends a message of its own; its request, null when it is done. A hello has our address.
    fn say(&mut self, kind: Kind) -> Result<*mut c_void, PathError> {
        let param = sys::ucp_request_param_t {
            op_attr_mask: sys::ucp_op_attr_t_UCP_OP_ATTR_FIELD_FLAGS,
            flags: sys::ucp_send_am_flags_UCP_AM_SEND_FLAG_COPY_HEADER
                | sys::ucp_send_am_flags_UCP_AM_SEND_FLAG_EAGER,
            ..Default::default()
        };
        let head = Head { kind, number: self.sent, told: 0, frame: None }.encode(&self.secret);
        let bytes = if kind == Kind::Hello { &self.address[..] } else { &[] };
        // SAFETY: the endpoint lives, the address as long as the worker; UCX copies the head.
        request(unsafe {
            let head = (head.as_ptr().cast(), head.len());
            let bytes = (bytes.as_ptr().cast(), bytes.len());
            sys::ucp_am_send_nbx(self.endpoint, MESSAGE, head.0, head.1, bytes.0, bytes.1, &param)
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
        // SAFETY: made by `new`; the worker that used it is gone.
        drop(unsafe { Box::from_raw(self.inbox.as_ptr()) });
    }
}

fn address_of(worker: sys::ucp_worker_h) -> Result<Vec<u8>, PathError> {
    let fields = sys::ucp_worker_attr_field_UCP_WORKER_ATTR_FIELD_ADDRESS;
    let mut attr = sys::ucp_worker_attr_t { field_mask: u64::from(fields), ..Default::default() };
    // SAFETY: fills what is asked for; the address is copied before it is released.
    unsafe {
        check(sys::ucp_worker_query(worker, &mut attr))?;
        let address = (*slice_from_raw_parts(attr.address.cast::<u8>(), attr.address_length)).to_vec();
        sys::ucp_worker_release_address(worker, attr.address);
        Ok(address)
    }
}

fn nonsense() -> PathError {
    PathError::Unavailable { reason: "the peer's steps make no sense".to_owned() }
}
