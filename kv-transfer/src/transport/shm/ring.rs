//! A stream of bytes through shared memory: one producer, one consumer. Each
//! counts its bytes in a word that only it writes; the difference is what the
//! ring holds. Whoever has to wait spins briefly, then sleeps at its bell (a
//! futex) until the other one rings it.
//!
//! Bytes are written past the producer's caches. Where both cores share a cache that is as fast as through
//! it, nearly; where they do not (other dies, other sockets, a virtual machine that was moved), fetching what
//! another core has just written takes several times as long as memory.

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicBool, fence},
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use rustix::thread::futex;

use super::map::{DATA_BYTES, Map};
use crate::transport::PathError;

/// Bytes after which the other side is told: small against the ring, large against the telling.
pub const STEP: usize = 32 << 10;

/// How long to spin before sleeping: about what sleeping and waking cost.
const SPIN: Duration = Duration::from_micros(50);

/// Longest sleep at once. Only a peer that tampers with the words makes one miss its bell.
const NAP: Duration = Duration::from_secs(1);

/// Which word is which; the producer's come first.
const POSITION: [usize; 2] = [0, 4];
const BELL: [usize; 2] = [1, 5];
const ASLEEP: [usize; 2] = [2, 6];
const CLOSED: [usize; 2] = [3, 7];

/// The writing end. Closes the ring when dropped.
pub struct Producer(End<0>);

/// The reading end. Closes the ring when dropped.
pub struct Consumer(End<1>);

/// What both ends have in common; `ME` is 0 for the producer.
struct End<const ME: usize> {
    map: Arc<Map>,
    closing: Arc<Closing<ME>>,
    stall: Duration,
    /// Bytes so far, as they are known here.
    mine: u32,
    /// Up to where the other side has been told.
    told: u32,
    /// Bytes of the other side when last looked at.
    theirs: u32,
}

/// Closes one end from any thread and wakes both.
pub struct Closing<const ME: usize> {
    map: Arc<Map>,
    closed: AtomicBool,
}

// === impl Producer ===

impl Producer {
    /// Of a ring that nothing went through yet.
    pub fn new(map: Arc<Map>, stall: Duration) -> Self {
        Self(End::new(map, stall))
    }

    /// What closes this end.
    pub fn closing(&self) -> Arc<Closing<0>> {
        self.0.closing.clone()
    }

    /// Writes all bytes as room comes free. The consumer learns of them step by step.
    ///
    /// # Errors
    /// When either end is closed, there is no room for too long, or the words make no sense.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), PathError> {
        let end = &mut self.0;
        while !bytes.is_empty() {
            let room = DATA_BYTES - end.held()? as usize;
            if room == 0 {
                end.wait(true)?;
                continue;
            }
            let at = end.mine as usize % DATA_BYTES;
            let size = bytes.len().min(room).min(DATA_BYTES - at).min(STEP - end.untold());
            end.map.stream_in(at, &bytes[..size]);
            end.advance(size);
            bytes = &bytes[size..];
        }
        Ok(())
    }

    /// Tells the consumer of everything written.
    pub fn publish(&mut self) {
        self.0.publish();
    }
}

// === impl Consumer ===

impl Consumer {
    /// Of a ring that nothing went through yet.
    pub fn new(map: Arc<Map>, stall: Duration) -> Self {
        Self(End::new(map, stall))
    }

    /// What closes this end.
    pub fn closing(&self) -> Arc<Closing<1>> {
        self.0.closing.clone()
    }

    /// Waits as long as it takes for the first byte.
    ///
    /// # Errors
    /// When either end is closed, or the words make no sense.
    pub fn begin(&mut self) -> Result<(), PathError> {
        while self.0.held()? == 0 {
            self.0.wait(false)?;
        }
        Ok(())
    }

    /// Fills `bytes` as they come. The producer learns of the room step by step, and of all of it
    /// when nothing is left.
    ///
    /// # Errors
    /// When either end is closed, nothing comes for too long, or the words make no sense.
    pub fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), PathError> {
        let end = &mut self.0;
        while !bytes.is_empty() {
            let held = end.held()? as usize;
            if held == 0 {
                end.wait(true)?;
                continue;
            }
            let at = end.mine as usize % DATA_BYTES;
            let size = bytes.len().min(held).min(DATA_BYTES - at).min(STEP - end.untold());
            let (now, later) = bytes.split_at_mut(size);
            end.map.copy_out(at, now);
            end.advance(size);
            bytes = later;
        }
        Ok(())
    }
}

