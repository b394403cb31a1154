//! A backend without a model, for tests: the KV row of a token holds a hash of
//! all tokens up to it, and logits are a function of that hash. So the answer
//! to a prompt is known beforehand ([`expected`]), and a page with anything
//! else than the right rows is found out.

mod stream;

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use baton_protocol::{KvDtype, KvShape, Pooling, PromptToken, Sampling};
use serde::Deserialize;

use super::{Backend, BackendError};
use crate::{
    batch::{Batch, BatchSequence, Logits, Read, Reading, Row, What, sum_rows},
    kv::{KvMemory, KvStore},
    sampler::{self, Draw},
};
use stream::Stream;

/// Tokens 0 to 255 are bytes; these two are special.
pub const VOCAB_TOKENS: usize = 258;

/// The token that ends an answer.
pub const EOS_TOKEN: u32 = 257;

/// Shape of the mock's KV, and how long it takes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MockConfig {
    /// Layers.
    pub layers: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Elements of a head. A row holds at least 16 bytes.
    pub head_dim: u32,
    /// Element type, as far as sizes go.
    pub dtype: KvDtype,
    /// Time of a new token in a chunk of several.
    pub prefill_us_per_token: u64,
    /// Time of a single new token.
    pub decode_us_per_sequence: u64,
    /// Time of a step besides its tokens.
    pub step_us_base: u64,
    /// How often the end of the answer is the only likely token, 0 to 1.
    pub eos_probability: f64,
    /// Whether steps are enqueued before the one before has ended, as on a card.
    pub runs_ahead: bool,
    /// Whether prompts and answers are in the tokens of the model that is named, whose tokenizer
    /// and template are then needed, and not in bytes.
    pub speaks_model: bool,
    /// While a file that is named by the process's number is in this directory, steps do not end.
    pub hangs_by: Option<PathBuf>,
    /// A step that computes this token ends the process.
    pub dies_of: Option<u32>,
}

/// Tokens that it reads and may draw.
#[derive(Clone, Copy, Debug)]
struct Vocab {
    tokens: usize,
    /// Ends an answer.
    eos: u32,
}

/// See the module's description.
pub struct MockBackend {
    config: MockConfig,
    vocab: Vocab,
    shape: KvShape,
    memory: Arc<KvMemory>,
    stream: Stream,
}

/// Bytes of a row that say what it is; repeated to the row's end.
const MARK_BYTES: usize = 16;

/// Width of the mock's rows behind the last norm.
const HIDDEN: usize = 8;

/// Hash before the first token.
const CHAIN_START: u64 = 0x6261_746f_6e00_0001;

// === impl MockConfig ===

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            layers: 4,
            kv_heads: 2,
            head_dim: 4,
            dtype: KvDtype::Bf16,
            prefill_us_per_token: 0,
            decode_us_per_sequence: 0,
            step_us_base: 0,
            eos_probability: 0.0,
            runs_ahead: false,
            speaks_model: false,
            hangs_by: None,
            dies_of: None,
        }
    }
}

// === impl MockBackend ===

impl MockBackend {
    /// A mock with pages of `page_tokens` tokens. Heads are widened until a row holds its mark.
    pub fn new(config: MockConfig, page_tokens: u32) -> Self {
        let (layers, kv_heads, dtype) = (config.layers.max(1), config.kv_heads.max(1), config.dtype);
        let least = MARK_BYTES.div_ceil(2 * kv_heads as usize * dtype.bytes()) as u32;
        let head_dim = config.head_dim.max(least);
        let shape = KvShape { layers, kv_heads, head_dim, dtype, page_tokens };
        let memory = Arc::new(KvMemory::new(shape.clone(), 0));
        Self { config, vocab: Vocab::BYTES, shape, memory, stream: Stream::default() }
    }

    /// With the tokens of a model, of which `eos` ends answers. Answers are of those that are
    /// printable characters among bytes.
    #[must_use]
    pub fn speaking(self, tokens: usize, eos: u32) -> Self {
        Self { vocab: Vocab { tokens: tokens.max(VOCAB_TOKENS), eos }, ..self }
    }

