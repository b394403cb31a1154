#[path = "../../../fuzz/near.rs"]
mod near;

use super::*;

#[test]
fn the_corpus_and_what_is_near_it() {
    near::hold(&TARGETS);
}

#[test]
fn the_corpus_has_messages_that_are_taken() {
    let request = |bytes: &Vec<u8>| {
        bytes[0] == 0 && wire::Request::decode(&bytes[1..]).is_ok_and(|read| Request::try_from(read).is_ok())
    };
    assert!(near::corpus("messages").iter().any(request));
}