// === impl End ===

impl<const ME: usize> End<ME> {
    const PEER: usize = 1 - ME;

    fn new(map: Arc<Map>, stall: Duration) -> Self {
        let closing = Arc::new(Closing { map: map.clone(), closed: AtomicBool::new(false) });
        Self { map, closing, stall, mine: 0, told: 0, theirs: 0 }
    }

    /// Bytes in the ring as last seen; looks again when that means waiting.
    fn held(&mut self) -> Result<u32, PathError> {
        let held = |end: &Self| match ME {
            0 => end.mine.wrapping_sub(end.theirs),
            _ => end.theirs.wrapping_sub(end.mine),
        };
        let blocked = if ME == 0 { DATA_BYTES as u32 } else { 0 };
        if held(self) == blocked {
            self.theirs = self.map.word(POSITION[Self::PEER]).load(Acquire);
        }
        match held(self) {
            held if held as usize <= DATA_BYTES => Ok(held),
            _ => Err(PathError::Unavailable { reason: "the peer's place in the ring makes no sense".into() }),
        }
    }

    fn untold(&self) -> usize {
        self.mine.wrapping_sub(self.told) as usize
    }

    fn advance(&mut self, bytes: usize) {
        // At most STEP.
        self.mine = self.mine.wrapping_add(bytes as u32);
        if self.untold() >= STEP {
            self.publish();
        }
    }

    fn publish(&mut self) {
        if self.told != self.mine {
            self.told = self.mine;
            if ME == 0 {
                self.map.settle();
            }
            self.map.word(POSITION[ME]).store(self.mine, Release);
            // Either the peer sees the new place before it sleeps, or we see that it sleeps.
            fence(SeqCst);
            if self.map.word(ASLEEP[Self::PEER]).load(Relaxed) != 0 {
                ring(&self.map, Self::PEER);
            }
        }
    }

    /// Waits until the peer has moved.
    fn wait(&mut self, limited: bool) -> Result<(), PathError> {
        self.publish();
        let begun = Instant::now();
        let position = |end: &Self| end.map.word(POSITION[Self::PEER]).load(Acquire);
        let moved = |end: &Self| position(end) != end.theirs;
        while begun.elapsed() < SPIN {
            for _ in 0..32 {
                if moved(self) {
                    return Ok(());
                }
                spin_loop();
            }
        }
        let (asleep, bell) = (self.map.word(ASLEEP[ME]), self.map.word(BELL[ME]));
        loop {
            asleep.store(1, Relaxed);
            fence(SeqCst);
            let rung = bell.load(SeqCst);
            let closed =
                self.closing.closed.load(SeqCst) || self.map.word(CLOSED[Self::PEER]).load(SeqCst) != 0;
            let moved = moved(self);
            if moved || closed || (limited && begun.elapsed() >= self.stall) {
                asleep.store(0, Relaxed);
                return match (moved, closed) {
                    (true, _) => Ok(()),
                    (false, true) => Err(PathError::Closed),
                    (false, false) => Err(PathError::Stalled),
                };
            }
            sleep(bell, rung, if limited { NAP.min(self.stall) } else { NAP });
        }
    }
}

impl<const ME: usize> Drop for End<ME> {
    fn drop(&mut self) {
        self.closing.close();
    }
}

// === impl Closing ===

impl<const ME: usize> Closing<ME> {
    /// Closes this end. What the producer has told before may still be read.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.map.word(CLOSED[ME]).store(1, SeqCst);
        ring(&self.map, 0);
        ring(&self.map, 1);
    }
}

fn ring(map: &Map, whose: usize) {
    let bell = map.word(BELL[whose]);
    bell.fetch_add(1, SeqCst);
    if let Err(error) = futex::wake(bell, futex::Flags::empty(), 1) {
        tracing::error!(%error, "cannot wake at a futex");
    }
}

/// Until the bell is not at `rung` any more, or some time has passed.
fn sleep(bell: &AtomicU32, rung: u32, longest: Duration) {
    let timeout = futex::Timespec::try_from(longest).ok();
    // Rung, too late, interrupted, timed out: whatever it is, the caller looks again.
    let _ = futex::wait(bell, futex::Flags::empty(), rung, timeout.as_ref());
}
