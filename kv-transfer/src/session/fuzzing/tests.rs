#[path = "../../../../fuzz/near.rs"]
mod near;

use super::*;

#[test]
fn the_corpus_and_what_is_near_it() {
    near::hold(&TARGETS);
}

#[test]
fn the_corpus_has_headers_and_greetings_that_are_taken() {
    let headers = near::corpus("frame_header")
        .iter()
        .filter(|bytes| bytes.first_chunk().is_some_and(|bytes| FrameHeader::decode(bytes).is_ok()))
        .count();
    let taken = |bytes: &Vec<u8>| match Control::decode(&bytes[..]).ok().and_then(|control| control.message) {
        Some(Message::Hello(hello)) => {
            check_hello(&node("p"), &TransferConfig::default(), &TRANSPORTS, &hello).is_ok()
        }
        _ => false,
    };
    assert!(headers > 0 && near::corpus("handshake").iter().any(taken));
}
