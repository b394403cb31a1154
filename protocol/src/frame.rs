//! One KV frame on a data path: a fixed header, then the span's bytes. Their
//! checksum travels beside the header or behind the bytes, as the path has it.

use crate::{HandoffId, KvSpan, RequestId};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"BTN1";

/// Bytes of an encoded header.
pub const HEADER_BYTES: usize = 80;

/// Header of one frame, fixed size, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which handoff.
    pub handoff: HandoffId,
    /// Place in the handoff's order, from 0.
    pub seq: u32,
    /// What the payload holds.
    pub span: KvSpan,
    /// Bytes of the payload.
    pub bytes: u32,
}

/// Why a header was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("bad magic {found:02x?}")]
    Magic {
        /// What was there.
        found: [u8; 4],
    },
    /// Ranges reversed or empty, or reserved bytes set.
    #[error("malformed {field}")]
    Malformed {
        /// Which field.
        field: &'static str,
    },
    /// The header's own checksum is wrong: the stream cannot be trusted further.
    #[error("header checksum {found:08x} instead of {expected:08x}")]
    Checksum {
        /// Carried by the header.
        found: u32,
        /// Computed from it.
        expected: u32,
    },
}

impl FrameHeader {
    /// Layout: magic 4, request 16, attempt 4, leg 4, seq 4, layers 4+4,
    /// tokens 4+4, heads 2+2, bytes 4, zero 20, header check 4.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..20].copy_from_slice(&self.handoff.request.to_bytes());
        let words = [
            self.handoff.attempt,
            self.handoff.leg,
            self.seq,
            self.span.layers.start,
            self.span.layers.end,
            self.span.tokens.start,
            self.span.tokens.end,
            half(self.span.heads.start) | half(self.span.heads.end) << 16,
            self.bytes,
        ];
        for (place, word) in out[20..56].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let check = header_check(&out[..76]);
        out[76..80].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a header. The caller still checks the span against its session's limits.
    ///
    /// # Errors
    /// When the bytes are not a well-formed header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let mut magic = [0; 4];
        magic.copy_from_slice(&bytes[0..4]);
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (found, expected) = (word(76), header_check(&bytes[..76]));
        if found != expected {
            return Err(FrameError::Checksum { found, expected });
        }
        if bytes[56..76].iter().any(|&byte| byte != 0) {
            return Err(FrameError::Malformed { field: "reserved" });
        }
        let request =
            RequestId::from_bytes(&bytes[4..20]).ok_or(FrameError::Malformed { field: "request" })?;
        let heads = word(48) & 0xffff..word(48) >> 16;
        let span = KvSpan { layers: word(32)..word(36), tokens: word(40)..word(44), heads };
        if span.layers.is_empty() {
            return Err(FrameError::Malformed { field: "layers" });
        }
        if span.tokens.is_empty() {
            return Err(FrameError::Malformed { field: "tokens" });
        }
        if span.heads.is_empty() {
            return Err(FrameError::Malformed { field: "heads" });
        }
        let handoff = HandoffId { request, attempt: word(20), leg: word(24) };
        Ok(Self { handoff, seq: word(28), span, bytes: word(52) })
    }
}

/// A number of heads, of which no model that is accepted has more than 1,024.
fn half(heads: u32) -> u32 {
    heads.min(0xffff)
}

/// 32 bits of blake3: headers are few and small, no second checksum crate is worth it here.
fn header_check(bytes: &[u8]) -> u32 {
    let hash = blake3::hash(bytes);
    let short = hash.as_bytes();
    u32::from_le_bytes([short[0], short[1], short[2], short[3]])
}

/// Digest over the frames of a handoff: equal on both sides exactly when the
/// same payloads were sent and placed under the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Adds a frame; the order of adding does not matter.
    pub fn add(&mut self, seq: u32, crc: u32) {
        let word = (u64::from(seq) << 32 | u64::from(crc)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = self.0.wrapping_add(mixed ^ mixed >> 31);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = FrameHeader> {
        (
            any::<u128>(),
            any::<[u32; 4]>(),
            0..100u32,
            1..100u32,
            0..100_000u32,
            1..4096u32,
            0..64u32,
            1..64u32,
        )
            .prop_map(|(request, w, l, ln, t, tn, h, hn)| FrameHeader {
                handoff: HandoffId { request: RequestId(request), attempt: w[0], leg: w[1] },
                seq: w[2],
                span: KvSpan { layers: l..l + ln, tokens: t..t + tn, heads: h..h + hn },
                bytes: w[3],
            })
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire(header in header()) {
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_flipped_bit_is_seen(header in header(), bit in 0..HEADER_BYTES * 8) {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameHeader::decode(&bytes).is_err());
        }
    }
}
