//! One step through all layers, enqueued.

use std::{collections::BTreeSet, ops::Range};

use baton_kernels::cuda::{
    Gpu, GpuError, Half, Read,
    attention::{self, Attention, Decode, Inputs, Paged, Rows, Shares, Split},
    cudarc::driver::{CudaSlice, CudaViewMut},
    embed::{Tokens, embed},
    gemm::Then,
    narrow,
    norm::Heads,
    rope::{KvForm, Places, PoolShape, Rope},
    rows::{add_bias, gather, softcap},
    sample::sample,
    shape::{Shapes, shape},
};
use baton_model::{ModelConfig, QkNorm};

use super::{
    CudaLimits, CudaModel,
    matrix::Matrix,
    products::{Normed, Products},
    step::Form,
    weights::{Layer, Vector},
    workspace::Workspace,
};

/// About so many rows go through the feed-forward part together: its products are no faster
/// with more, and what is between them takes less memory.
const BAND_ROWS: usize = 2048;

/// As many as there are at most.
pub(super) const MAX_BAND_ROWS: usize = BAND_ROWS + BAND_ROWS / 2;

/// Rows that a block of cuBLASLt's products takes. A few over cost as much as all of them, and
/// the less the more blocks there are: then they go by themselves, through the kernel for few.
const TILE_ROWS: usize = 128;
const MANY_ROWS: usize = 4096;

/// Rows of all products of a deterministic backend: at most what `Narrow` takes.
const DETERMINISTIC_ROWS: usize = narrow::MAX_ROWS * 2 / 3;

/// What the kernels of a step need besides weights and memory.
pub(super) struct Pass {
    products: Products,
    decode: Decode,
    /// About so many rows go through products together.
    rows: Bands,
    /// A step's work on single tokens, for each window that layers have.
    shares: Vec<(Option<usize>, Shares)>,
    kv: KvForm,
}

/// Rows that are multiplied together, about.
#[derive(Clone, Copy)]
struct Bands {
    /// In attention's parts, and of logits.
    attention: usize,
    feed_forward: usize,
    /// Whether few rows over are multiplied by themselves.
    has_rests: bool,
}

/// One step under way.
struct Run<'a> {
    gpu: &'a Gpu,
    pass: &'a mut Pass,
    model: &'a CudaModel,
    work: &'a mut Workspace,
    pages: &'a mut CudaSlice<Half>,
    pool: PoolShape,
    form: Form,
}

/// Rows of the residual stream, and a place for what is added to them.
struct Residual<'a> {
    x: CudaViewMut<'a, Half>,
    delta: CudaViewMut<'a, Half>,
}

// === impl Pass ===

impl Pass {
    pub fn new(gpu: &Gpu, model: &CudaModel, limits: &CudaLimits) -> Result<Self, GpuError> {
        let config = model.config();
        let most = attention::Limits {
            sequences: limits.sequences,
            tokens: limits.sequences * limits.context_tokens,
        };
        let decode = Decode::new(gpu, config.heads, pool(config, limits.kv), Split::Even, most)?;
        let windows: BTreeSet<_> = config.attention.iter().map(|layer| layer.window).collect();
        let shares = windows.into_iter().map(|window| Ok((window, decode.shares(gpu, window)?)));
        let shares = shares.collect::<Result<_, GpuError>>()?;
        let rows = match limits.deterministic {
            true => {
                Bands { attention: DETERMINISTIC_ROWS, feed_forward: DETERMINISTIC_ROWS, has_rests: false }
            }
            false => Bands {
                attention: usize::MAX,
                feed_forward: BAND_ROWS,
                has_rests: gpu.capability() == (9, 0),
            },
        };
        Ok(Self { products: Products::new(gpu, model, limits)?, decode, rows, shares, kv: limits.kv })
    }

    /// Finds the fastest algorithms for the products of steps up to `limits`.
    pub fn tune(&self, config: &ModelConfig, limits: &CudaLimits) -> Result<(), GpuError> {
        self.products.tune(config, limits)
    }

    /// Enqueues a step whose words are in `work`. Then rows of logits and the
    /// likeliest tokens are there. `written(layer)` comes when the writing of
    /// the layer's keys and values is enqueued.
    pub fn run(
        &mut self,
        gpu: &Gpu,
        (model, work): (&CudaModel, &mut Workspace),
        (pages, form): (&mut CudaSlice<Half>, Form),
        written: &mut dyn FnMut(usize) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let mut pool = pool(model.config(), self.kv);
        pool.pages = pages.len() / pool.page_halves();
        let gpu = &self.products.divided(gpu, form.rows());
        let mut run = Run { gpu, pass: self, model, work, pages, pool, form };
        run.embed()?;
        run.plan()?;
        for index in 0..pool.layers {
            run.attention(index, written)?;
            run.feed_forward(&model.layers[index])?;
        }
        run.logits()
    }

