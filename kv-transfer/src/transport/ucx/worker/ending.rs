#![expect(unsafe_code, reason = "UCX is a C library")]
//! The end of a path, after which UCX uses none of its memory.

use std::{
    ffi::c_void,
    ptr::null_mut,
    time::{Duration, Instant},
};

use ucx_rs::sys;

use super::{
    super::{
        flight::{is_done, request},
        head::Kind,
    },
    SPIN, Worker,
};

/// How often UCX may have something to do before an endpoint closes.
const FAREWELLS: u32 = 64;

/// How long the last words may take to leave.
const LINGER: Duration = Duration::from_millis(100);

/// How long closing may take, for which no peer is needed: long enough for a thread that gets no processor.
const CLOSING: Duration = Duration::from_secs(5);

impl Worker {
    /// Ends the endpoint and the worker: afterwards UCX uses no memory of this path.
    pub(super) fn end(&mut self) {
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
        let _ = self.settle(requests, LINGER);
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
        self.settle(requests, CLOSING)
    }

    /// Whether all are done in time. A request that failed is done too.
    fn settle(&mut self, requests: &mut [*mut c_void], limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let done = requests.iter_mut().all(|request| is_done(request).unwrap_or(true));
            if done || begun.elapsed() >= limit {
                return done;
            }
            if !self.progress() {
                std::thread::sleep(SPIN);
            }
        }
    }
}
