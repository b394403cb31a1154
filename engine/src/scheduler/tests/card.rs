//! Steps as a card of the H100's kind has them with an 8B model: few tokens cost as much as reading the
//! weights, more by the token, and by what they attend to.

use super::*;

/// Numbers in [0, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() * (high - low) as f64) as usize
    }
}

fn seconds(plan: &Plan) -> f64 {
    let tokens: usize = plan.chunks.iter().map(|chunk| chunk.tokens.len()).sum();
    let attention = |chunk: &Chunk| {
        let context = (chunk.tokens.start + chunk.tokens.end) as f64 / 2.0;
        context * if chunk.tokens.len() == 1 { 33e-9 } else { 0.9e-9 * chunk.tokens.len() as f64 }
    };
    (tokens as f64 * 22.5e-6).max(5.5e-3) + plan.chunks.iter().map(attention).sum::<f64>()
}

/// Prompts of 512 to 8,192 tokens come at two a second, answers of 64 to 512 tokens beside them.
/// Returns the seconds of each step with an answer, once costs are known, and how many answers ended.
fn run(itl_ms: u64, seed: u64) -> (Vec<f64>, usize) {
    let config = SchedulerConfig { max_batch_tokens: 8192, ..SchedulerConfig::default() };
    let mut f = fixture_with(60_000, config);
    let (mut numbers, mut clock, mut next) = (Numbers(seed), 0.0, 0.0);
    let (mut times, mut ends, mut ended) = (Vec::new(), BTreeMap::new(), 0);
    for _ in 0..5_000 {
        while next <= clock {
            let prompt = numbers.between(512, 8_192);
            let key = f.answer_within(prompt, itl_ms);
            ends.insert(key, prompt + numbers.between(64, 512));
            next += (1.0 - numbers.next()).ln() / -2.0;
        }
        let plan = f.scheduler.plan(false);
        if plan.chunks.is_empty() {
            clock = next;
            continue;
        }
        f.scheduler.begins(&plan, f.now);
        let time = seconds(&plan) * (0.92 + 0.16 * numbers.next());
        clock += time;
        f.now += Duration::from_secs_f64(time);
        f.scheduler.learn(&plan, Duration::from_secs_f64(time));
        if clock > 2.0 && plan.chunks.iter().any(|chunk| chunk.tokens.len() == 1) {
            times.push(time);
        }
        for chunk in plan.chunks {
            let mut sequence = f.scheduler.take(chunk.key).unwrap();
            sequence.computed_to(chunk.tokens.end, &f.pool);
            if chunk.wants_logits {
                sequence.tokens.push(7);
            }
            if sequence.tokens.len() < ends[&chunk.key.0] {
                f.scheduler.run(sequence);
            } else {
                ended += 1;
            }
        }
        f.readers.iter_mut().for_each(|reader| while reader.try_recv().is_ok() {});
    }
    (times, ended)
}

#[test]
fn steps_with_long_prompts_keep_what_readers_were_promised() {
    for (seed, itl_ms) in [(1, 25), (2, 25), (3, 15), (4, 15)] {
        let (mut times, ended) = run(itl_ms, seed);
        times.sort_by(f64::total_cmp);
        let late = times.iter().filter(|time| **time > itl_ms as f64 / 1e3).count();
        assert!(late * 100 <= 3 * times.len(), "{late} of {} steps beyond {itl_ms} ms", times.len());
        // And prompts come in: beside answers, most of a step is theirs.
        assert!(ended >= 40, "{ended} answers of {itl_ms} ms ended");
    }
}
