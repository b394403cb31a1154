use baton_protocol::{KvDtype, KvShape, RequestId, Sampling, Stop};

use super::*;
use crate::{
    ChoiceSpec, Goal, SequenceEvents, SequenceSpec, StartFrom,
    kv::PoolConfig,
    sequence::{Origin, events},
};

mod card;

const PAGE: usize = 4;

struct Fixture {
    scheduler: Scheduler,
    pool: Arc<KvPool>,
    arrivals: u64,
    readers: Vec<SequenceEvents>,
    now: Instant,
}

/// From one step to the next.
const STEP: Duration = Duration::from_millis(20);

fn fixture(pages: usize, max_batch_tokens: usize) -> Fixture {
    let config = SchedulerConfig { max_batch_tokens, max_sequences: 4, ..SchedulerConfig::default() };
    fixture_with(pages, config)
}

fn fixture_with(pages: usize, config: SchedulerConfig) -> Fixture {
    let shape =
        KvShape { layers: 1, kv_heads: 1, head_dim: 1, dtype: KvDtype::F32, page_tokens: PAGE as u32 };
    let pool_config =
        PoolConfig { pages, max_promised: pages, max_prefill: pages / 2, max_decode: pages, zeroes: false };
    let pool = KvPool::new(shape, pool_config);
    let scheduler = Scheduler::new(config, Arc::clone(&pool), EngineMetrics::new(&pool));
    Fixture { scheduler, pool, arrivals: 0, readers: Vec::new(), now: Instant::now() }
}

impl Fixture {
    fn push(&mut self, tokens: usize, goal: Goal) -> u64 {
        self.push_within(tokens, goal, None)
    }

    fn push_within(&mut self, tokens: usize, goal: Goal, itl: Option<Duration>) -> u64 {
        let first = 1000 * (self.arrivals as u32 + 1);
        self.push_tokens((first..first + tokens as u32).collect(), goal, itl)
    }

    fn push_tokens(&mut self, tokens: Vec<u32>, goal: Goal, itl: Option<Duration>) -> u64 {
        self.arrivals += 1;
        let spec = SequenceSpec {
            request: RequestId(0),
            tenant: String::new(),
            prompt_tokens: tokens.len(),
            tokens: tokens.into(),
            sampling: Sampling::greedy(),
            stop: Stop { max_tokens: 1000, min_tokens: 0, ignore_eos: true, token_ids: Vec::new() },
            logprobs: false,
            top_logprobs: 0,
            prompt_logprobs: None,
            goal,
            start: StartFrom::Cold,
            deadline: None,
            itl,
        };
        let (outbox, reader) = events::channel(16, 0);
        self.readers.push(reader);
        let origin = Arc::new(Origin::new(&spec, 10_000, outbox));
        self.scheduler.push([Sequence::new(self.arrivals, spec, origin)]);
        self.arrivals
    }

    fn answer(&mut self, tokens: usize) -> u64 {
        self.push(tokens, Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] })
    }

    /// An answer whose reader was promised a token in each so many milliseconds.
    fn answer_within(&mut self, tokens: usize, itl_ms: u64) -> u64 {
        let goal = Goal::Generate { choices: vec![ChoiceSpec { choice: 0, generated: Vec::new() }] };
        self.push_within(tokens, goal, Some(Duration::from_millis(itl_ms)))
    }

    /// Steps of answers have taken 10 ms and 5 ms an answer.
    fn know_steps(&mut self) {
        for round in 0..60usize {
            let answers = 1 + round % 8;
            let chunk = |at| {
                let start = 5 + (round * 7 + at * 13) % 50;
                Chunk { key: (1_000 + at as u64, 1), tokens: start..start + 1, wants_logits: true }
            };
            let chunks = (0..answers).map(chunk).collect();
            let time = Duration::from_millis(10 + 5 * answers as u64);
            self.scheduler.learn(&Plan { chunks, ..Plan::default() }, time);
        }
    }

    fn prompt(&mut self, tokens: usize) -> u64 {
        self.push(tokens, Goal::Prefill { sample: vec![0] })
    }

    /// Plans a step and books it as computed; every ended sequence draws a token.
    fn step(&mut self) -> Vec<(u64, Range<usize>)> {
        let plan = self.scheduler.plan(false);
        self.scheduler.begins(&plan, self.now);
        self.now += STEP;
        let mut planned = Vec::new();
        for chunk in plan.chunks {
            let mut sequence = self.scheduler.take(chunk.key).unwrap();
            sequence.computed_to(chunk.tokens.end, &self.pool);
            assert_eq!(chunk.wants_logits, sequence.remaining() == 0);
            if chunk.wants_logits {
                sequence.tokens.push(7);
            }
            self.scheduler.run(sequence);
            planned.push((chunk.key.0, chunk.tokens));
        }
        self.readers.iter_mut().for_each(|reader| while reader.try_recv().is_ok() {});
        planned
    }
}

