//! Checksums of payloads: both sides use the same kind, agreed at HELLO.

use std::io;

use baton_protocol::{KvSource, KvSpan};
use serde::Deserialize;

/// What guards a payload against damage on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// crc32c, made before a frame leaves and checked when it has landed.
    #[default]
    Crc32c,
    /// Nothing: whatever arrives is taken as right. Headers carry zero.
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
        if self == Self::None {
            return Ok(0);
        }
        let mut crc = self.begin();
        source.read(span, &mut |pieces| {
            pieces.iter().for_each(|piece| crc.update(piece));
            Ok(())
        })?;
        Ok(crc.value())
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

    /// Of all bytes so far.
    pub fn value(&self) -> u32 {
        // The algorithm has 32 bits; the crate's result type serves 64-bit ones too.
        self.0.as_ref().map_or(0, |digest| (digest.finalize() & 0xffff_ffff) as u32)
    }
}