    /// Enqueues the last norm of some rows of the step before; they come out first in `normed`.
    pub fn norm(
        &self,
        gpu: &Gpu,
        (model, work): (&CudaModel, &mut Workspace),
        rows: &Range<usize>,
    ) -> Result<(), GpuError> {
        let gpu = &self.products.divided(gpu, rows.len());
        let hidden = model.config().hidden;
        let x = work.x.slice(rows.start * hidden..rows.end * hidden);
        model.norm.view().run(gpu, &x, &mut work.normed.slice_mut(..rows.len() * hidden))
    }

    /// Enqueues logits of some rows of the step before, whichever it drew from, in place of those
    /// that it drew from.
    pub fn read(
        &self,
        gpu: &Gpu,
        (model, work): (&CudaModel, &mut Workspace),
        rows: &Range<usize>,
    ) -> Result<(), GpuError> {
        let gpu = &self.products.divided(gpu, rows.len());
        let &ModelConfig { hidden, vocab, logit_softcap, .. } = model.config();
        let x = work.x.slice(rows.start * hidden..rows.end * hidden);
        let mut logits = work.logits.slice_mut(..rows.len() * vocab);
        for Range { start, end } in self.rows.attention(rows.len()) {
            let input = Normed {
                norm: Some(&model.norm),
                x: x.slice(start * hidden..end * hidden),
                normed: work.normed.slice_mut(start * hidden..end * hidden),
            };
            let mut logits = logits.slice_mut(start * vocab..end * vocab);
            self.products.run_f32(gpu, model.output(), input, &mut logits)?;
        }
        logit_softcap.map_or(Ok(()), |cap| softcap(gpu, cap, &mut logits))
    }
}

// === impl Bands ===

impl Bands {
    fn attention(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        self.of(rows, self.attention)
    }

    fn feed_forward(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        self.of(rows, self.feed_forward)
    }

    fn of(self, rows: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
        let rest = if self.has_rests { rest(rows) } else { 0 };
        bands(rows - rest, each).chain((rest > 0).then_some(rows - rest..rows))
    }
}

// === impl Residual ===

impl Residual<'_> {
    /// Adds `weights * input` to the rows, after a norm if there is one.
    fn add(
        mut self,
        gpu: &Gpu,
        products: &mut Products,
        (weights, after): (&Matrix, Option<&Vector>),
        input: &impl Read<Half>,
    ) -> Result<(), GpuError> {
        let Some(after) = after else {
            return products.plain(gpu, weights, input, (&mut self.x, Then::Add));
        };
        products.plain(gpu, weights, input, (&mut self.delta, Then::Store))?;
        after.view().then_add(gpu, &mut self.x, &self.delta)
    }
}

// === impl Run ===

