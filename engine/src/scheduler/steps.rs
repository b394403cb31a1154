//! What steps cost, learnt from those that ran.

use std::time::Duration;

use baton_protocol::StepModel;

use super::{Chunk, fit::Fit};

/// The lines through steps with prompts, and through steps in which answers go on.
#[derive(Debug)]
pub(crate) struct Steps {
    prefill: Fit,
    decode: Fit,
    late: Late,
}

/// How much longer than foretold steps of prompts and answers take at worst, as a factor that
/// [`ON_TIME`] of them stay below.
#[derive(Debug)]
struct Late(f64);

const ON_TIME: f64 = 0.995;
/// How far one step moves the factor, and where it begins.
const MOVED: f64 = 0.02;
const LATE: f64 = 1.1;
/// However late steps are, what is late is not foretold better by doing less.
const LATEST: f64 = 1.5;

/// Prompts are believed to cost by the token, answers by the step, until steps of
/// different sizes have told.
const PROMPTS: [f64; 3] = [8.0, 1.0, 8.0];
const ANSWERS: [f64; 3] = [1.0, 4.0, 16.0];

/// Units of one kind in a step, and the sum of their contexts.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    units: f64,
    contexts: f64,
}

// === impl Steps ===

impl Default for Steps {
    fn default() -> Self {
        Self { prefill: Fit::new(PROMPTS), decode: Fit::new(ANSWERS), late: Late(LATE) }
    }
}

impl Steps {
    /// A step that computed these chunks took `time`. Where prompts run beside
    /// answers, what the answers add by themselves is taken off first.
    pub fn learn(&mut self, chunks: &[Chunk], time: Duration) {
        let (mut prompts, mut answers) = (Share::default(), Share::default());
        for chunk in chunks {
            let (start, end) = (chunk.tokens.start as f64, chunk.tokens.end as f64);
            let tokens = end - start;
            let share = if tokens > 1.0 { &mut prompts } else { &mut answers };
            share.units += tokens;
            share.contexts += tokens * (start + end + 1.0) / 2.0;
        }
        let seconds = time.as_secs_f64();
        if prompts.units == 0.0 {
            self.decode.learn(answers.units, answers.contexts, seconds);
        } else if answers.units == 0.0 {
            self.prefill.learn(prompts.units, prompts.contexts, seconds);
        } else if let Some(cost) = self.decode.cost() {
            let beside = cost.seconds(0.0, answers.units, answers.contexts);
            if let Some(cost) = self.prefill.cost() {
                self.late.learn(seconds / (beside + cost.seconds(1.0, prompts.units, prompts.contexts)));
            }
            self.prefill.learn(prompts.units, prompts.contexts, seconds - beside);
        }
    }

    /// Steps of prompts and answers that are foretold to take a time take so many times as long at worst.
    pub fn late(&self) -> f64 {
        self.late.0
    }

    /// What has been learnt so far.
    pub fn model(&self) -> StepModel {
        StepModel { prefill: self.prefill.cost(), decode: self.decode.cost() }
    }
}

// === impl Late ===

impl Late {
    /// A step took so many times as long as foretold.
    fn learn(&mut self, ratio: f64) {
        let moved = if ratio > self.0 { ON_TIME } else { ON_TIME - 1.0 };
        self.0 = (self.0 + MOVED * moved).clamp(1.0, LATEST);
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::StepCost;

    use super::*;

    /// Chunks that end at these tokens of their sequences.
    fn chunks(spans: &[(usize, usize)]) -> Vec<Chunk> {
        let chunk = |(at, &(start, end)): (usize, &(usize, usize))| Chunk {
            key: (at as u64, 0),
            tokens: start..end,
            wants_logits: true,
        };
        spans.iter().enumerate().map(chunk).collect()
    }

    #[test]
    fn prompts_beside_answers_are_charged_their_own_time() {
        let mut steps = Steps::default();
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        for answers in 1..40usize {
            let going_on: Vec<_> = (0..answers).map(|at| (100 + at, 101 + at)).collect();
            steps.learn(&chunks(&going_on), ms(5.0 + 2.0 * answers as f64));
            let prompt = 10 + answers * 13 % 300;
            let mixed: Vec<_> = going_on.into_iter().chain([(0, prompt)]).collect();
            steps.learn(&chunks(&mixed), ms(5.0 + 2.0 * answers as f64 + 0.5 * prompt as f64));
        }
        let StepModel { prefill: Some(prefill), decode: Some(decode) } = steps.model() else {
            panic!("{steps:?}")
        };
        let near = |cost: StepCost, units: f64, context: f64, right: f64| {
            let seconds = cost.seconds(1.0, units, units * context);
            assert!((seconds - right).abs() < 0.05 * right, "{cost:?}: {seconds}, not {right}");
        };
        near(decode, 10.0, 106.0, 0.025);
        near(prefill, 200.0, 100.0, 0.105);
    }

    #[test]
    fn few_steps_are_later_than_the_factor_says() {
        let mut late = Late(LATE);
        let ratio = |at: u32| 0.9 + 0.4 * (f64::from(at) * 0.618_034).fract();
        let beyond = (0..20_000).filter(|at| {
            let is_beyond = ratio(*at) > late.0;
            late.learn(ratio(*at));
            *at >= 10_000 && is_beyond
        });
        assert!((10..150).contains(&beyond.count()), "{late:?}");
        (0..200).for_each(|_| late.learn(9.0));
        assert!(late.0 <= LATEST);
    }
}
