#![expect(unsafe_code, reason = "UCX is a C library")]
//! Frames that leave: copied into staging and announced at once, so that the next
//! one is announced while the one before still moves.

use std::{
    io::{IoSlice, IoSliceMut},
    slice,
    time::{Duration, Instant},
};

use baton_protocol::frame::HEADER_BYTES;
use ucx_rs::sys;

use super::{
    super::{
        flight::{Flight, request, steps_of},
        head::{Head, Kind},
        inbox::EAGER,
    },
    MESSAGE, STEP, WINDOW, Worker,
};
use crate::transport::{Checksum, PathError};

/// A frame that was announced.
#[derive(Clone, Copy)]
pub struct Posted {
    /// The number after its last step.
    after: u64,
    /// The checksum that goes with it.
    pub told: u32,
}

impl Worker {
    /// Whether a frame of so many bytes can be posted without waiting.
    ///
    /// # Errors
    /// When the path is over.
    pub fn has_room(&mut self, bytes: usize) -> Result<bool, PathError> {
        self.or_end(|worker| {
            while worker.oldest_done()?.is_some() {}
            Ok(worker.flights.len() + steps_of(bytes) <= WINDOW)
        })
    }

    /// Announces a frame, waiting for room where there is none. Of `payload` nothing is used any
    /// more; `told` goes with the frame in place of its checksum.
    ///
    /// # Errors
    /// When the path is over.
    pub fn post(
        &mut self,
        frame: &[u8; HEADER_BYTES],
        payload: &[IoSlice<'_>],
        (checksum, told): (Checksum, Option<u32>),
        stall: Duration,
    ) -> Result<Posted, PathError> {
        let mut pieces = payload.to_vec();
        let mut rest = &mut pieces[..];
        let bytes = payload.iter().map(|piece| piece.len()).sum();
        let (steps, mut crc) = (steps_of(bytes), checksum.begin());
        self.or_end(|worker| {
            for step in 0..steps {
                while worker.flights.len() >= WINDOW {
                    worker.await_oldest(stall)?;
                }
                let mut flight =
                    worker.flight(worker.sent, Vec::new(), (bytes - step * STEP).min(STEP), true);
                if let Some(slot) = flight.slot {
                    // SAFETY: the step that was in this part of staging before has left.
                    let slot = unsafe { slice::from_raw_parts_mut(slot, flight.bytes) };
                    crc.copy(rest, &mut [IoSliceMut::new(slot)])?;
                }
                IoSlice::advance_slices(&mut rest, flight.bytes);
                let told = if step + 1 == steps { told.unwrap_or_else(|| crc.value()) } else { 0 };
                let frame = (step == 0).then_some(*frame);
                worker.announce(&mut flight, &Head { kind: Kind::Step, number: worker.sent, told, frame })?;
                worker.sent += 1;
                worker.flights.push_back(flight);
            }
            Ok(Posted { after: worker.sent, told: told.unwrap_or_else(|| crc.value()) })
        })
    }

    /// Waits until a frame has left.
    ///
    /// # Errors
    /// When the path is over.
    pub fn finish(&mut self, posted: Posted, stall: Duration) -> Result<(), PathError> {
        self.or_end(|worker| {
            while worker.sent - (worker.flights.len() as u64) < posted.after {
                worker.await_oldest(stall)?;
            }
            Ok(())
        })
    }

    fn announce(&mut self, flight: &mut Flight, head: &Head) -> Result<(), PathError> {
        let head = head.encode(&self.secret);
        let (at, count, mut param) = self.operands(flight);
        if flight.bytes > EAGER {
            param.flags |= sys::ucp_send_am_flags_UCP_AM_SEND_FLAG_RNDV;
        }
        // SAFETY: the flight's memory stays until its request is done or the worker is gone; UCX copies the head.
        flight.request = request(unsafe {
            let head = (head.as_ptr().cast(), head.len());
            sys::ucp_am_send_nbx(self.endpoint, MESSAGE, head.0, head.1, at, count, &param)
        })?;
        Ok(())
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
}