#[test]
fn chunks_end_with_a_page_and_share_the_budget() {
    let mut f = fixture(100, 10);
    let (a, b) = (f.answer(9), f.answer(7));
    assert_eq!(f.step(), [(a, 0..9)]);
    assert_eq!(f.step(), [(a, 9..10), (b, 0..7)]);
    let c = f.answer(30);
    assert_eq!(f.step(), [(a, 10..11), (b, 7..8), (c, 0..8)]);
    assert_eq!(f.step(), [(a, 11..12), (b, 8..9), (c, 8..16)]);
}

#[test]
fn beside_answers_a_prompt_gets_what_fits_the_time() {
    let mut f = fixture(100, 100);
    let chunk = Chunk { key: (9, 0), tokens: 0..100, wants_logits: false };
    f.scheduler.learn(&Plan { chunks: vec![chunk], ..Plan::default() }, Duration::from_millis(300));
    let a = f.answer(40);
    assert_eq!(f.step(), [(a, 0..40)]);
    let b = f.answer(60);
    // 45 ms are 15 tokens of 3 ms; one is the answer's, and chunks end with a page.
    assert_eq!(f.step(), [(a, 40..41), (b, 0..12)]);
    f.scheduler.take((a, 1));
    assert_eq!(f.step(), [(b, 12..60)]);
}

#[test]
fn prompts_that_cost_more_than_a_step_do_not_wait_for_each_other() {
    let mut f = fixture(200, 100);
    // A step takes 10 ms and 1 ms a token.
    for round in 0..20usize {
        let tokens = 8 + round * 37 % 80;
        let chunk = Chunk { key: (1_000, 0), tokens: 0..tokens, wants_logits: false };
        f.scheduler.learn(
            &Plan { chunks: vec![chunk], ..Plan::default() },
            Duration::from_millis(10 + tokens as u64),
        );
    }
    let (a, b) = (f.prompt(20), f.prompt(30));
    assert_eq!(f.step(), [(a, 0..20)]);
    f.scheduler.take((a, 1)).unwrap();
    assert_eq!(f.step(), [(b, 0..30)]);
    f.scheduler.take((b, 1)).unwrap();
    // The longer one is behind a short one, and saves more than it costs.
    let (c, d) = (f.prompt(30), f.prompt(6));
    assert_eq!(f.step(), [(c, 0..30), (d, 0..6)]);
    for ended in [c, d] {
        f.scheduler.take((ended, 1)).unwrap();
    }
    // Beside answers they share what time there is.
    let e = f.answer(5);
    assert_eq!(f.step(), [(e, 0..5)]);
    let (g, h) = (f.prompt(20), f.prompt(30));
    assert_eq!(f.step(), [(e, 5..6), (g, 0..20), (h, 0..16)]);
}

#[test]
fn what_is_cached_of_waiting_prompts_is_not_counted() {
    let mut f = fixture(100, 100);
    let tokens: Vec<u32> = (0..40).collect();
    let prompt = || Goal::Prefill { sample: vec![0] };
    let a = f.push_tokens(tokens.clone(), prompt(), None);
    assert_eq!(f.scheduler.metrics.waiting_prefill_tokens.get(), 39);
    assert_eq!(f.step(), [(a, 0..40)]);
    f.scheduler.take((a, 1)).unwrap();
    let b = f.push_tokens(tokens, prompt(), None);
    assert_eq!(f.scheduler.metrics.waiting_prefill_tokens.get(), 3);
    assert_eq!(f.step(), [(b, 36..40)]);
}

#[test]
fn a_prompt_gets_a_page_however_many_generate() {
    let mut f = fixture(100, 2);
    let (a, b) = (f.answer(3), f.answer(3));
    assert_eq!(f.step(), [(a, 0..3)]);
    assert_eq!(f.step(), [(a, 3..4), (b, 0..3)]);
    let c = f.answer(9);
    assert_eq!(f.step(), [(a, 4..5), (b, 3..4), (c, 0..4)]);
}