impl Run<'_> {
    fn embed(&mut self) -> Result<(), GpuError> {
        let Self { gpu, model, work, form, .. } = self;
        let tokens = Tokens { rows: work.words.slice(form.tokens()), drawn: Some(work.drawn.as_view()) };
        let config = model.config();
        let mut x = work.x.slice_mut(..form.rows() * config.hidden);
        embed(gpu, &model.embedding.view(), &tokens, config.embedding_scale, &mut x)
    }

    /// Shares out the attention of single tokens.
    fn plan(&mut self) -> Result<(), GpuError> {
        let Self { gpu, pass, work, form, .. } = self;
        let lengths = work.words.slice(form.lengths().start..form.lengths().start + form.singles);
        if form.singles > 0 {
            for (_, shares) in &mut pass.shares {
                pass.decode.plan(gpu, &lengths, form.table_pages, shares)?;
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        index: usize,
        written: &mut dyn FnMut(usize) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let layer = &self.model.layers[index];
        let Self { gpu, pass, model, work, form, .. } = self;
        let &ModelConfig { hidden, heads, kv_heads, head_dim, .. } = model.config();
        let rows = form.rows();
        let width = (heads + 2 * kv_heads) * head_dim;
        let mut qkv = work.qkv.slice_mut(..rows * width);
        for Range { start, end } in pass.rows.attention(rows) {
            let input = Normed {
                norm: layer.attention_norms.before.as_ref(),
                x: work.x.slice(start * hidden..end * hidden),
                normed: work.normed.slice_mut(start * hidden..end * hidden),
            };
            pass.products.run(gpu, &layer.qkv, input, &mut qkv.slice_mut(start * width..end * width))?;
        }
        if let Some(bias) = &layer.qkv_bias {
            add_bias(gpu, bias, &mut qkv)?;
        }
        if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
            let keys = heads * head_dim;
            if model.config().qk_norm == QkNorm::Row {
                q_norm.view().part(gpu, 0, width, &mut qkv)?;
                k_norm.view().part(gpu, keys, width, &mut qkv)?;
            } else {
                q_norm.view().heads(gpu, Heads { stride: width, start: 0, heads }, &mut qkv)?;
                let keys = Heads { stride: width, start: keys, heads: kv_heads };
                k_norm.view().heads(gpu, keys, &mut qkv)?;
            }
        }
        self.write_kv(index)?;
        written(index)?;
        self.attend(index)?;
        let Self { gpu, pass, work, .. } = self;
        let width = heads * head_dim;
        for Range { start, end } in pass.rows.attention(rows) {
            let attended = work.attended.slice(start * width..end * width);
            let residual = Residual {
                x: work.x.slice_mut(start * hidden..end * hidden),
                delta: work.normed.slice_mut(start * hidden..end * hidden),
            };
            let after = layer.attention_norms.after.as_ref();
            residual.add(gpu, &mut pass.products, (&layer.attention_output, after), &attended)?;
        }
        Ok(())
    }

    /// Turns queries and keys; keys and values go to their pages.
    fn write_kv(&mut self, index: usize) -> Result<(), GpuError> {
        let Self { gpu, model, work, pages, pool, form, .. } = self;
        let config = model.config();
        let rotary = config.attention[index].rotary;
        let rope = Rope {
            // A layer without positions turns nothing.
            frequencies: rotary
                .map_or(model.no_frequencies.slice(..0), |rotary| model.rotaries[rotary].as_view()),
            magnitude: rotary.map_or(1.0, |rotary| config.rotaries[rotary].magnitude),
            heads: config.heads,
            layer: index,
            pool: *pool,
        };
        let places =
            Places { positions: work.words.slice(form.positions()), slots: work.words.slice(form.slots()) };
        let width = (config.heads + 2 * config.kv_heads) * config.head_dim;
        rope.write(gpu, &places, &mut work.qkv.slice_mut(..form.rows() * width), *pages)
    }

    /// Attention of the single tokens, then of the chunks.
    fn attend(&mut self, index: usize) -> Result<(), GpuError> {
        let Self { gpu, pass, model, work, pages, pool, form } = self;
        let config = model.config();
        let attention = Attention {
            heads: config.heads,
            scale: config.attention_scale,
            cap: config.attention_softcap,
            window: config.attention[index].window,
            layer: index,
        };
        let (width, out_width) =
            ((config.heads + 2 * config.kv_heads) * config.head_dim, config.heads * config.head_dim);
        let (singles, rows) = (form.singles, form.rows());
        let table = form.table();
        let (single_table, chunk_table) = (table.start, table.start + singles * form.table_pages);
        let lengths = form.lengths();
        let (lengths, chunk_lengths) =
            (lengths.start..lengths.start + singles, lengths.start + singles..lengths.end);
        let paged = |table| Paged {
            shape: *pool,
            pool: pages.as_view(),
            table: work.words.slice(table),
            max_pages: form.table_pages,
        };
        if singles > 0 {
            let shares = pass.shares.iter().find(|(window, _)| *window == attention.window);
            let Some((_, shares)) = shares else { return Ok(()) };
            let inputs = Inputs {
                q: &work.qkv.slice(..singles * width),
                pages: &paged(single_table..chunk_table),
                kv_len: &work.words.slice(lengths),
                shares,
            };
            let mut out = work.attended.slice_mut(..singles * out_width);
            pass.decode.run(gpu, &attention, &inputs, &mut out)?;
        }
        if form.chunks > 0 {
            let chunks = Rows {
                q: &work.qkv.slice(singles * width..rows * width),
                rows: form.chunk_rows,
                tiles: &work.words.slice(form.tiles()),
            };
            let cached = paged(chunk_table..table.end);
            let unpacked = match &mut work.unpacked {
                Some(room) => room.of(gpu, (&cached, index), &work.words.slice(chunk_lengths))?,
                None => None,
            };
            let layer = if unpacked.is_some() { 0 } else { index };
            let pages = unpacked.as_ref().unwrap_or(&cached);
            let mut out = work.attended.slice_mut(singles * out_width..rows * out_width);
            attention::prefill(gpu, &Attention { layer, ..attention }, &chunks, pages, &mut out)?;
        }
        Ok(())
    }

    /// Bands of rows one after another.
    fn feed_forward(&mut self, layer: &Layer) -> Result<(), GpuError> {
        let Self { gpu, pass, model, work, form, .. } = self;
        let &ModelConfig { hidden, intermediate, .. } = model.config();
        for Range { start, end } in pass.rows.feed_forward(form.rows()) {
            let band = start * hidden..end * hidden;
            let mut gated = work.gated.slice_mut(..(end - start) * intermediate);
            let input = Normed {
                norm: layer.mlp_norms.before.as_ref(),
                x: work.x.slice(band.clone()),
                normed: work.normed.slice_mut(band.clone()),
            };
            pass.products.gated(gpu, &layer.gate_up, input, (&mut work.gate_up, &mut gated))?;
            let residual = Residual { x: work.x.slice_mut(band.clone()), delta: work.normed.slice_mut(band) };
            let after = layer.mlp_norms.after.as_ref();
            residual.add(gpu, &mut pass.products, (&layer.down, after), &gated)?;
        }
        Ok(())
    }

    /// Logits of the wanted rows, and a token drawn from each.
    fn logits(&mut self) -> Result<(), GpuError> {
        let Self { gpu, pass, model, work, form, .. } = self;
        let config = model.config();
        let (hidden, wanted) = (config.hidden, form.wanted);
        if wanted == 0 {
            return Ok(());
        }
        let x = work.x.slice(..form.rows() * hidden);
        let mut last = work.last.slice_mut(..wanted * hidden);
        if !form.is_decode() {
            gather(gpu, hidden, &x, &work.words.slice(form.wanted()), &mut last)?;
        }
        let source = if form.is_decode() { x } else { last.as_view() };
        let mut logits = work.logits.slice_mut(..wanted * config.vocab);
        for Range { start, end } in pass.rows.attention(wanted) {
            let input = Normed {
                norm: Some(&model.norm),
                x: source.slice(start * hidden..end * hidden),
                normed: work.normed.slice_mut(start * hidden..end * hidden),
            };
            let mut logits = logits.slice_mut(start * config.vocab..end * config.vocab);
            pass.products.run_f32(gpu, model.output(), input, &mut logits)?;
        }
        if let Some(cap) = config.logit_softcap {
            softcap(gpu, cap, &mut logits)?;
        }
        if form.is_shaped {
            let tokens = Tokens { rows: work.words.slice(form.tokens()), drawn: Some(work.drawn.as_view()) };
            let shapes = Shapes {
                words: work.words.slice(form.shapes()),
                masks: work.histories.masks.as_view(),
                tokens: &tokens,
                capacity: work.histories.capacity,
            };
            shape(gpu, &shapes, &mut work.histories.lists, &mut logits)?;
        }
        let draws = work.words.slice(form.draws());
        sample(gpu, &logits, &draws, &mut work.drawn.slice_mut(..wanted))
    }
}