    /// As long as it is told to.
    fn hang(&self) {
        let file = self.config.hangs_by.as_ref().map(|place| place.join(std::process::id().to_string()));
        while file.as_ref().is_some_and(|file| file.exists()) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// As a card's error does that no process survives: once the step has run.
    fn die(&self, batch: &Batch<'_>) {
        let mut computed =
            batch.sequences.iter().flat_map(|sequence| &sequence.tokens[sequence.start..sequence.end]);
        if self.config.dies_of.is_some_and(|token| computed.any(|computed| *computed == token)) {
            tracing::error!("computed the token that it is to die of");
            std::process::abort();
        }
    }

    /// What a layer costs of a step's time.
    fn layer_time(&self, batch: &Batch<'_>) -> Duration {
        let token_us = |sequence: &BatchSequence<'_>| match (sequence.end - sequence.start) as u64 {
            1 => self.config.decode_us_per_sequence,
            tokens => tokens * self.config.prefill_us_per_token,
        };
        let us = self.config.step_us_base + batch.sequences.iter().map(token_us).sum::<u64>();
        Duration::from_micros(us) / self.shape.layers
    }

    /// Whether the rows of all tokens before the new ones are this sequence's.
    fn check(&self, index: usize, sequence: &BatchSequence<'_>, chain: &[u64]) -> Result<(), BackendError> {
        if let Some(&token) = sequence.tokens.iter().find(|token| **token as usize >= self.vocab.tokens) {
            return Err(BackendError::Token { sequence: index, token, vocab: self.vocab.tokens });
        }
        let (page_tokens, row_bytes) = (self.shape.page_tokens as usize, self.shape.row_bytes());
        for (page, chain) in
            sequence.pages.iter().zip(chain[..sequence.start].chunks(page_tokens)).enumerate()
        {
            let ((page, chain), first) = (chain, page * page_tokens);
            for layer in 0..self.shape.layers as usize {
                let piece = self.memory.read(*page, layer);
                for (offset, (row, &chain)) in piece.bytes().chunks_exact(row_bytes).zip(chain).enumerate() {
                    if !is_row(row, mark(chain, first + offset, layer)) {
                        return Err(BackendError::ForeignKv { sequence: index, position: first + offset });
                    }
                }
            }
        }
        Ok(())
    }

    /// What is wanted of rows besides those drawn from.
    fn read(&self, batch: &Batch<'_>, chains: &[Vec<u64>]) -> Vec<(usize, Reading)> {
        let of = |(index, sequence, read): (usize, &BatchSequence<'_>, &Read)| {
            let rows = &chains[index][read.rows.clone()];
            let What::Tokens(top) = read.what else {
                let rows = rows.iter().flat_map(|chain| hidden(*chain));
                return (index, Reading::Sum(sum_rows(rows, HIDDEN)));
            };
            let logits: Vec<f32> = rows.iter().flat_map(|chain| self.logits(*chain)).collect();
            let tokens = read.behind(sequence.tokens);
            (index, Reading::Tokens(sampler::prompt_tokens(&logits, self.vocab.tokens, tokens, top)))
        };
        batch.reading().map(of).collect()
    }

    fn logits(&self, chain: u64) -> Vec<f32> {
        self.vocab.logits(chain, self.config.eos_probability)
    }

    fn write(&self, layer: usize, sequence: &BatchSequence<'_>, chain: &[u64]) {
        let (page_tokens, row_bytes) = (self.shape.page_tokens as usize, self.shape.row_bytes());
        let mut position = sequence.start;
        while position < sequence.end {
            let page = position / page_tokens;
            let end = sequence.end.min((page + 1) * page_tokens);
            let mut piece = self.memory.write(sequence.pages[page], layer);
            let rows = piece.bytes().chunks_exact_mut(row_bytes).skip(position % page_tokens);
            for (row, position) in rows.zip(position..end) {
                let mark = mark(chain[position], position, layer);
                row.chunks_mut(MARK_BYTES).for_each(|part| part.copy_from_slice(&mark[..part.len()]));
            }
            position = end;
        }
    }
}

impl Backend for MockBackend {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn kv_shape(&self) -> &KvShape {
        &self.shape
    }

