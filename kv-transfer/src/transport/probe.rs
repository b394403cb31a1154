//! The frames that measure a path while its session opens: real bytes into
//! real memory, before anything else travels.

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use baton_protocol::{FrameHeader, HandoffId, KvSink, KvSource, KvSpan, RequestId};
use parking_lot::Mutex;

use super::{FrameReceiver, FrameSender, PathError, Placement};

/// The name under which probes travel; no request has it.
pub(crate) const PROBE: HandoffId = HandoffId { request: RequestId(0), attempt: u32::MAX, leg: u32::MAX };

/// The first warms the path up and does not count.
const FRAMES: u32 = 4;

/// Bytes without meaning, or room for them.
pub(crate) struct Noise(Mutex<Box<[u8]>>);

/// Sends the probe frames of `bytes` bytes each.
///
/// # Errors
/// When the path breaks.
pub fn send(path: &mut dyn FrameSender, bytes: u32) -> Result<(), PathError> {
    let source: Arc<dyn KvSource> = noise(bytes);
    let span = KvSpan { layers: 0..1, tokens: 0..1, heads: 0..1 };
    for seq in 0..FRAMES {
        let header = FrameHeader { handoff: PROBE, seq, span: span.clone(), bytes };
        path.begin(&header, &source)?;
        path.send(&header, &source, None)?;
    }
    Ok(())
}

/// So many bytes.
pub(crate) fn noise(bytes: u32) -> Arc<Noise> {
    let noise = (0..bytes).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    Arc::new(Noise(Mutex::new(noise)))
}

/// Receives them; bytes a second.
///
/// # Errors
/// When the path breaks, or what comes is not a whole probe.
pub fn measure(path: &mut dyn FrameReceiver, bytes: u32) -> Result<Option<f64>, PathError> {
    let sink: Arc<dyn KvSink> = Arc::new(Noise(Mutex::new(vec![0; bytes as usize].into_boxed_slice())));
    let mut warm = None;
    for seq in 0..FRAMES {
        let received = path.recv(&mut |_| Placement::Land(sink.clone()))?;
        let header = &received.header;
        if (header.handoff, header.seq, header.bytes) != (PROBE, seq, bytes) || !received.intact {
            return Err(PathError::Unavailable { reason: "the probe arrived damaged".to_owned() });
        }
        warm.get_or_insert_with(Instant::now);
    }
    let seconds = warm.map_or(f64::INFINITY, |warm| warm.elapsed().as_secs_f64());
    Ok(Some(f64::from(FRAMES - 1) * f64::from(bytes) / seconds.max(1e-9)))
}

// === impl Noise ===

impl KvSource for Noise {
    fn read(
        &self,
        _: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        use_bytes(&[IoSlice::new(&self.0.lock())])
    }
}

impl KvSink for Noise {
    fn write(
        &self,
        _: &KvSpan,
        fill: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        fill(&mut [IoSliceMut::new(&mut self.0.lock())])
    }

    fn tokens(&self) -> Range<u32> {
        0..1
    }

    fn quarantine(&self) {}
}
