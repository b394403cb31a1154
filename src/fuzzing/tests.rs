#[path = "../../fuzz/near.rs"]
mod near;

use super::*;

#[test]
fn the_corpus_and_what_is_near_it() {
    near::hold(&TARGETS);
}