    fn vocab_tokens(&self) -> usize {
        self.vocab.tokens
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.memory = Arc::new(KvMemory::new(self.shape.clone(), pages));
        Ok(Arc::<KvMemory>::clone(&self.memory))
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let chains: Vec<Vec<u64>> =
            batch.sequences.iter().map(|sequence| chain(&sequence.tokens[..sequence.end])).collect();
        for (index, (sequence, chain)) in batch.sequences.iter().zip(&chains).enumerate() {
            self.check(index, sequence, chain)?;
        }
        let layer_time = self.layer_time(batch);
        for layer in 0..self.shape.layers as usize {
            for (sequence, chain) in batch.sequences.iter().zip(&chains) {
                self.write(layer, sequence, chain);
            }
            if !layer_time.is_zero() {
                thread::sleep(layer_time);
            }
            layer_done(layer);
        }
        self.hang();
        self.die(batch);
        let wanted = batch.sequences.iter().zip(&chains).filter(|(sequence, _)| sequence.wants_logits);
        let values = wanted.flat_map(|(_, chain)| self.logits(chain[chain.len() - 1])).collect();
        Ok(Logits { values, vocab_tokens: self.vocab.tokens, read: self.read(batch, &chains) })
    }

    fn runs_ahead(&self) -> bool {
        self.config.runs_ahead
    }

    fn enqueue(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        batch.check_ahead(&self.shape, self.memory.pages(), self.vocab.tokens, self.stream.rows())?;
        if self.stream.is_full() {
            return Err(BackendError::Device("too many steps are under way".to_owned()));
        }
        self.stream.push(batch);
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<Option<u32>>, BackendError> {
        let Some(step) = self.stream.pop() else {
            return Err(BackendError::Device("no step is under way".to_owned()));
        };
        let rows = self.draw(&step.batch(), &mut |_| {});
        let token = |row: Row<'_>| if let Row::Token(token) = row { token } else { None };
        let drawn = rows.map(|rows| rows.iter().map(token).collect::<Vec<_>>());
        match &drawn {
            Ok(drawn) => self.stream.drew(drawn),
            // Those after it build on what it did not compute.
            Err(_) => self.stream = Stream::default(),
        }
        drawn
    }
}

// === impl Vocab ===

impl Vocab {
    const BYTES: Self = Self { tokens: VOCAB_TOKENS, eos: EOS_TOKEN };

    /// Eight printable characters, about equally likely; all else is out of question.
    fn logits(self, chain: u64, eos_probability: f64) -> Vec<f32> {
        let mut logits = vec![-30.0; self.tokens];
        for i in 0..8 {
            let word = mix(chain.wrapping_add(i));
            let mut token = 32 + word as usize % 95;
            while logits[token] > -30.0 {
                token = 32 + (token - 31) % 95;
            }
            logits[token] = (word >> 40) as f32 / (1u64 << 24) as f32;
        }
        if (mix(!chain) >> 11) as f64 / ((1u64 << 53) as f64) < eos_probability {
            logits[self.eos as usize] = 100.0;
        }
        logits
    }
}

/// The first `tokens` tokens that the mock answers to a prompt, when it never ends by itself.
pub fn expected(prompt: &[u32], sampling: &Sampling, choice: u32, tokens: usize) -> Vec<u32> {
    let mut known = prompt.to_vec();
    let mut last = chain(prompt).last().copied().unwrap_or(CHAIN_START);
    for _ in 0..tokens {
        let draw = Draw { sampling, choice, tokens: &known, prompt_tokens: prompt.len(), mask: None };
        let Some(token) = sampler::draw(&Vocab::BYTES.logits(last, 0.0), &draw) else { break };
        known.push(token);
        last = next(last, token);
    }
    known.split_off(prompt.len())
}

/// How likely the mock finds the tokens of a prompt from `from` on, each with its `top` likeliest.
pub fn expected_prompt(prompt: &[u32], from: usize, top: u32) -> Vec<PromptToken> {
    let chain = chain(prompt);
    let rows: Vec<f32> =
        chain[from - 1..prompt.len() - 1].iter().flat_map(|row| Vocab::BYTES.logits(*row, 0.0)).collect();
    sampler::prompt_tokens(&rows, VOCAB_TOKENS, &prompt[from..], top)
}

/// The embedding of a prompt.
pub fn expected_embedding(prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let rows = &chain(prompt)[pooling.first_row(prompt.len())..];
    let sum = sum_rows(rows.iter().flat_map(|chain| hidden(*chain)), HIDDEN);
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    sum.iter().map(|value| (value / length) as f32).collect()
}

/// The row behind the last norm, from -1 to 1.
fn hidden(chain: u64) -> [f32; HIDDEN] {
    let word = |index: usize| mix(chain ^ (index as u64) << 32);
    std::array::from_fn(|index| (word(index) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
}

/// The hash after each token.
fn chain(tokens: &[u32]) -> Vec<u64> {
    let mut last = CHAIN_START;
    let step = |&token: &u32| {
        last = next(last, token);
        last
    };
    tokens.iter().map(step).collect()
}

fn next(chain: u64, token: u32) -> u64 {
    mix(chain ^ mix(u64::from(token) + 1))
}

fn mark(chain: u64, position: usize, layer: usize) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..8].copy_from_slice(&chain.to_le_bytes());
    mark[8..12].copy_from_slice(&(position as u32).to_le_bytes());
    let check = mix(chain ^ (position as u64) << 20 ^ layer as u64) as u32;
    mark[12..].copy_from_slice(&check.to_le_bytes());
    mark
}

fn is_row(row: &[u8], mark: [u8; MARK_BYTES]) -> bool {
    row.chunks(MARK_BYTES).all(|part| *part == mark[..part.len()])
}

fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::PageId;

