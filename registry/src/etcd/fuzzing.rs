//! What a fuzzer feeds: any bytes as what etcd holds, which must not panic.
//! Built for tests and for cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use baton_protocol::NodeInfo;

use super::view::{Entry, View};

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("members", members)];

/// Writes, deletions and lists of keys, with a zero between them: `+name=value` is written, `-name` deleted,
/// `=name=value` all that a list has, and `~name=value` comes late. Whoever is a member has the name of its key,
/// and is the same when written again.
pub fn members(bytes: &[u8]) {
    let mut view = View::default();
    let mut values = 0;
    for (part, now) in bytes.split(|byte| *byte == 0).zip(1_i64..) {
        let Some((kind, part)) = part.split_first() else { continue };
        let mut parts = part.splitn(2, |byte| *byte == b'=');
        let Some(Ok(name)) = parts.next().map(std::str::from_utf8) else { continue };
        let value = parts.next();
        values += u64::from(value.is_some());
        match kind {
            b'-' => view.apply(&Entry { name, value: None, revision: now }),
            b'=' => view.list(now, [Entry { name, value, revision: now }]),
            b'~' => view.apply(&Entry { name, value, revision: now / 2 }),
            _ => view.apply(&Entry { name, value, revision: now }),
        }
        view.advance(now);
        assert_eq!(view.revision(), now);
        for (id, info) in view.members() {
            assert_eq!(*id, info.id);
            let written = serde_json::to_vec(info).expect("a node is JSON");
            assert_eq!(serde_json::from_slice::<NodeInfo>(&written).expect("and is read again"), *info);
        }
    }
    // A list may say the same value, or none, again.
    assert!(view.members().len() as u64 <= values, "a member came of nothing");
}
