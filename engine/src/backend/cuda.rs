//! The CUDA backend: decoders in bf16 or fp16, or with layers or cached rows in fp8, on one card.
//!
//! - [`weights`]: [`CudaModel`], uploaded once and shared by the backends of a process
//! - `matrix`: its matrices, as the card computes or in fp8: [`WeightForm`]
//! - `memory`: pages on the card
//! - `step`: a batch as the kernels read it
//! - `histories`: what sequences have said, for their penalties
//! - `workspace`: memory between kernels; [`CudaLimits`]
//! - `unpacked`: cached rows in fp8 as elements, for prompts
//! - `pass`: one step through all layers, enqueued
//! - `products`: its products with weights; `scaled`: those with weights in fp8
//!
//! Steps of single tokens alone are recorded as graphs, one for each padded
//! form, and replayed.
//!
//! A deterministic backend uses one kernel for each op whatever the step is, all of which
//! sum up a row in an order of its own: attention as of prompts, products in
//! bands by the kernel for few rows.

mod histories;
mod matrix;
mod memory;
mod pass;
mod products;
mod scaled;
mod step;
mod unpacked;
pub mod weights;
mod workspace;

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use baton_kernels::cuda::{Gpu, GpuError, Graph, Half, Pinned, cudarc::driver::CudaEvent};
use baton_protocol::{KvShape, PromptToken};

pub use baton_kernels::cuda::rope::KvForm;
pub use matrix::WeightForm;
pub use memory::pages;
pub use weights::CudaModel;
pub use workspace::CudaLimits;

use super::{Backend, BackendError};
use crate::{
    batch::{Batch, Draw, Logits, READ_ROWS, Reading, Rows, Shape, Source, What, sum_rows},
    kv::KvStore,
    sampler,
};
use histories::MAX_BIASES;
use memory::DevicePages;
use pass::Pass;
use step::{Form, Step};
use workspace::Workspace;

/// Tokens of a page on a card.
pub const PAGE_TOKENS: u32 = 64;

/// Device memory that pages leave to recorded graphs and the driver.
const RESERVE_BYTES: usize = 768 << 20;

/// New tokens of a step, unless configured.
pub const BATCH_TOKENS: usize = 8192;

/// Steps that may be enqueued and not collected.
const MAX_AHEAD: usize = 2;

/// A model on a card.
pub struct CudaBackend {
    model: Arc<CudaModel>,
    gpu: Gpu,
    shape: KvShape,
    limits: CudaLimits,
    memory: Arc<DevicePages>,
    work: Workspace,
    pass: Pass,
    graphs: HashMap<Form, Graph>,
    /// Blocks of words and drawn tokens of the steps under way, used in turn.
    slots: [Slot; MAX_AHEAD],
    /// Steps under way, oldest first.
    ahead: VecDeque<Ahead>,
    /// Rows of logits on their way to the sampler.
    logits: Pinned<f32>,
    /// Rows behind the last norm on their way to their sum.
    normed: Pinned<Half>,
    /// When the keys and values of each layer were written in the last step that was not replayed.
    written: Vec<CudaEvent>,
}

/// Page-locked memory of one step.
struct Slot {
    words: Pinned<i32>,
    /// Lists and masks on their way to the card.
    histories: Pinned<i32>,
    drawn: Pinned<i32>,
}

/// A step under way.
struct Ahead {
    slot: usize,
    /// Where its wanted sequences' tokens come out, in batch order.
    outputs: Vec<usize>,
    is_replayed: bool,
}

// === impl CudaBackend ===

impl CudaBackend {
    /// A backend for steps up to `limits`, with a stream and a workspace of its own.
    ///
    /// # Errors
    /// When the card has no room for the workspace.
    pub fn new(model: Arc<CudaModel>, limits: CudaLimits) -> Result<Self, BackendError> {
        Self::make(model, limits).map_err(failed)
    }

