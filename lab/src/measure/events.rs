//! Server-sent events.

use std::borrow::Cow;

use memchr::memchr;

/// Splits a byte stream into what its `data:` lines hold.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    /// Bytes that were given out.
    read: usize,
    /// Bytes in which no line ends, behind those.
    searched: usize,
}

// === impl Events ===

impl Events {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line's data.
    pub fn next_data(&mut self) -> Option<Cow<'_, str>> {
        loop {
            let from = self.read + self.searched;
            let Some(found) = memchr(b'\n', &self.buffer[from..]) else {
                self.searched = self.buffer.len() - self.read;
                return None;
            };
            let line = self.read..from + found;
            (self.read, self.searched) = (from + found + 1, 0);
            if self.buffer[line.clone()].starts_with(b"data:") {
                let data = self.buffer[line.start + b"data:".len()..line.end].trim_ascii();
                return Some(String::from_utf8_lossy(data));
            }
        }
    }
}
