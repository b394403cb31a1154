//! What a fuzzer feeds: each function takes any bytes, must not panic, and
//! checks what must hold of whatever it makes of them. Built for tests and for
//! cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use std::path::Path;

use crate::{
    measure::Events,
    traffic::{Piece, TraceFormat},
};

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 2] = [("event_stream", event_stream), ("trace", trace)];

/// Sessions that are read of a trace.
const SESSIONS: usize = 16;

/// A server's events: where what it sends is cut changes nothing. The first byte says how it is cut.
pub fn event_stream(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let mut found = Vec::new();
    let mut events = Events::default();
    for piece in bytes.chunks(1 + usize::from(cut % 32)) {
        events.push(piece);
        while let Some(data) = events.next_data() {
            found.push(data.into_owned());
        }
    }
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let expected = lines.filter_map(|line| line.strip_prefix(b"data:"));
    let expected: Vec<_> =
        expected.map(|data| String::from_utf8_lossy(data.trim_ascii()).into_owned()).collect();
    assert_eq!(found, expected);
}

/// A trace in either form: no more sessions than are wanted, and in each something is asked.
pub fn trace(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for format in [TraceFormat::ShareGpt, TraceFormat::Mooncake] {
        let Ok(sessions) = format.read(Path::new("trace"), text, SESSIONS) else { continue };
        assert!(sessions.len() <= SESSIONS);
        for turn in sessions.iter().flat_map(|session| &session.turns) {
            assert!(!turn.said.is_empty() && turn.output_tokens > 0);
            let drawn = |piece: &Piece| matches!(piece, Piece::Drawn { tokens: 0, .. });
            assert!(!turn.said.iter().any(drawn), "a piece of nothing");
        }
        assert!(sessions.iter().all(|session| !session.turns.is_empty()));
    }
}
