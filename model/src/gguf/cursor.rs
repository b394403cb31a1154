//! Reads numbers and strings, never past the end and never more than a limit.

use std::io::Read;

use crate::error::FormatError;

/// The longest key or tensor name; ggml itself allows 64 bytes for names.
const MAX_NAME_BYTES: u64 = 1 << 10;
/// The longest string; chat templates are the longest in practice.
const MAX_STRING_BYTES: u64 = 1 << 23;
/// The longest header; vocabularies of 256 Ki tokens take 20 MiB.
const MAX_HEADER_BYTES: u64 = 1 << 28;

/// A place in the header of a file of known size.
pub struct Cursor<R> {
    source: R,
    offset: u64,
    end: u64,
}

// === impl Cursor ===

impl<R: Read> Cursor<R> {
    pub fn new(source: R, file_bytes: u64) -> Self {
        Self { source, offset: 0, end: file_bytes }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Fails unless the file can hold `count` items of at least `item_bytes` from here on.
    pub fn expect_room(&self, what: &'static str, count: u64, item_bytes: u64) -> Result<(), FormatError> {
        match count.checked_mul(item_bytes) {
            Some(bytes) if bytes <= self.end - self.offset => Ok(()),
            _ => Err(FormatError::Truncated { what, end: self.end }),
        }
    }

    fn advance(&mut self, what: &'static str, bytes: u64) -> Result<(), FormatError> {
        self.expect_room(what, bytes, 1)?;
        self.offset += bytes;
        if self.offset > MAX_HEADER_BYTES {
            return Err(FormatError::Limit { what: "header", found: self.offset, limit: MAX_HEADER_BYTES });
        }
        Ok(())
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        self.advance(what, N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A short string.
    pub fn name(&mut self, what: &'static str) -> Result<String, FormatError> {
        self.limited_string(what, MAX_NAME_BYTES)
    }

    pub fn string(&mut self, what: &'static str) -> Result<String, FormatError> {
        self.limited_string(what, MAX_STRING_BYTES)
    }

    fn limited_string(&mut self, what: &'static str, limit: u64) -> Result<String, FormatError> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(FormatError::Limit { what, found, limit });
        }
        self.advance(what, found)?;
        let mut bytes = vec![0; found as usize];
        self.source.read_exact(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| FormatError::NotUtf8 { what })
    }
}