    fn make(model: Arc<CudaModel>, limits: CudaLimits) -> Result<Self, GpuError> {
        let gpu = model.gpu.beside()?;
        let shape = model.kv_shape(limits.kv, PAGE_TOKENS);
        let work = Workspace::new(&gpu, model.config(), &limits)?;
        let slot = || {
            Ok::<_, GpuError>(Slot {
                words: Pinned::zeros(&gpu, work.words.len())?,
                histories: Pinned::zeros(&gpu, 1)?,
                drawn: Pinned::zeros(&gpu, limits.sequences)?,
            })
        };
        Ok(Self {
            memory: Arc::new(DevicePages::new(&gpu, shape.clone(), 0)?),
            pass: Pass::new(&gpu, &model, &limits)?,
            graphs: HashMap::new(),
            slots: [slot()?, slot()?],
            ahead: VecDeque::new(),
            logits: Pinned::zeros(&gpu, model.config().vocab)?,
            normed: Pinned::zeros(&gpu, model.config().hidden)?,
            written: (0..model.config().layers).map(|_| event(&gpu)).collect::<Result<_, _>>()?,
            model,
            gpu,
            shape,
            limits,
            work,
        })
    }

    /// Finds the fastest algorithms for the products of this model on this
    /// card; takes seconds when they are not in the cache.
    ///
    /// # Errors
    /// When the device failed.
    pub fn tune(&mut self) -> Result<(), BackendError> {
        self.graphs.clear();
        self.pass.tune(self.model.config(), &self.limits).map_err(failed)
    }

    /// Waits until the layers of the step enqueued last are written, and tells so.
    fn report(&self, layer_done: &mut dyn FnMut(usize)) -> Result<(), BackendError> {
        if self.ahead.back().is_some_and(|step| step.is_replayed) {
            self.gpu.synchronize().map_err(failed)?;
            (0..self.written.len()).for_each(layer_done);
            return Ok(());
        }
        for (layer, written) in self.written.iter().enumerate() {
            written.synchronize().map_err(|error| BackendError::Device(error.to_string()))?;
            layer_done(layer);
        }
        Ok(())
    }

    fn checked<'a>(&self, batch: &'a Batch<'a>) -> Result<Step<'a>, BackendError> {
        let pending = self.ahead.back().map_or(0, |step| step.outputs.len());
        batch.check_ahead(&self.shape, self.memory.pages(), self.vocab_tokens(), pending)?;
        let step = Step::new(batch, PAGE_TOKENS as usize, self.limits.deterministic);
        let Form { wanted, table_pages, .. } = step.form;
        let (rows, sequences) = (step.form.rows(), step.form.sequences());
        let CudaLimits { rows: most_rows, sequences: most, .. } = self.limits;
        if rows > most_rows || wanted > most || step.form.words() > self.work.words.len() {
            return Err(BackendError::Device(format!(
                "a step of {rows} rows in {sequences} sequences of up to {table_pages} pages, made for {:?}",
                self.limits
            )));
        }
        if self.ahead.len() == MAX_AHEAD {
            return Err(BackendError::Device("too many steps are under way".to_owned()));
        }
        Ok(step)
    }

