//! What a fuzzer feeds: any bytes, which must not panic. Built for tests and for cargo-fuzz only (`fuzz/`).

#[cfg(test)]
mod tests;

use std::fmt::Debug;

use prost::Message;

use crate::{
    Event, Failure, HandoffId, KvShape, PrefixChanges, Request,
    wire::{self, Malformed},
};

/// A target of the fuzzer.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 1] = [("messages", messages)];

/// Messages of peers, the first byte saying which: what is taken means the same when it is sent on.
pub fn messages(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => same(bytes, Request::try_from, |request| wire::Request::from(request)),
        1 => same(bytes, Event::try_from, |event| wire::GenerateDown::from(event.clone())),
        2 => same(
            bytes,
            |changes: wire::PrefixChanges| PrefixChanges::try_from(&changes),
            |changes| {
                let parts = wire::PrefixChanges::parts(changes, false);
                assert_eq!(parts.last().map(|part| part.number), Some(changes.number));
                let of =
                    |part: fn(&wire::PrefixChanges) -> &[u8]| parts.iter().flat_map(part).copied().collect();
                wire::PrefixChanges {
                    after: changes.after,
                    number: changes.number,
                    whole: false,
                    added: of(|part| &part.added),
                    removed: of(|part| &part.removed),
                }
            },
        ),
        3 => {
            same(bytes, |shape: wire::KvShape| KvShape::try_from(&shape), |shape| wire::KvShape::from(shape));
        }
        4 => same(bytes, HandoffId::try_from, |id| wire::HandoffId::from(*id)),
        _ => same(
            bytes,
            |failure: wire::Failure| Ok::<_, Malformed>(Failure::from(failure)),
            |failure| wire::Failure::from(failure.clone()),
        ),
    }
}

/// Reads a message, writes what it means, and reads that. Compared as shown, since a NaN is not equal to itself;
/// a zero loses its sign, since it is not sent.
fn same<W: Message + Default, T: Debug>(
    bytes: &[u8],
    read: impl Fn(W) -> Result<T, Malformed>,
    write: impl Fn(&T) -> W,
) {
    let Ok(Ok(meant)) = W::decode(bytes).map(&read) else { return };
    let again = W::decode(&*write(&meant).encode_to_vec()).map(read);
    let again = again.expect("what was written is a message").expect("what was taken is taken again");
    let shown = |message: &T| format!("{message:?}").replace("-0.0", "0.0");
    assert_eq!(shown(&meant), shown(&again));
}
