#![expect(unsafe_code, reason = "UCX is a C library")]
//! Frames that arrive: UCX tells of each step before its bytes come.

use std::{
    io::IoSliceMut,
    time::{Duration, Instant},
};

use baton_protocol::frame::HEADER_BYTES;
use ucx_rs::sys;

use super::{
    super::flight::{cut, request, steps_of},
    STEP, WINDOW, Worker, nonsense,
};
use crate::transport::PathError;

impl Worker {
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
    /// every step to `landed`, in order, when it is in. Returns the checksum that was told.
    ///
    /// # Errors
    /// When the path is over; nothing is written to `pieces` any more.
    pub fn land(
        &mut self,
        bytes: usize,
        pieces: Option<&mut [IoSliceMut<'_>]>,
        landed: &mut dyn FnMut(&[u8]),
        stall: Duration,
    ) -> Result<u32, PathError> {
        let kept = pieces.map(|pieces| cut(pieces.iter_mut().map(|piece| (piece.as_mut_ptr(), piece.len()))));
        self.or_end(|worker| worker.land_steps(bytes, kept, landed, stall))
    }

    fn land_steps(
        &mut self,
        bytes: usize,
        kept: Option<Vec<Vec<sys::ucp_dt_iov_t>>>,
        landed: &mut dyn FnMut(&[u8]),
        stall: Duration,
    ) -> Result<u32, PathError> {
        let (count, keeps) = (steps_of(bytes), kept.is_some());
        let mut kept = kept.unwrap_or_default().into_iter();
        let (mut taken, mut done, mut told, mut moved) = (0, 0, 0, Instant::now());
        while done < count {
            if taken < count && self.flights.len() < WINDOW && self.inbox().peek().is_some() {
                let size = (bytes - taken * STEP).min(STEP);
                told = self.take_step(kept.next().unwrap_or_default(), size, !keeps, taken == 0)?;
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
        Ok(told)
    }

    /// Lets UCX bring the next step to its place; the checksum that came with it.
    fn take_step(
        &mut self,
        pieces: Vec<sys::ucp_dt_iov_t>,
        bytes: usize,
        discard: bool,
        begins: bool,
    ) -> Result<u32, PathError> {
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
            return Ok(step.told);
        }
        let (at, count, mut param) = self.operands(&flight);
        param.flags = 0;
        // SAFETY: the memory has the step's size, and stays until the request is done or the worker is gone.
        let receiving = unsafe { sys::ucp_am_recv_data_nbx(self.raw, step.data, at, count, &param) };
        flight.request = request(receiving)?;
        self.flights.push_back(flight);
        Ok(step.told)
    }
}
