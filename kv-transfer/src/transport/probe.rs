//! The frame that measures a path: real bytes that land in the bit bucket.

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use baton_protocol::{FrameHeader, HandoffId, KvSource, KvSpan, RequestId};

use super::Crc;

/// The name under which probes travel; no request has it.
pub const PROBE: HandoffId = HandoffId { request: RequestId(0), attempt: u32::MAX, leg: u32::MAX };

/// Bytes without meaning.
struct Noise(Box<[u8]>);

/// A probe frame of `bytes` bytes.
pub fn frame(bytes: u32) -> (FrameHeader, Arc<dyn KvSource>) {
    let noise: Box<[u8]> = (0..bytes).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut crc = Crc::new();
    crc.update(&noise);
    let header = FrameHeader {
        handoff: PROBE,
        seq: 0,
        span: KvSpan { layers: 0..1, tokens: 0..1 },
        heads: (0, 1),
        bytes,
        crc: crc.value(),
    };
    (header, Arc::new(Noise(noise)))
}

impl KvSource for Noise {
    fn read(
        &self,
        _: &KvSpan,
        use_bytes: &mut dyn FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        use_bytes(&[IoSlice::new(&self.0)])
    }
}