    /// Enqueues a step and the copy of its drawn tokens.
    fn launch(&mut self, batch: &Batch<'_>, step: &Step<'_>) -> Result<(), GpuError> {
        let Self { model, gpu, memory, work, pass, graphs, slots, ahead, written, .. } = self;
        let slot = ahead.back().map_or(0, |step| (step.slot + 1) % MAX_AHEAD);
        let Slot { words, histories, drawn } = &mut slots[slot];
        let form = step.form;
        let previous = ahead.back().map_or(&[][..], |step| &step.outputs);
        let block = &mut words.get_mut()?[..form.words()];
        step.write(PAGE_TOKENS as usize, previous, block);
        if form.is_shaped {
            let shapes = work.histories.enter(gpu, (batch, step), histories)?;
            step::write_shapes(&shapes, &mut block[form.shapes()]);
        }
        words.copy_to(gpu, 0..form.words(), &mut work.words)?;
        let mut pages = memory.rows();
        let replayed = graphs.get(&form);
        let is_replayed = replayed.is_some();
        if let Some(graph) = replayed {
            graph.replay()?;
        } else {
            let stream = gpu.stream();
            let mut note = |layer: usize| {
                written[layer]
                    .record(stream)
                    .map_err(|source| GpuError::Driver { call: "cuEventRecord", source })
            };
            pass.run(gpu, (model, work), (&mut pages, form), &mut note)?;
        }
        drop(pages);
        drawn.copy_from(gpu, 0, &work.drawn.slice(..form.wanted))?;
        ahead.push_back(Ahead { slot, outputs: step.outputs.clone(), is_replayed });
        if form.is_decode() && !is_replayed {
            // It ran once, so that every kernel is loaded; from now on it is replayed.
            let mut pages = memory.rows();
            let record = |gpu: &Gpu| pass.run(gpu, (model, work), (&mut pages, form), &mut |_| Ok(()));
            graphs.insert(form, Graph::record(gpu, record)?);
        }
        Ok(())
    }

    /// These rows of logits of the step enqueued last.
    fn take_logits(&mut self, outputs: &[usize]) -> Result<Vec<f32>, GpuError> {
        let vocab = self.model.config().vocab;
        let len = outputs.len() * vocab;
        if self.logits.len() < len {
            self.logits = Pinned::zeros(&self.gpu, len)?;
        }
        for (index, output) in outputs.iter().enumerate() {
            let row = self.work.logits.slice(output * vocab..(output + 1) * vocab);
            self.logits.copy_from(&self.gpu, index * vocab, &row)?;
        }
        Ok(self.logits.get()?[..len].to_vec())
    }

    /// What is read of rows of the step enqueued last, once its logits are taken.
    fn read(&mut self, batch: &Batch<'_>, step: &Step<'_>) -> Result<Vec<(usize, Reading)>, GpuError> {
        let mut all = Vec::new();
        for (index, sequence, read) in batch.reading() {
            let Some(first) = step.row(sequence, read.rows.start) else { continue };
            let rows = first..first + read.rows.len();
            let reading = match read.what {
                What::Tokens(top) => {
                    Reading::Tokens(self.likelihoods(rows, (read.behind(sequence.tokens), top))?)
                }
                What::Sum => Reading::Sum(self.sum(&rows)?),
            };
            all.push((index, reading));
        }
        Ok(all)
    }

    /// How likely the tokens behind rows are; a few rows' logits are there at a time.
    fn likelihoods(
        &mut self,
        rows: Range<usize>,
        (tokens, top): (&[u32], u32),
    ) -> Result<Vec<PromptToken>, GpuError> {
        let Self { gpu, model, work, pass, logits, .. } = self;
        let (vocab, most) = (model.config().vocab, READ_ROWS.min(self.limits.sequences));
        let mut told = Vec::with_capacity(rows.len());
        for (start, tokens) in rows.step_by(most).zip(tokens.chunks(most)) {
            pass.read(gpu, (model, work), &(start..start + tokens.len()))?;
            let len = tokens.len() * vocab;
            if logits.len() < len {
                *logits = Pinned::zeros(gpu, len)?;
            }
            logits.copy_from(gpu, 0, &work.logits.slice(..len))?;
            told.extend(sampler::prompt_tokens(&logits.get()?[..len], vocab, tokens, top));
        }
        Ok(told)
    }

