//! The corpus and its mutations through the fuzzer's targets, without a fuzzer.

use std::path::Path;

use super::*;

/// Mutated inputs of each target: a share for every run, and many with `BATON_COUNTS=full`.
fn mutations() -> usize {
    if std::env::var("BATON_COUNTS").is_ok_and(|value| value == "full") { 1_000_000 } else { 20_000 }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&directory).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Flips, overwrites, cuts, grows or joins.
fn mutate(random: &mut fastrand::Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..bytes.len() + 1);
        match random.u8(..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = random.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.u8(..)),
            _ => bytes.extend_from_slice(&corpus[random.usize(..corpus.len())]),
        }
        bytes.truncate(4096);
    }
    bytes
}

#[test]
fn the_corpus_and_what_is_near_it() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        corpus.iter().for_each(|bytes| target(bytes));
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..mutations() {
            target(&mutate(&mut random, &corpus));
        }
    }
}

#[test]
fn the_corpus_has_headers_and_greetings_that_are_taken() {
    let headers = corpus("frame_header")
        .iter()
        .filter(|bytes| bytes.first_chunk().is_some_and(|bytes| FrameHeader::decode(bytes).is_ok()))
        .count();
    let taken = |bytes: &Vec<u8>| match Control::decode(&bytes[..]).ok().and_then(|control| control.message) {
        Some(Message::Hello(hello)) => {
            check_hello(&node("p"), &TransferConfig::default(), &TRANSPORTS, &hello).is_ok()
        }
        _ => false,
    };
    assert!(headers > 0 && corpus("handshake").iter().any(taken));
}
