//! The corpus and what is near it through the fuzzer's targets, without a fuzzer: tests of the rooms include this.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    time::{Duration, Instant},
};

/// No input may take longer, on however busy a machine: what is not bounded takes minutes.
const LONGEST: Duration = Duration::from_secs(20);
/// Inputs are this long at least, and twice as long as the longest of the corpus.
const LEAST_BYTES: usize = 4096;
/// Pieces of text forms that bytes at random seldom make.
const WORDS: &str = "\" { } [ ] ( * | \0 \n -1 1e999 18446744073709551616 null \\ud800 {1,9999}";

/// What is fed any bytes, and panics at what must not be.
type Target = fn(&[u8]);

/// Runs each target on its corpus, and for a while on mutations of it: seconds in every run, a minute with
/// `BATON_COUNTS=full`, or `BATON_FUZZ_SECONDS`. The same mutations each time, as far as time allows.
pub fn hold(targets: &[(&str, Target)]) {
    let full = std::env::var("BATON_COUNTS").is_ok_and(|value| value == "full");
    let said = std::env::var("BATON_FUZZ_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    let time = Duration::from_secs(said.unwrap_or(if full { 60 } else { 2 }));
    for (name, target) in targets {
        let corpus = corpus(name);
        corpus.iter().for_each(|bytes| run(name, *target, bytes));
        let longest = corpus.iter().map(Vec::len).max().unwrap_or(0);
        let (mut random, begun, mut inputs) = (fastrand::Rng::with_seed(7), Instant::now(), 0);
        while begun.elapsed() < time {
            run(name, *target, &mutate(&mut random, &corpus, LEAST_BYTES.max(2 * longest)));
            inputs += 1;
        }
        println!("{name}: {inputs} inputs near {} of the corpus", corpus.len());
    }
}

/// The inputs of a target that are kept, which the fuzzer must know too.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|place| place.join("fuzz"));
    let fuzz = above.find(|place| place.join("corpus").is_dir()).unwrap();
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("\"fuzz_targets/{target}.rs\"")), "{target} is no target of fuzz/");
    let files = std::fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no corpus");
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn run(name: &str, target: Target, bytes: &[u8]) {
    let begun = Instant::now();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        eprintln!("{name} fails on b\"{}\"", bytes.escape_ascii());
        resume_unwind(panic);
    }
    assert!(begun.elapsed() < LONGEST, "{name} took {:?} on b\"{}\"", begun.elapsed(), bytes.escape_ascii());
}

/// Flips, overwrites, cuts, grows, joins, or takes a piece of another input or of what forms are made of.
fn mutate(random: &mut fastrand::Rng, corpus: &[Vec<u8>], most: usize) -> Vec<u8> {
    let mut bytes = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..bytes.len() + 1);
        let other = &corpus[random.usize(..corpus.len())];
        match random.u8(..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = random.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.u8(..)),
            4 => bytes.extend_from_slice(other),
            5 => {
                let from = random.usize(..other.len() + 1);
                let to = (from + random.usize(..64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            6 => drop(bytes.drain(at..(at + random.usize(..16)).min(bytes.len()))),
            _ => drop(
                bytes.splice(at..at, random.choice(WORDS.split(' ').collect::<Vec<_>>()).unwrap().bytes()),
            ),
        }
        bytes.truncate(most);
    }
    bytes
}