#[test]
fn places_are_given_in_order_of_arrival() {
    let mut f = fixture(100, 100);
    let keys: Vec<u64> = (0..6).map(|_| f.answer(3)).collect();
    let started: Vec<u64> = f.step().into_iter().map(|(key, _)| key).collect();
    assert_eq!(started, keys[..4]);
}

#[test]
fn who_waits_for_pages_is_not_overtaken() {
    let mut f = fixture(6, 100);
    let (a, _big, _small) = (f.answer(11), f.answer(15), f.answer(3));
    assert_eq!(f.step(), [(a, 0..11)]);
    assert_eq!(f.step(), [(a, 11..12)]);
    assert_eq!(f.pool.counts().running, 3);
}

#[test]
fn the_youngest_is_preempted_and_keeps_its_tokens() {
    let mut f = fixture(4, 100);
    let (a, b) = (f.answer(6), f.answer(6));
    assert_eq!(f.step(), [(a, 0..6), (b, 0..6)]);
    assert_eq!(f.step(), [(a, 6..7), (b, 6..7)]);
    assert_eq!(f.step(), [(a, 7..8), (b, 7..8)]);
    // Both need a third page now, and there are four.
    assert_eq!(f.step(), [(a, 8..9)]);
    assert_eq!(f.scheduler.metrics.preemptions.get(), 1);
    assert_eq!(f.scheduler.waiting[&(b, 1)].tokens.len(), 9);
    f.scheduler.take((a, 1));
    // Its first page is cached still; the second had to go to the other one.
    assert_eq!(f.step(), [(b, 4..9)]);
}

#[test]
fn nobody_is_preempted_while_a_step_is_under_way() {
    let mut f = fixture(4, 100);
    let (a, b) = (f.answer(7), f.answer(7));
    assert_eq!(f.step(), [(a, 0..7), (b, 0..7)]);
    assert_eq!(f.step(), [(a, 7..8), (b, 7..8)]);
    let plan = f.scheduler.plan(true);
    assert!(plan.chunks.is_empty() && plan.is_short);
    assert_eq!(f.scheduler.metrics.preemptions.get(), 0);
    assert_eq!(f.step(), [(a, 8..9)]);
    assert_eq!(f.scheduler.metrics.preemptions.get(), 1);
}

#[test]
fn prompts_for_others_keep_to_their_quota() {
    let mut f = fixture(8, 100);
    let (first, _second, answer) = (f.prompt(12), f.prompt(12), f.answer(3));
    let plan = f.scheduler.plan(false);
    let planned: Vec<u64> = plan.chunks.iter().map(|chunk| chunk.key.0).collect();
    assert_eq!(planned, [first, answer]);
    assert_eq!(f.pool.counts().sending, 3);
}

#[test]
fn answers_without_a_promise_miss_steps_for_one_that_has_it() {
    let mut f = fixture(100, 100);
    f.know_steps();
    let others = [f.answer(3), f.answer(3), f.answer(3)];
    let promised = f.answer_within(3, 22);
    assert_eq!(f.step().len(), 4);
    // Two answers take 20 ms, three 25.
    for turn in 0..7 {
        let went_on: Vec<u64> = f.step().into_iter().map(|(key, _)| key).collect();
        assert_eq!(went_on, [others[turn % 3], promised]);
    }
    f.scheduler.take((promised, 1));
    assert_eq!(f.step().len(), 3);
}

#[test]
fn an_answer_that_there_would_be_no_time_for_waits() {
    let mut f = fixture(100, 100);
    f.know_steps();
    let keys = [(); 3].map(|()| f.answer_within(3, 22));
    let started = |f: &mut Fixture| f.step().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(started(&mut f), keys[..2]);
    assert_eq!(started(&mut f), keys[..2]);
    f.scheduler.take((keys[0], 1));
    assert_eq!(started(&mut f), keys[1..]);
}

#[test]
fn prompts_beside_a_promise_get_the_time_that_it_leaves() {
    let mut f = fixture(100, 100);
    f.know_steps();
    for round in 1..60usize {
        let chunk = Chunk { key: (9, 0), tokens: 0..1 + round * 7 % 60, wants_logits: false };
        let time = Duration::from_millis(chunk.tokens.len() as u64);
        f.scheduler.learn(&Plan { chunks: vec![chunk], ..Plan::default() }, time);
    }
    let promised = f.answer_within(3, 40);
    f.step();
    let prompt = f.answer(60);
    // Of 40 ms a part is kept back, the answer adds 5; of the 31 left, about a
    // millisecond a token and little more, whole pages.
    assert_eq!(f.step(), [(promised, 3..4), (prompt, 0..28)]);
}
