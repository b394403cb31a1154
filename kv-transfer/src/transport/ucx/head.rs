//! What a message says beside its bytes. Lengths are exact; whoever does not
//! know the session's secret is not heard.

use baton_protocol::frame::HEADER_BYTES;

use crate::session::same_secret;

const BARE_BYTES: usize = 32 + 1 + 8 + 4;
const WHOLE_BYTES: usize = BARE_BYTES + HEADER_BYTES;

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The receiver is here.
    Hello,
    /// The sender has heard it.
    Taken,
    /// Bytes of a frame.
    Step,
    /// Nothing comes after the steps before this number.
    Bye,
}

/// The head of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is for.
    pub kind: Kind,
    /// Its place among the steps of the path.
    pub number: u64,
    /// With the last step of a frame: the checksum of its payload.
    pub told: u32,
    /// The frame that begins with this step.
    pub frame: Option<[u8; HEADER_BYTES]>,
}

// === impl Kind ===

impl Kind {
    const ALL: [Self; 4] = [Self::Hello, Self::Taken, Self::Step, Self::Bye];
}

// === impl Head ===

impl Head {
    /// As it travels.
    pub fn encode(&self, secret: &[u8; 32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(WHOLE_BYTES);
        out.extend_from_slice(secret);
        out.push(self.kind as u8);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.told.to_le_bytes());
        out.extend_from_slice(self.frame.as_ref().map_or(&[], |frame| frame));
        out
    }

    /// None when the bytes are no head, or of somebody else.
    pub fn decode(bytes: &[u8], secret: &[u8; 32]) -> Option<Self> {
        if bytes.len() != BARE_BYTES && bytes.len() != WHOLE_BYTES {
            return None;
        }
        let (theirs, rest) = bytes.split_first_chunk()?;
        let (kind, rest) = rest.split_first()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (told, frame) = rest.split_first_chunk()?;
        let kind = *Kind::ALL.get(usize::from(*kind))?;
        let frame = frame.first_chunk().copied();
        let known = same_secret(theirs, secret);
        let (number, told) = (u64::from_le_bytes(*number), u32::from_le_bytes(*told));
        known.then_some(Self { kind, number, told, frame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written_or_not_at_all() {
        for kind in Kind::ALL {
            for frame in [None, Some([7; HEADER_BYTES])] {
                let head = Head { kind, number: u64::MAX - 1, told: 9 << 24, frame };
                let bytes = head.encode(&[3; 32]);
                assert_eq!(Head::decode(&bytes, &[3; 32]), Some(head));
                assert_eq!(Head::decode(&bytes, &[4; 32]), None, "another secret");
                for len in (0..bytes.len()).filter(|len| *len != BARE_BYTES) {
                    assert_eq!(Head::decode(&bytes[..len], &[3; 32]), None, "{len} bytes");
                }
                let mut unknown = bytes;
                unknown[32] = Kind::ALL.len() as u8;
                assert_eq!(Head::decode(&unknown, &[3; 32]), None);
            }
        }
    }
}