/// Cuts rows into bands of about `each`, and less than half more.
fn bands(rows: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (rows.saturating_add(each / 2) / each).max(1);
    (0..count).map(move |band| band * rows / count..(band + 1) * rows / count)
}

/// How many rows are over and few.
fn rest(rows: usize) -> usize {
    let rest = rows % TILE_ROWS;
    if (2 * TILE_ROWS..MANY_ROWS).contains(&rows) && rest <= TILE_ROWS / 2 { rest } else { 0 }
}

/// Shape of a pool without pages.
pub(super) fn pool(config: &ModelConfig, form: KvForm) -> PoolShape {
    let &ModelConfig { layers, kv_heads, head_dim, .. } = config;
    PoolShape { form, pages: 0, layers, page_tokens: super::PAGE_TOKENS as usize, kv_heads, head_dim }
}

#[cfg(test)]
mod tests {
    use super::{BAND_ROWS, Bands, MAX_BAND_ROWS, bands};

    #[test]
    fn few_rows_over_go_by_themselves() {
        let cut = |rows, has_rests| {
            let bands = Bands { attention: usize::MAX, feed_forward: BAND_ROWS, has_rests };
            let all: Vec<_> = bands.feed_forward(rows).collect();
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start), "{rows}");
            all.iter().map(std::ops::Range::len).collect::<Vec<_>>()
        };
        assert_eq!(cut(2073, true), [2048, 25]);
        assert_eq!(cut(2073, false), [2073]);
        assert_eq!(cut(576, true), [512, 64]);
        for whole in [0, 25, 130, 512, 577, 2048, 4097] {
            assert_eq!(cut(whole, true), cut(whole, false), "{whole}");
        }
        assert_eq!(cut(3600, true), [1792, 1792, 16]);
    }

    #[test]
    fn bands_cover_all_rows_in_about_equal_parts() {
        for rows in [1, 2047, 2048, 3071, 3072, 4000, 8192, 8200] {
            let bands: Vec<_> = bands(rows, BAND_ROWS).collect();
            assert!(bands[0].start == 0 && bands.last().is_some_and(|band| band.end == rows), "{rows}");
            assert!(bands.windows(2).all(|pair| pair[0].end == pair[1].start), "{rows}");
            assert!(bands.iter().all(|band| band.len() <= MAX_BAND_ROWS), "{rows}");
            assert_eq!(super::bands(rows, usize::MAX).count(), 1);
        }
    }
}
