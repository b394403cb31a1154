//! Activations as whole numbers, for weights that are whole numbers in groups.
//!
//! ```text
//! out[r][j] = sum over groups g of  scale[g][j] * scale[r][g] * (sum over k in g of a[r][k] * q[j][k])
//!                                 + min[g][j] * scale[r][g] * (sum over k in g of a[r][k])
//! ```
//!
//! The inner sums are exact, so a row's bits depend neither on the rows beside it nor on
//! the instructions. A number has fifteen bits, in two parts: `a = 128 * high + low`.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::cpu::{
    amx::{Amx, Line, WholeTiles, Wholes},
    element::Element,
    packed::{GROUP, Group, Quads},
    pool::ComputePool,
    simd::{LANES, Simd, Work},
    tile::PANEL,
};

/// The greatest number: its high part is 127.
const GREATEST: f32 = 127.0 * 128.0;

/// Values that are all less are taken for zero: their scale would not be a normal number.
const LEAST: f32 = 1e-30;

/// Added to a number and taken away, it leaves the nearest whole one in its lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Fewer rows of a strip are multiplied by vectors.
const MIN_TILE_ROWS: usize = 4;

/// All activations of a product: `[strip][group][row]`.
pub(super) struct Quants<'a> {
    amx: Option<Amx>,
    lines: &'a [Numbers],
    marks: &'a [Mark],
    /// Of a strip. The last one may lack some of them.
    pub rows: usize,
    groups: usize,
}

/// Strips of a rectangle.
pub(super) struct Band<'a> {
    quants: &'a Quants<'a>,
    strips: Range<usize>,
    tiles: Option<WholeTiles>,
}

/// A group of a panel of weights, and its numbers as bytes.
struct Part<'a, G> {
    index: usize,
    group: &'a G,
    quads: &'a Quads,
}

/// A group of a row: the high parts of its numbers, then the low ones.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Numbers([[[i8; 4]; GROUP / 4]; 2]);

/// What belongs to [`Numbers`].
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Mark {
    scale: f32,
    /// Sum of the numbers.
    sum: i32,
    /// What that stands for.
    total: f32,
    /// So that they fill lines.
    rest: u32,
}

/// One strip to be filled with some rows of activations.
struct Fill<'a, A> {
    a: &'a [A],
    cols: usize,
    rows: usize,
    lines: &'a mut [Numbers],
    marks: &'a mut [Mark],
}

// === impl Quants ===

impl<'a> Quants<'a> {
    /// Rounds activations of `cols` inputs. `memory` is memory to use.
    pub fn new<A: Element>(pool: &ComputePool, a: &[A], cols: usize, memory: &'a mut Vec<Line>) -> Self {
        let (count, groups) = (a.len() / cols, cols / GROUP);
        // Of about equal height.
        let rows = count.div_ceil(count.div_ceil(LANES).max(1)).max(1);
        let len = count.div_ceil(rows) * rows * groups;
        let marks = (len * size_of::<Mark>()).div_ceil(size_of::<Line>());
        if memory.len() < len + marks {
            memory.resize(len + marks, Line::zeroed());
        }
        let (lines, marks) = memory.split_at_mut(len);
        let lines: &mut [Numbers] = bytemuck::cast_slice_mut(lines);
        let marks: &mut [Mark] = &mut bytemuck::cast_slice_mut(marks)[..len];
        let strips = lines.chunks_exact_mut(rows * groups).zip(marks.chunks_exact_mut(rows * groups));
        let fill = |(a, (lines, marks))| Fill { a, cols, rows, lines, marks };
        pool.for_each(a.chunks(rows * cols).zip(strips).map(fill).collect(), |fill| pool.isa().run(fill));
        let amx = pool.isa().amx().filter(|_| rows >= MIN_TILE_ROWS);
        Self { amx, lines, marks, rows, groups }
    }

