//! Split equals local, token for token, on the real model, under a faulty data path.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    counts::counts,
    golden::model,
    sandbox::{Cluster, Outcome, Plan, complete},
};

const COMMON: &str = "cluster = \"parity\"\nmodel = \"smollm2-135m\"\n[frontend]\nlisten = \"127.0.0.1:0\"\n";

const FAULTS: &str = r#"
[transfer]
transport = "tcp"
frame_bytes = 131072

[transfer.faults]
seed = 11
delay_probability = 0.3
max_delay_ms = 3
drop_probability = 0.05
corrupt_probability = 0.05
reorder_probability = 0.1
"#;

/// A small generator, so that the requests are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Prompt lengths of 1 to 1,800 with a mean near 200: many short, few long.
fn prompt_tokens(random: &mut Random) -> usize {
    match random.below(20) {
        0 => 600 + random.below(1200) as usize,
        1..=6 => 100 + random.below(300) as usize,
        _ => 1 + random.below(100) as usize,
    }
}

/// A request of any kind, and its prompt; some begin like `earlier` ones.
pub fn request(random: &mut Random, earlier: &[Vec<u32>]) -> (Value, Vec<u32>) {
    let vocab = model().text.vocab_tokens() as u64 - 100;
    // A third of the prompts begin like an earlier one: prefix hits.
    let mut prompt = match earlier.len() as u64 {
        0 => Vec::new(),
        count if random.below(3) == 0 => {
            let other = &earlier[random.below(count) as usize];
            other[..random.below(other.len() as u64 + 1) as usize].to_vec()
        }
        _ => Vec::new(),
    };
    let more = prompt_tokens(random).min(1800 - prompt.len().min(1799));
    prompt.extend((0..more).map(|_| 100 + random.below(vocab) as u32));
    let greedy = random.below(2) == 0;
    let body = json!({
        "model": "smollm2-135m", "prompt": prompt, "stream": true, "n": 1 + random.below(3),
        "max_tokens": 1 + random.below(24), "temperature": if greedy { 0.0 } else { 0.9 },
        "top_p": if random.below(2) == 0 { 1.0 } else { 0.9 }, "top_k": if random.below(2) == 0 { 0 } else { 40 },
        "seed": random.below(1 << 40), "presence_penalty": if random.below(4) == 0 { 0.5 } else { 0.0 },
        "logprobs": if random.below(4) == 0 { json!(2) } else { Value::Null },
    });
    (body, prompt)
}

#[tokio::test(flavor = "multi_thread")]
async fn split_and_local_give_identical_answers() {
    compare("", counts().parity_requests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_do_with_weights_in_bf16_and_in_reference_precision() {
    for engine in ["weights = \"bf16\"", "precision = \"reference\""] {
        compare(engine, counts().parity_requests_of_forms).await;
    }
}

/// Sends the same to a split cluster and to a local one, both with these settings of the engine.
async fn compare(engine: &str, requests: usize) {
    let settings = format!("{COMMON}\n[engine]\n{engine}\n");
    let local = Cluster::start_embedded(&settings).await;
    let split = Cluster::start(&Plan { settings: settings + FAULTS, prefill: 2, decode: 1 }).await;
    let mut random = Random(2026);
    let mut earlier = Vec::new();
    for index in 0..requests {
        let (body, prompt) = request(&mut random, &earlier);
        earlier.push(prompt);
        // Both at once: an answer must not depend on what else is in the batch either.
        let other = request(&mut random, &earlier).0;
        let (ours, theirs, _) = tokio::join!(
            complete(&split.http, &split.url, &body),
            complete(&local.http, &local.url, &body),
            complete(&split.http, &split.url, &other),
        );
        assert_eq!(theirs.outcome, Outcome::Done, "request {index}: {theirs:?}");
        assert_eq!(ours.outcome, Outcome::Done, "request {index}: {ours:?}");
        assert_eq!((&ours.texts, &ours.reasons), (&theirs.texts, &theirs.reasons), "request {index}: {body}");
    }
    split.wait_until_idle(Duration::from_secs(30)).await;
    local.wait_until_idle(Duration::from_secs(30)).await;
}
