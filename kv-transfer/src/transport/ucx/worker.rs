#![expect(unsafe_code, reason = "UCX is a C library")]
//! One end of a path: a worker of UCX, its endpoint, and what is under way.
//!
//! The thread that sends or receives lets UCX work. While it waits it looks
//! again for a moment, then sleeps at the worker's event file. Whatever fails
//! ends the endpoint and the worker before the caller has its memory back.

use std::{
    collections::VecDeque,
    ffi::c_void,
    hint::spin_loop,
    io::{IoSlice, IoSliceMut},
    os::fd::BorrowedFd,
    ptr::{NonNull, null_mut, slice_from_raw_parts},
    sync::Arc,
    time::{Duration, Instant},
};

use baton_protocol::frame::HEADER_BYTES;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use ucx_rs::sys;

use super::{
    bell::Bell,
    context::{Context, Staging, check},
    flight::{Flight, Way, cut, is_done, request, steps_of},
    head::{Head, Kind},
    inbox::{self, EAGER, Inbox},
};
use crate::transport::PathError;

/// Bytes of a step: little enough that several stay in a core's cache.
pub const STEP: usize = 256 << 10;

/// Steps under way at once.
pub const WINDOW: usize = 4;

/// The one kind of active message.
const MESSAGE: u32 = 1;

/// How long to look again before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);

/// Longest sleep at once.
const NAP: Duration = Duration::from_secs(1);

/// How often UCX may have something to do before an endpoint closes.
const FAREWELLS: u32 = 64;

