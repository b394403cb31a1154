//! Disturbs a path by a seeded schedule, on the sending side: what a bad
//! network, a bad memory or a stopped process would do to frames.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use baton_protocol::{FrameHeader, KvSource, KvSpan};

use super::{Checksum, Closer, FrameSender, Link, PathError};
use crate::FaultsConfig;

/// How long a silence goes on before somebody looks whether the path was closed.
const NAP: Duration = Duration::from_millis(5);

struct Faulty {
    end: Box<dyn FrameSender>,
    checksum: Checksum,
    config: FaultsConfig,
    random: fastrand::Rng,
    frames: u64,
    /// A frame that waits for the next one to overtake it. Like a frame that lies in a
    /// network, it keeps none of the sender's pages: the next one may never come.
    held: Option<(FrameHeader, Arc<dyn KvSource>, u32)>,
    closed: Arc<AtomicBool>,
}

/// What the schedule has for one frame.
struct Fate {
    delay: Duration,
    drop: bool,
    corrupt: Option<u64>,
    hold: bool,
}

/// The bytes of one frame, out of its pages.
struct Copied(Vec<u8>);

/// Disturbs the frames sent over `link`.
pub fn sender(
    link: Link<dyn FrameSender>,
    checksum: Checksum,
    config: FaultsConfig,
) -> Link<dyn FrameSender> {
    let closed = Arc::new(AtomicBool::new(false));
    let random = fastrand::Rng::with_seed(config.seed);
    let (end, held) = (link.end, None);
    let faulty = Faulty { end, checksum, config, random, frames: 0, held, closed: closed.clone() };
    let inner = link.closer;
    let closer = Closer::new(move || {
        closed.store(true, Ordering::SeqCst);
        inner.close();
    });
    Link { end: Box::new(faulty), closer }
}

// === impl Faulty ===

// Frames are not begun: some never leave.
impl FrameSender for Faulty {
    fn asked_every(&self) -> Option<Duration> {
        self.end.asked_every()
    }

    fn send(
        &mut self,
        header: &FrameHeader,
        source: &Arc<dyn KvSource>,
        told: Option<u32>,
    ) -> Result<u32, PathError> {
        // Of what the frame should be, whatever becomes of it.
        let told = told.map_or_else(|| self.end.checksum(self.checksum, header, source), Ok)?;
        self.frames += 1;
        if self.config.cut_after_frames.is_some_and(|limit| self.frames > limit) {
            return Err(PathError::Closed);
        }
        if self.config.stall_at_frame == Some(self.frames) {
            self.sleep(Duration::from_millis(self.config.stall_ms))?;
        }
        let fate = self.draw();
        self.sleep(fate.delay)?;
        let mut source = source.clone();
        if fate.corrupt.is_some() || fate.hold {
            source = Copied::of(&*source, &header.span, fate.corrupt)?;
        }
        if fate.hold && self.held.is_none() {
            self.held = Some((header.clone(), source, told));
            return Ok(told);
        }
        if !fate.drop {
            self.end.send(header, &source, Some(told))?;
        }
        if let Some((header, source, told)) = self.held.take() {
            self.end.send(&header, &source, Some(told))?;
        }
        Ok(told)
    }
}

impl Faulty {
    /// Draws as often for every frame, so that a fate does not depend on the ones before.
    fn draw(&mut self) -> Fate {
        let mut hit = |probability: f64| self.random.f64() < probability;
        let (delay, drop) = (hit(self.config.delay_probability), hit(self.config.drop_probability));
        let (corrupt, hold) = (hit(self.config.corrupt_probability), hit(self.config.reorder_probability));
        let delay_ms = self.random.u64(0..=self.config.max_delay_ms.min(60_000));
        let place = self.random.u64(..);
        Fate {
            delay: if delay { Duration::from_millis(delay_ms) } else { Duration::ZERO },
            drop,
            corrupt: corrupt.then_some(place),
            hold,
        }
    }

    fn sleep(&self, duration: Duration) -> Result<(), PathError> {
        let until = Instant::now() + duration;
        while !self.closed.load(Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
        Err(PathError::Closed)
    }
}

// === impl Copied ===

impl Copied {
    /// What `source` has of `span`; the bit at `corrupt`, counted around its end, is wrong.
    fn of(source: &dyn KvSource, span: &KvSpan, corrupt: Option<u64>) -> Result<Arc<Self>, PathError> {
        let mut bytes = Vec::new();
        let copied = source.read(span, &mut |pieces| {
            bytes.extend(pieces.iter().flat_map(|piece| piece.iter().copied()));
            Ok(())
        });
        copied.map_err(PathError::Unreadable)?;
        if let Some(place) = corrupt {
            let bit = place % (bytes.len() as u64 * 8).max(1);
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(Arc::new(Self(bytes)))
    }
}

impl KvSource for Copied {
    fn read(
        &self,
        _span: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        use_bytes(&[IoSlice::new(&self.0)])
    }
}