    /// The sum of rows behind the last norm.
    fn sum(&mut self, rows: &Range<usize>) -> Result<Vec<f64>, GpuError> {
        let Self { gpu, model, work, pass, normed, .. } = self;
        let hidden = model.config().hidden;
        let len = rows.len() * hidden;
        if normed.len() < len {
            *normed = Pinned::zeros(gpu, len)?;
        }
        pass.norm(gpu, (model, work), rows)?;
        normed.copy_from(gpu, 0, &work.normed.slice(..len))?;
        let dtype = gpu.dtype();
        Ok(sum_rows(normed.get()?[..len].iter().map(|half| dtype.value(*half)), hidden))
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn kv_shape(&self) -> &KvShape {
        &self.shape
    }

    fn vocab_tokens(&self) -> usize {
        self.model.config().vocab
    }

    fn allocate(&mut self, pages: usize) -> Result<Arc<dyn KvStore>, BackendError> {
        self.gpu.synchronize().map_err(failed)?;
        // Recorded steps write to the pages that go; and they go first, to make room.
        self.graphs.clear();
        self.memory = Arc::new(DevicePages::new(&self.gpu, self.shape.clone(), 0).map_err(failed)?);
        self.memory = Arc::new(DevicePages::new(&self.gpu, self.shape.clone(), pages).map_err(failed)?);
        Ok(Arc::<DevicePages>::clone(&self.memory))
    }

    fn pages_left(&self) -> Option<usize> {
        let free = self.gpu.memory().ok()?.free.saturating_sub(RESERVE_BYTES);
        Some(free / (self.shape.token_bytes() * PAGE_TOKENS as usize))
    }

    fn batch_tokens(&self) -> usize {
        self.limits.rows
    }

    fn draws(&self, _: &Draw, shape: Option<&Shape<'_>>) -> bool {
        shape.is_none_or(|shape| shape.sampling.logit_bias.len() <= MAX_BIASES)
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        layer_done: &mut dyn FnMut(usize),
    ) -> Result<Logits, BackendError> {
        let step = self.checked(batch)?;
        self.launch(batch, &step).map_err(failed)?;
        self.report(layer_done)?;
        let values = self.take_logits(&step.outputs).map_err(failed)?;
        let read = self.read(batch, &step).map_err(failed)?;
        self.collect()?;
        Ok(Logits { values, vocab_tokens: self.vocab_tokens(), read })
    }

    fn draw(&mut self, batch: &Batch<'_>, layer_done: &mut dyn FnMut(usize)) -> Result<Rows, BackendError> {
        let step = self.checked(batch)?;
        self.launch(batch, &step).map_err(failed)?;
        self.report(layer_done)?;
        let outputs = step.outputs.iter().enumerate();
        let wanted: Vec<usize> =
            outputs.filter(|(index, _)| batch.draw(*index).is_none()).map(|(_, output)| *output).collect();
        let values = self.take_logits(&wanted).map_err(failed)?;
        let read = self.read(batch, &step).map_err(failed)?;
        let mut rows = 0..wanted.len();
        let source = |(index, token)| match batch.draw(index) {
            Some(_) => Source::Token(token),
            None => Source::Row(rows.next().unwrap_or_default()),
        };
        let sources = self.collect()?.into_iter().enumerate().map(source).collect();
        Ok(Rows { sources, logits: Logits { values, vocab_tokens: self.vocab_tokens(), read } })
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn enqueue(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let step = self.checked(batch)?;
        self.launch(batch, &step).map_err(failed)
    }

    fn collect(&mut self) -> Result<Vec<Option<u32>>, BackendError> {
        let Some(Ahead { slot, outputs, .. }) = self.ahead.pop_front() else {
            return Err(BackendError::Device("no step is under way".to_owned()));
        };
        let drawn = self.slots[slot].drawn.get().map_err(failed)?;
        Ok(outputs.into_iter().map(|output| u32::try_from(drawn[output]).ok()).collect())
    }
}

fn event(gpu: &Gpu) -> Result<CudaEvent, GpuError> {
    gpu.context().new_event(None).map_err(|source| GpuError::Driver { call: "cuEventCreate", source })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: GpuError) -> BackendError {
    BackendError::Device(error.to_string())
}
