//! What sequences have said, kept on the card for their penalties.
//!
//! A sequence's list is copied there when it comes, and from then on each step adds the
//! token that it computes, which the host may not know yet. What a list covers is known
//! here: a sequence that was away, or lost its place, is copied again.

use std::collections::HashMap;

use baton_kernels::{
    Shape,
    cuda::{Gpu, GpuError, Pinned, cudarc::driver::CudaSlice},
    shape::mask_words,
};

use super::step::Step;
use crate::{
    batch::{self, Batch, BatchSequence},
    sampler::{History, is_shaping},
};

/// Most biases of a request whose tokens the card draws.
pub(super) const MAX_BIASES: usize = 1024;

/// Lists and masks on the card.
pub(super) struct Histories {
    /// `[place][capacity][2]`, as `List::words` makes them.
    pub lists: CudaSlice<i32>,
    /// Tokens that may be drawn, of each row: `[W][mask_words(vocab)]`.
    pub masks: CudaSlice<i32>,
    /// Entries of a list.
    pub capacity: usize,
    mask_words: usize,
    places: Vec<Place>,
    by_sequence: HashMap<(u64, u32), usize>,
    steps: u64,
}

/// Whose list it is.
#[derive(Clone, Copy)]
struct Place {
    sequence: Option<(u64, u32)>,
    /// Tokens of the sequence that it covers.
    tokens: usize,
    /// The step that used it last.
    used: u64,
}

/// A copy to the card: words from here on, to there.
enum Load {
    List { words: Vec<i32>, place: usize },
    Mask { words: Vec<i32>, row: usize },
}

// === impl Histories ===

impl Histories {
    /// For steps of `sequences` sequences of up to `context_tokens`.
    pub fn new(gpu: &Gpu, vocab: usize, sequences: usize, context_tokens: usize) -> Result<Self, GpuError> {
        let capacity = 1 + MAX_BIASES + context_tokens.min(vocab);
        let mask_words = mask_words(vocab);
        Ok(Self {
            lists: gpu.zeros(sequences * capacity * 2)?,
            masks: gpu.zeros(sequences * mask_words)?,
            capacity,
            mask_words,
            places: vec![Place { sequence: None, tokens: 0, used: 0 }; sequences],
            by_sequence: HashMap::new(),
            steps: 0,
        })
    }

    /// How the step's rows are shaped, by where they come out; enqueues copies of what the
    /// card does not have, through `staging`.
    pub fn enter(
        &mut self,
        gpu: &Gpu,
        (batch, step): (&Batch<'_>, &Step<'_>),
        staging: &mut Pinned<i32>,
    ) -> Result<Vec<(usize, Shape)>, GpuError> {
        self.steps += 1;
        let shaped = || {
            let wanted = batch.wanted().zip(&step.outputs).enumerate();
            wanted.filter_map(|(index, (sequence, output))| Some((sequence, *output, batch.shape(index)?)))
        };
        // Who is here already keeps its place from who comes.
        for (.., shape) in shaped() {
            if let Some(place) = self.by_sequence.get(&shape.sequence) {
                self.places[*place].used = self.steps;
            }
        }
        let rows: Vec<usize> = step.wanted_rows().collect();
        let mut loads = Vec::new();
        let mut shapes = Vec::new();
        for (sequence, output, shape) in shaped() {
            let mut entered = self.list(sequence, (shape, rows[output]), &mut loads);
            if let Some(mask) = &shape.mask {
                entered.masked = 1;
                let words = mask.iter().map(|word| word.cast_signed()).collect();
                loads.push(Load::Mask { words, row: output });
            }
            shapes.push((output, entered));
        }
        self.load(gpu, &loads, staging)?;
        Ok(shapes)
    }

    /// The sequence's list with its newest token, that of `row`.
    fn list(
        &mut self,
        sequence: &BatchSequence<'_>,
        (shape, row): (&batch::Shape<'_>, usize),
        loads: &mut Vec<Load>,
    ) -> Shape {
        let sampling = shape.sampling;
        if !is_shaping(sampling) {
            return Shape::NONE;
        }
        let index = self.place(shape.sequence);
        let place = &mut self.places[index];
        let goes_on = place.tokens > 0 && place.tokens + 1 == sequence.end;
        place.tokens = sequence.end;
        if !goes_on {
            // All tokens are known: the step before did not draw for it.
            let history = History::of(sampling, &sequence.tokens[..sequence.end], shape.prompt_tokens);
            loads.push(Load::List { words: history.list().words(), place: index });
        }
        Shape {
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            slot: index as i32,
            newest: if goes_on { row as i32 } else { -1 },
            times: i32::from(sequence.end > shape.prompt_tokens),
            ..Shape::NONE
        }
    }

    /// The sequence's place, or that of whoever was away longest.
    fn place(&mut self, sequence: (u64, u32)) -> usize {
        if let Some(place) = self.by_sequence.get(&sequence) {
            return *place;
        }
        let oldest = (0..self.places.len()).min_by_key(|index| self.places[*index].used).unwrap_or(0);
        let place = &mut self.places[oldest];
        if let Some(gone) = place.sequence.replace(sequence) {
            self.by_sequence.remove(&gone);
        }
        (place.tokens, place.used) = (0, self.steps);
        self.by_sequence.insert(sequence, oldest);
        oldest
    }

    fn load(&mut self, gpu: &Gpu, loads: &[Load], staging: &mut Pinned<i32>) -> Result<(), GpuError> {
        let len: usize = loads.iter().map(|load| load.words().len()).sum();
        if staging.len() < len {
            *staging = Pinned::zeros(gpu, len.next_power_of_two())?;
        }
        let mut rest = staging.get_mut()?;
        for load in loads {
            let (part, others) = rest.split_at_mut(load.words().len());
            part.copy_from_slice(load.words());
            rest = others;
        }
        let mut at = 0;
        for load in loads {
            let len = load.words().len();
            let mut to = match load {
                Load::List { place, .. } => {
                    let start = place * self.capacity * 2;
                    self.lists.slice_mut(start..start + len)
                }
                Load::Mask { row, .. } => {
                    let start = row * self.mask_words;
                    self.masks.slice_mut(start..start + len)
                }
            };
            staging.copy_to(gpu, at..at + len, &mut to)?;
            at += len;
        }
        Ok(())
    }
}

// === impl Load ===

impl Load {
    fn words(&self) -> &[i32] {
        match self {
            Self::List { words, .. } | Self::Mask { words, .. } => words,
        }
    }
}