/// How long the last words may take to leave.
const LINGER: Duration = Duration::from_millis(100);

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
    /// Whether all bytes go through it, or only those for nobody.
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

    /// Sends a frame; returns when all its bytes have left.
    ///
    /// # Errors
    /// When the path is over; nothing of `payload` is used any more.
    pub fn send(
        &mut self,
        frame: &[u8; HEADER_BYTES],
        payload: &[IoSlice<'_>],
        stall: Duration,
    ) -> Result<(), PathError> {
        let pieces = payload.iter().map(|piece| (piece.as_ptr().cast_mut(), piece.len()));
        self.or_end(|worker| worker.send_steps(frame, cut(pieces), stall))
    }

    /// Waits as long as it takes for a frame to begin.
    ///
    /// # Errors
    /// When the path is over.
    pub fn begin(&mut self) -> Result<[u8; HEADER_BYTES], PathError> {
        self.or_end(|worker| {
            loop {
                if let Some(step) = worker.inbox().peek() {
                    return step.frame.ok_or_else(nonsense);
                }
                if worker.has_said_bye() {
                    return Err(PathError::Closed);
                }
                worker.turn(Instant::now(), None)?;
            }
        })
    }

    /// Lands the payload of the frame that has begun: in `pieces`, or nowhere. Shows
    /// every step to `landed`, in order, when it is in.
    ///
    /// # Errors
    /// When the path is over; nothing is written to `pieces` any more.
    pub fn land(
        &mut self,
        bytes: usize,
        pieces: Option<&mut [IoSliceMut<'_>]>,
        landed: &mut dyn FnMut(&[u8]),
        stall: Duration,
    ) -> Result<(), PathError> {
        let kept = pieces.map(|pieces| cut(pieces.iter_mut().map(|piece| (piece.as_mut_ptr(), piece.len()))));
        self.or_end(|worker| worker.land_steps(bytes, kept, landed, stall))
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

    fn send_steps(
        &mut self,
        frame: &[u8; HEADER_BYTES],
        steps: Vec<Vec<sys::ucp_dt_iov_t>>,
        stall: Duration,
    ) -> Result<(), PathError> {
        for (index, pieces) in steps.into_iter().enumerate() {
            if self.flights.len() >= WINDOW {
                self.await_oldest(stall)?;
            }
            let frame = (index == 0).then_some(*frame);
            let head = Head { kind: Kind::Step, number: self.sent, frame }.encode(&self.secret);
            let bytes = pieces.iter().map(|piece| piece.length).sum();
            let mut flight = self.flight(self.sent, pieces, bytes, self.staged);
            self.sent += 1;
            flight.copy(Way::IntoSlot);
            let (at, count, mut param) = self.operands(&flight);
            if bytes > EAGER {
                param.flags |= sys::ucp_send_am_flags_UCP_AM_SEND_FLAG_RNDV;
            }
            // SAFETY: the flight's memory and list stay until its request is done or the worker is
            // gone; UCX copies the head.
            let sent = unsafe {
                let head = (head.as_ptr().cast(), head.len());
                sys::ucp_am_send_nbx(self.endpoint, MESSAGE, head.0, head.1, at, count, &param)
            };
            flight.request = request(sent)?;
            self.flights.push_back(flight);
        }
        while !self.flights.is_empty() {
            self.await_oldest(stall)?;
        }
        Ok(())
    }

    fn land_steps(
        &mut self,
        bytes: usize,
        kept: Option<Vec<Vec<sys::ucp_dt_iov_t>>>,
        landed: &mut dyn FnMut(&[u8]),
        stall: Duration,
    ) -> Result<(), PathError> {
        let (count, keeps) = (steps_of(bytes), kept.is_some());
        let mut kept = kept.unwrap_or_default().into_iter();
        let (mut taken, mut done, mut moved) = (0, 0, Instant::now());
        while done < count {
            if taken < count && self.flights.len() < WINDOW && self.inbox().peek().is_some() {
                let size = (bytes - taken * STEP).min(STEP);
                self.take_step(kept.next().unwrap_or_default(), size, !keeps, taken == 0)?;
                taken += 1;
            } else if let Some(flight) = self.oldest_done()? {
                flight.show(landed);
                (done, moved) = (done + 1, Instant::now());
            } else if taken < count && self.flights.is_empty() && self.has_said_bye() {
                return Err(PathError::Closed);
            } else {
                self.turn(moved, Some(stall))?;
            }
        }
        Ok(())
    }

    /// Lets UCX bring the next step to its place.
    fn take_step(
        &mut self,
        pieces: Vec<sys::ucp_dt_iov_t>,
        bytes: usize,
        discard: bool,
        begins: bool,
    ) -> Result<(), PathError> {
        let number = self.inbox().next;
        let step = self.inbox_mut().take().ok_or(PathError::Closed)?;
        let mut flight = self.flight(number, pieces, bytes, discard || self.staged);
        let fits = step.bytes == bytes && step.frame.is_some() == begins;
        if step.data.is_null() || !fits {
            if !step.data.is_null() {
                // SAFETY: kept by the callback, and used by nobody else.
                unsafe { sys::ucp_am_data_release(self.raw, step.data) };
            }
            if !fits {
                return Err(nonsense());
            }
            self.flights.push_back(flight);
            return Ok(());
        }
        let (at, count, mut param) = self.operands(&flight);
        param.flags = 0;
        // SAFETY: the memory has the step's size, and stays until the request is done or the worker is gone.
        let receiving = unsafe { sys::ucp_am_recv_data_nbx(self.raw, step.data, at, count, &param) };
        flight.request = request(receiving)?;
        self.flights.push_back(flight);
        Ok(())
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

    /// Waits until there is room for one more.
    fn await_oldest(&mut self, stall: Duration) -> Result<(), PathError> {
        let begun = Instant::now();
        while self.oldest_done()?.is_none() {
            if self.has_said_bye() {
                return Err(PathError::Closed);
            }
            self.turn(begun, Some(stall))?;
        }
        Ok(())
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
        let head = Head { kind, number: self.sent, frame: None }.encode(&self.secret);
        let bytes = if kind == Kind::Hello { &self.address[..] } else { &[] };
        // SAFETY: the endpoint lives, the address as long as the worker; UCX copies the head.
        request(unsafe {
            let head = (head.as_ptr().cast(), head.len());
            let bytes = (bytes.as_ptr().cast(), bytes.len());
            sys::ucp_am_send_nbx(self.endpoint, MESSAGE, head.0, head.1, bytes.0, bytes.1, &param)
        })
    }

    /// Ends the endpoint and the worker: afterwards UCX uses no memory of this path.
    fn end(&mut self) {
        if self.raw.is_null() {
            return;
        }
        for step in self.inbox_mut().drain().filter(|step| !step.data.is_null()).collect::<Vec<_>>() {
            // SAFETY: kept by the callback, and used by nobody else.
            unsafe { sys::ucp_am_data_release(self.raw, step.data) };
        }
        let mut requests = Vec::new();
        if !self.endpoint.is_null() {
            if self.inbox().failed.is_none() {
                self.farewell(&mut requests);
            }
            if !self.close(&mut requests) {
                tracing::warn!("an endpoint of UCX does not close");
            }
        }
        requests.extend(self.flights.iter().map(|flight| flight.request));
        for request in requests.into_iter().filter(|request| !request.is_null()) {
            // SAFETY: a request of this worker that nobody looks at any more.
            unsafe { sys::ucp_request_free(request) };
        }
        // SAFETY: no other thread has it; its memory is given back after it.
        unsafe { sys::ucp_worker_destroy(self.raw) };
        self.raw = null_mut();
        self.flights.clear();
        self.staging = None;
    }

    /// Tells the peer, and gives what was sent before a moment to leave.
    fn farewell(&mut self, requests: &mut Vec<*mut c_void>) {
        requests.extend(self.say(Kind::Bye));
        let param = sys::ucp_request_param_t::default();
        // SAFETY: the endpoint lives.
        requests.extend(request(unsafe { sys::ucp_ep_flush_nbx(self.endpoint, &param) }));
        // Who does not listen any more need not hear it.
        let _ = self.settle(requests);
    }

    /// Everything that is under way on the endpoint ends with it; whether it has.
    fn close(&mut self, requests: &mut Vec<*mut c_void>) -> bool {
        let param = sys::ucp_request_param_t {
            op_attr_mask: sys::ucp_op_attr_t_UCP_OP_ATTR_FIELD_FLAGS,
            flags: sys::ucp_ep_close_flags_t_UCP_EP_CLOSE_FLAG_FORCE,
            ..Default::default()
        };
        // A failure that UCX has noted and not told yet must not find the endpoint gone.
        (0..FAREWELLS).take_while(|_| self.progress()).for_each(drop);
        // SAFETY: the endpoint lives, and is not used again.
        requests.extend(request(unsafe { sys::ucp_ep_close_nbx(self.endpoint, &param) }));
        self.endpoint = null_mut();
        // What closing has begun: UCX 1.22 crashes if the worker goes before it is done.
        // SAFETY: the worker lives.
        requests.extend(request(unsafe { sys::ucp_worker_flush_nbx(self.raw, &Default::default()) }));
        self.settle(requests)
    }

    /// Whether all are done in time. A request that failed is done too.
    fn settle(&mut self, requests: &mut [*mut c_void]) -> bool {
        let begun = Instant::now();
        loop {
            let done = requests.iter_mut().all(|request| is_done(request).unwrap_or(true));
            if done || begun.elapsed() >= LINGER {
                return done;
            }
            if !self.progress() {
                std::thread::sleep(SPIN);
            }
        }
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
