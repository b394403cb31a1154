//! What a fuzzer feeds. Built for tests and for cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use crate::Span;

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("traceparent", traceparent)];

/// A caller's header: what is passed on is as it came, and short, or nothing; and is read as it was.
pub fn traceparent(bytes: &[u8]) {
    let Ok(words) = std::str::from_utf8(bytes) else { return };
    let passed = Span::of_call(String::new, Some(words)).parent();
    assert!(passed.is_empty() || passed == words && passed.len() <= 256);
    assert_eq!(Span::of_call(String::new, Some(&passed)).parent(), passed);
}
