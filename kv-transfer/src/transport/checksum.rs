//! Checksums of payloads: both sides use the same kind, agreed at HELLO.
//!
//! To sum up bytes costs next to nothing while they are in a core's nearest cache
//! for a copy, and as much as the copy otherwise. So whoever copies goes by steps
//! of [`STEP`], and the checksum is told last.

use std::io::{self, IoSlice, IoSliceMut};

use baton_protocol::{KvSource, KvSpan};
use serde::Deserialize;

/// Bytes that are copied and summed up in one go: the system's way of copying less is slower.
pub const STEP: usize = 8 << 10;

/// What guards a payload against damage on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// crc32c, made while a frame leaves and checked while it lands.
    #[default]
    Crc32c,
    /// Nothing: whatever arrives is taken as right. Zero is told.
    None,
}

/// Running checksum of a payload; zero at all times where there is none.
pub struct Crc(Option<crc_fast::Digest>);

// === impl Checksum ===

impl Checksum {
    /// Its name in config and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::None => "none",
        }
    }

    /// What two sides use that ask for `self` and for one by name: nothing only if both say so.
    pub fn with(self, theirs: &str) -> Self {
        if theirs == Self::None.as_str() { self } else { Self::Crc32c }
    }

    /// Of no bytes yet.
    pub fn begin(self) -> Crc {
        let digest = || crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        Crc((self == Self::Crc32c).then(digest))
    }

    /// Of a span in memory.
    ///
    /// # Errors
    /// When the source does not cover the span.
    pub fn of(self, source: &dyn KvSource, span: &KvSpan) -> io::Result<u32> {
        let mut made = 0;
        source.read(span, &mut |pieces| {
            made = self.of_pieces(pieces);
            Ok(())
        })?;
        Ok(made)
    }

    /// Of pieces, one after the other.
    pub fn of_pieces(self, pieces: &[IoSlice<'_>]) -> u32 {
        let mut crc = self.begin();
        pieces.iter().for_each(|piece| crc.update(piece));
        crc.value()
    }
}

// === impl Crc ===

impl Crc {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.0 {
            digest.update(bytes);
        }
    }

    /// Adds bytes while they are copied, from pieces to pieces of other borders; both have the
    /// same size in all.
    ///
    /// # Errors
    /// `InvalidInput` when `from` is the smaller one.
    pub fn copy(&mut self, from: &[IoSlice<'_>], to: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let mut steps = from.iter().flat_map(|piece| piece.chunks(STEP));
        let mut rest: &[u8] = &[];
        for piece in to {
            let mut at = 0;
            while at < piece.len() {
                if rest.is_empty() {
                    rest = steps.next().ok_or(io::ErrorKind::InvalidInput)?;
                }
                let (now, later) = rest.split_at(rest.len().min(piece.len() - at));
                piece[at..at + now.len()].copy_from_slice(now);
                self.update(&piece[at..at + now.len()]);
                (rest, at) = (later, at + now.len());
            }
        }
        Ok(())
    }

    /// Of all bytes so far.
    pub fn value(&self) -> u32 {
        // The algorithm has 32 bits; the crate's result type serves 64-bit ones too.
        self.0.as_ref().map_or(0, |digest| (digest.finalize() & 0xffff_ffff) as u32)
    }
}
