#![expect(unsafe_code, reason = "UCX is a C library")]
//! A step on its way: its memory, and the request by which UCX tells of it.

use std::{
    ffi::c_void,
    ptr::{copy_nonoverlapping, null_mut, slice_from_raw_parts},
};

use ucx_rs::{decode_status_ptr, sys};

use super::{
    context::{check, error},
    worker::STEP,
};
use crate::transport::PathError;

/// A step that UCX reads or writes.
pub struct Flight {
    /// Null when it is done.
    pub request: *mut c_void,
    /// Where it lands, or nowhere; UCX reads the list itself.
    pub pieces: Vec<sys::ucp_dt_iov_t>,
    /// Where it is staged; none where UCX uses the pieces.
    pub slot: Option<*mut u8>,
    /// How many it has.
    pub bytes: usize,
}

// === impl Flight ===

impl Flight {
    /// Brings what has landed to its place and shows it there.
    pub fn show(&self, landed: &mut dyn FnMut(&[u8])) {
        if let Some(mut slot) = self.slot {
            for piece in &self.pieces {
                // SAFETY: slot and pieces have the same bytes in all, belong to this step, and do not overlap.
                unsafe {
                    copy_nonoverlapping(slot, piece.buffer.cast(), piece.length);
                    slot = slot.add(piece.length);
                }
            }
        }
        let slot = self.slot.filter(|_| self.pieces.is_empty());
        let slot = slot.map(|slot| sys::ucp_dt_iov_t { buffer: slot.cast(), length: self.bytes });
        for piece in self.pieces.iter().chain(&slot).filter(|piece| piece.length > 0) {
            // SAFETY: the step is in, so that UCX is done with its memory.
            landed(unsafe { &*slice_from_raw_parts(piece.buffer.cast(), piece.length) });
        }
    }
}

/// Steps of a frame's payload; one at least, which carries its header.
pub fn steps_of(bytes: usize) -> usize {
    bytes.div_ceil(STEP).max(1)
}

/// Cuts memory into steps.
pub fn cut(pieces: impl Iterator<Item = (*mut u8, usize)>) -> Vec<Vec<sys::ucp_dt_iov_t>> {
    let (mut steps, mut room) = (vec![Vec::new()], STEP);
    for (mut at, mut left) in pieces {
        while left > 0 {
            if room == 0 {
                steps.push(Vec::new());
                room = STEP;
            }
            let length = left.min(room);
            if let Some(step) = steps.last_mut() {
                step.push(sys::ucp_dt_iov_t { buffer: at.cast(), length });
            }
            // Within the piece, or just behind it.
            at = at.wrapping_add(length);
            (left, room) = (left - length, room - length);
        }
    }
    steps
}

/// What UCX gave back: null where everything is done already.
///
/// # Errors
/// When it refused.
pub fn request(status: sys::ucs_status_ptr_t) -> Result<*mut c_void, PathError> {
    decode_status_ptr(status).map(|request| request.unwrap_or(null_mut())).map_err(error)
}

/// Whether a request is done; it is freed and null then.
///
/// # Errors
/// When it failed.
pub fn is_done(request: &mut *mut c_void) -> Result<bool, PathError> {
    if request.is_null() {
        return Ok(true);
    }
    // SAFETY: a request that UCX gave and that was not freed.
    let status = unsafe { sys::ucp_request_check_status(*request) };
    if status == sys::ucs_status_t_UCS_INPROGRESS {
        return Ok(false);
    }
    // SAFETY: as above; not used again.
    unsafe { sys::ucp_request_free(*request) };
    *request = null_mut();
    check(status).map(|()| true)
}