    /// The strips of some rows, which begin with a strip.
    pub fn band(&self, rows: Range<usize>) -> Band<'_> {
        let strips = rows.start / self.rows..rows.end.div_ceil(self.rows);
        Band { quants: self, strips, tiles: self.amx.map(|amx| amx.whole_tiles(self.rows)) }
    }
}

impl Quants<'_> {
    /// A group of a strip.
    #[inline(always)]
    fn group(&self, strip: usize, group: usize) -> (&[Numbers], &[Mark]) {
        let at = (strip * self.groups + group) * self.rows;
        (&self.lines[at..][..self.rows], &self.marks[at..][..self.rows])
    }
}

// === impl Band ===

impl Band<'_> {
    /// With those that only fill up the last strip.
    pub fn rows(&self) -> usize {
        self.strips.len() * self.quants.rows
    }

    /// The products with a panel, added up group by group. `wholes` is memory to use.
    #[inline(always)]
    pub fn multiply<S: Simd, G: Group>(
        &self,
        s: S,
        groups: &[G],
        wholes: &mut [Wholes; 2],
        sums: &mut [f32],
    ) {
        sums.fill(0.0);
        let mut memory = [[[0; 4 * LANES]; GROUP / 4]; PANEL / LANES];
        for (index, group) in groups.iter().enumerate() {
            let quads = group.quads(&mut memory);
            if self.tiles.is_some() {
                self.multiply_in_tiles(s, Part { index, group, quads }, wholes, sums);
                continue;
            }
            let strips = self.strips.clone().map(|strip| self.quants.group(strip, index));
            for (strip, sums) in strips.zip(sums.chunks_exact_mut(self.quants.rows * PANEL)) {
                multiply_strip(s, group, quads, strip, sums.as_chunks_mut().0);
            }
        }
    }

    /// The registers multiply a strip while the sums of the one before are added.
    #[inline(always)]
    fn multiply_in_tiles<S: Simd, G: Group>(
        &self,
        s: S,
        Part { index, group, quads }: Part<'_, G>,
        wholes: &mut [Wholes; 2],
        sums: &mut [f32],
    ) {
        let Some(tiles) = &self.tiles else { return };
        let [now, last] = wholes;
        let (mut now, mut last, mut before) = (now, last, None);
        for (strip, sums) in self.strips.clone().zip(sums.chunks_exact_mut(self.quants.rows * PANEL)) {
            let (lines, marks) = self.quants.group(strip, index);
            tiles.multiply(bytemuck::cast_slice(lines), quads, now);
            if let Some((marks, sums)) = before.replace((marks, sums.as_chunks_mut().0)) {
                add_strip(s, group, last, marks, sums);
            }
            (now, last) = (last, now);
        }
        if let Some((marks, sums)) = before {
            add_strip(s, group, last, marks, sums);
        }
    }
}

/// By vectors.
#[inline(always)]
fn multiply_strip<S: Simd, G: Group>(
    s: S,
    group: &G,
    quads: &Quads,
    (lines, marks): (&[Numbers], &[Mark]),
    sums: &mut [[f32; PANEL]],
) {
    for (v, quads) in quads.iter().enumerate() {
        let weights = Weights::new(s, group, v);
        let quads = quads.each_ref().map(|quads| s.load_quads(quads));
        for ((Numbers([high, low]), mark), sums) in lines.iter().zip(marks).zip(&mut *sums) {
            let (mut highs, mut lows) = (s.no_whole(), s.no_whole());
            for (i, quads) in quads.into_iter().enumerate() {
                highs = s.dot_quads(highs, high[i], quads);
                lows = s.dot_quads(lows, low[i], quads);
            }
            weights.add([highs, lows], mark, &mut sums.as_chunks_mut().0[v]);
        }
    }
}