    const PAGES: [PageId; 2] = [PageId(1), PageId(0)];

    fn mock() -> MockBackend {
        let mut mock = MockBackend::new(MockConfig::default(), 4);
        mock.allocate(2).unwrap();
        mock
    }

    fn forward(mock: &mut MockBackend, tokens: &[u32], start: usize) -> Result<Logits, BackendError> {
        let sequence = BatchSequence { tokens, start, end: tokens.len(), pages: &PAGES, wants_logits: true };
        let mut layers = Vec::new();
        let logits = mock.forward(&Batch::new(vec![sequence]), &mut |layer| layers.push(layer))?;
        assert_eq!(layers, [0, 1, 2, 3]);
        Ok(logits)
    }

    #[test]
    fn chunks_and_the_whole_give_the_same() {
        let tokens = [5, 6, 7, 8, 9, 10];
        let whole = forward(&mut mock(), &tokens, 0).unwrap();
        let mut chunked = mock();
        forward(&mut chunked, &tokens[..4], 0).unwrap();
        assert_eq!(forward(&mut chunked, &tokens, 4).unwrap(), whole);
        assert_eq!(whole.values.iter().filter(|logit| **logit >= 0.0).count(), 8);
    }

    #[test]
    fn foreign_rows_are_found_wherever_they_are() {
        let tokens = [5, 6, 7, 8, 9, 10];
        for (page, layer, byte) in [(1, 0, 0), (1, 3, 64), (0, 2, 31)] {
            let mut mock = mock();
            forward(&mut mock, &tokens[..5], 0).unwrap();
            mock.memory.write(PageId(page), layer).bytes()[byte] ^= 1;
            let position = if page == 1 { byte / 32 } else { 4 + byte / 32 };
            match forward(&mut mock, &tokens, 5) {
                Err(BackendError::ForeignKv { sequence: 0, position: found }) => assert_eq!(found, position),
                other => panic!("{other:?}"),
            }
        }
        let mut other = mock();
        forward(&mut other, &[5, 6, 7, 99, 9], 0).unwrap();
        let error = forward(&mut other, &tokens, 5);
        assert!(matches!(error, Err(BackendError::ForeignKv { position: 3, .. })));
    }

    #[test]
    fn expected_depends_on_seed_and_choice() {
        let sampling = Sampling { seed: 7, ..Sampling::default() };
        let answer = expected(&[1, 2, 3], &sampling, 0, 20);
        assert_eq!(answer, expected(&[1, 2, 3], &sampling, 0, 20));
        assert_eq!(answer[..10], expected(&[1, 2, 3], &sampling, 0, 10));
        assert_ne!(answer, expected(&[1, 2, 3], &sampling, 1, 20));
        assert_ne!(answer, expected(&[1, 2, 3], &Sampling { seed: 8, ..sampling }, 0, 20));
    }
}