/// Sums of a strip that tile registers have made.
#[inline(always)]
fn add_strip<S: Simd, G: Group>(
    s: S,
    group: &G,
    Wholes(wholes): &Wholes,
    marks: &[Mark],
    sums: &mut [[f32; PANEL]],
) {
    for (v, [highs, lows]) in wholes.iter().enumerate() {
        let weights = Weights::new(s, group, v);
        for (((high, low), mark), sums) in highs.iter().zip(lows).zip(marks).zip(&mut *sums) {
            let parts = [s.load_whole(high), s.load_whole(low)];
            weights.add(parts, mark, &mut sums.as_chunks_mut().0[v]);
        }
    }
}

/// What sixteen rows of a group of weights share, and the instructions.
struct Weights<S: Simd> {
    s: S,
    scale: S::V,
    min: Option<S::V>,
    offset: i32,
}

// === impl Weights ===

impl<S: Simd> Weights<S> {
    #[inline(always)]
    fn new<G: Group>(s: S, group: &G, v: usize) -> Self {
        let min = group.mins().map(|mins| s.load_f16(&mins[v]));
        Self { s, scale: s.load_f16(&group.scales()[v]), min, offset: G::OFFSET }
    }

    /// Adds what sums of a group stand for.
    #[inline(always)]
    fn add(&self, [high, low]: [S::Whole; 2], mark: &Mark, to: &mut [f32; LANES]) {
        let s = self.s;
        let products = s.mul(s.value(high, low, self.offset.wrapping_mul(mark.sum)), self.scale);
        let mut sum = s.fma(products, s.splat(mark.scale), s.load(to));
        if let Some(min) = self.min {
            sum = s.fma(min, s.splat(mark.total), sum);
        }
        s.store(sum, to);
    }
}

// === impl Fill ===

impl<A: Element> Work for Fill<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, cols, rows, lines, marks } = self;
        for (r, row) in a.chunks_exact(cols).enumerate() {
            for (g, values) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                (lines[g * rows + r], marks[g * rows + r]) = round(s, values);
            }
        }
        // What is missing at the end was filled by an earlier product, or never.
        for (lines, marks) in lines.chunks_exact_mut(rows).zip(marks.chunks_exact_mut(rows)) {
            lines[a.len() / cols..].fill(Numbers::zeroed());
            marks[a.len() / cols..].fill(Mark::zeroed());
        }
    }
}

/// The nearest whole multiples of a scale that lets the greatest value just fit. If a
/// value is no number, so is the scale.
#[inline(always)]
fn round<S: Simd, A: Element>(s: S, values: &[A; GROUP]) -> (Numbers, Mark) {
    let [first, second] = [0, 1].map(|half| A::load(s, &values.as_chunks().0[half]));
    let size = |v| s.max(v, s.sub(s.splat(0.0), v));
    let greatest = s.greatest(s.max(size(first), size(second)));
    // Infinity times nothing is no number, and stays none in a sum.
    let health = s.sum(s.mul(s.add(first, second), s.splat(0.0)));
    if greatest < LEAST && health == 0.0 {
        return (Numbers::zeroed(), Mark::zeroed());
    }
    let mut bits = [[0.0; LANES]; 2];
    for (v, bits) in [first, second].into_iter().zip(&mut bits) {
        s.store(s.fma(v, s.splat(GREATEST / greatest), s.splat(ROUND)), bits);
    }
    let numbers: [i32; GROUP] =
        std::array::from_fn(|i| bits.as_flattened()[i].to_bits().wrapping_sub(ROUND.to_bits()) as i32);
    let mut parts = [[0; GROUP]; 2];
    for (i, number) in numbers.into_iter().enumerate() {
        let high = number.wrapping_add(64) >> 7;
        parts[0][i] = high as i8;
        parts[1][i] = number.wrapping_sub(high << 7) as i8;
    }
    let sum = numbers.into_iter().fold(0, i32::wrapping_add);
    let scale = greatest / GREATEST + health;
    (Numbers(bytemuck::cast(parts)), Mark { scale, sum, total: scale * sum as f32, rest: 0 })
}
