//! Activations as whole numbers, for weights that are whole numbers in groups.
//!
//! ```text
//! out[r][j] = sum over groups g of  scale[g][j] * scale[r][g] * (sum over k in g of a[r][k] * q[j][k])
//!                                 + min[g][j] * scale[r][g] * (sum over k in g of a[r][k])
//! ```
//!
//! The inner sums are exact, so a row's bits depend neither on the rows beside it nor on
//! the instructions. A number has twelve bits, in two parts: `a = 16 * high + low`. So
//! registers that hold `16 * q` and `q` of four bits make one sum of both parts.

use std::{array, iter, ops::Range};

use bytemuck::{Pod, Zeroable};

use crate::cpu::{
    amx::{Amx, Line, WholeTiles, Wholes},
    element::Element,
    packed::{GROUP, Group, Joined, Quads},
    pool::ComputePool,
    simd::{LANES, Simd, Work},
    tile::PANEL,
};

/// The greatest number: its high part is 127.
const GREATEST: f32 = 127.0 * 16.0;

/// Values that are all less are taken for zero: their scale would not be a normal number.
const LEAST: f32 = 1e-30;

/// Added to a number and taken away, it leaves the nearest whole one in its lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Groups whose sums are made before they are added: registers hold what belongs to as many.
const AT_ONCE: usize = 4;

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

/// Memory of a thread.
pub(super) struct Memory {
    quads: Quads,
    joined: [Joined; 2 * AT_ONCE],
    /// Sums of two strips.
    wholes: [[Wholes; 2 * AT_ONCE]; 2],
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

// === impl Memory ===

impl Memory {
    pub const ZERO: Self = Self {
        quads: [[[0; 4 * LANES]; GROUP / 4]; PANEL / LANES],
        joined: [[[[0; 4 * LANES]; GROUP / 2]; PANEL / LANES]; 2 * AT_ONCE],
        wholes: [const { [Wholes::ZERO; 2 * AT_ONCE] }; 2],
    };
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
    /// Some groups of a strip.
    #[inline(always)]
    fn groups(&self, strip: usize, first: usize, count: usize) -> (&[Numbers], &[Mark]) {
        let (at, len) = ((strip * self.groups + first) * self.rows, count * self.rows);
        (&self.lines[at..][..len], &self.marks[at..][..len])
    }
}

// === impl Band ===

impl Band<'_> {
    /// With those that only fill up the last strip.
    pub fn rows(&self) -> usize {
        self.strips.len() * self.quants.rows
    }

    /// The products with a panel, added up group by group. `memory` is memory to use.
    #[inline(always)]
    pub fn multiply<S: Simd, G: Group>(&self, s: S, groups: &[G], memory: &mut Memory, sums: &mut [f32]) {
        match self.tiles {
            Some(_) => self.multiply_in_tiles(s, groups, memory, sums),
            None => self.multiply_by_vectors(s, groups, &mut memory.quads, sums),
        }
    }

    #[inline(always)]
    fn multiply_by_vectors<S: Simd, G: Group>(
        &self,
        s: S,
        groups: &[G],
        memory: &mut Quads,
        sums: &mut [f32],
    ) {
        sums.fill(0.0);
        for (index, group) in groups.iter().enumerate() {
            let quads = group.quads(memory);
            let strips = self.strips.clone().map(|strip| self.quants.groups(strip, index, 1));
            for (strip, sums) in strips.zip(sums.chunks_exact_mut(self.quants.rows * PANEL)) {
                multiply_strip(s, group, quads, strip, sums.as_chunks_mut().0);
            }
        }
    }

    /// Some groups at a time. The registers multiply a strip while the sums of the one before are added.
    #[inline(always)]
    fn multiply_in_tiles<S: Simd, G: Group>(
        &self,
        s: S,
        groups: &[G],
        Memory { joined, wholes, .. }: &mut Memory,
        sums: &mut [f32],
    ) {
        let Some(tiles) = &self.tiles else { return };
        for (i, groups) in groups.chunks(AT_ONCE).enumerate() {
            for (group, to) in groups.iter().zip(joined.chunks_exact_mut(G::SUMS)) {
                group.joined(to);
            }
            let [now, last] = &mut *wholes;
            let (mut now, mut last, mut before) = (now, last, None);
            for (strip, sums) in self.strips.clone().zip(sums.chunks_exact_mut(self.quants.rows * PANEL)) {
                let (lines, marks) = self.quants.groups(strip, i * AT_ONCE, groups.len());
                let lines = lines.chunks_exact(self.quants.rows);
                let lines = lines.flat_map(|lines| iter::repeat_n(lines, G::SUMS));
                for ((lines, quads), to) in lines.zip(&*joined).zip(&mut *now) {
                    tiles.multiply(bytemuck::cast_slice(lines), quads, to);
                }
                if let Some((marks, sums)) = before.replace((marks, sums.as_chunks_mut().0)) {
                    add_strip(s, groups, last, marks, Sums { rows: sums, are_new: i == 0 });
                }
                (now, last) = (last, now);
            }
            if let Some((marks, sums)) = before {
                add_strip(s, groups, last, marks, Sums { rows: sums, are_new: i == 0 });
            }
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
            let to = &mut sums.as_chunks_mut().0[v];
            s.store(weights.add::<G>(s, s.join(highs, lows), mark, s.load(to)), to);
        }
    }
}

/// Sums of a strip so far.
struct Sums<'a> {
    rows: &'a mut [[f32; PANEL]],
    /// Whether they are to start from zero.
    are_new: bool,
}

/// Sums of a strip that tile registers have made.
#[inline(always)]
fn add_strip<S: Simd, G: Group>(
    s: S,
    groups: &[G],
    wholes: &[Wholes; 2 * AT_ONCE],
    marks: &[Mark],
    mut sums: Sums<'_>,
) {
    if let Some(groups) = groups.as_array::<AT_ONCE>() {
        return add_groups(s, groups, wholes, marks, sums);
    }
    let parts = wholes.chunks_exact(G::SUMS).zip(marks.chunks_exact(sums.rows.len()));
    for (group, (wholes, marks)) in groups.iter().zip(parts) {
        add_groups(s, array::from_ref(group), wholes, marks, Sums { rows: &mut *sums.rows, ..sums });
        sums.are_new = false;
    }
}

#[inline(always)]
fn add_groups<S: Simd, G: Group, const N: usize>(
    s: S,
    groups: &[G; N],
    wholes: &[Wholes],
    marks: &[Mark],
    Sums { rows: sums, are_new }: Sums<'_>,
) {
    let rows = sums.len();
    assert!(rows <= LANES && marks.len() == N * rows && wholes.len() >= N * G::SUMS);
    for v in 0..PANEL / LANES {
        let mut weights = [Weights { scale: s.splat(0.0), min: s.splat(0.0) }; N];
        for (weights, group) in weights.iter_mut().zip(groups) {
            *weights = Weights::new(s, group, v);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let to = &mut sums.as_chunks_mut().0[v];
            let mut sum = if are_new { s.splat(0.0) } else { s.load(to) };
            for g in 0..N {
                let mut whole = s.load_whole(&wholes[g * G::SUMS].0[v][row]);
                if G::SUMS == 2 {
                    whole = s.join(whole, s.load_whole(&wholes[g * G::SUMS + 1].0[v][row]));
                }
                sum = weights[g].add::<G>(s, whole, &marks[g * rows + row], sum);
            }
            s.store(sum, to);
        }
    }
}

/// What sixteen rows of a group of weights share.
#[derive(Clone, Copy)]
struct Weights<S: Simd> {
    scale: S::V,
    min: S::V,
}

// === impl Weights ===

impl<S: Simd> Weights<S> {
    #[inline(always)]
    fn new<G: Group>(s: S, group: &G, v: usize) -> Self {
        Self { scale: s.load_f16(&group.scales()[v]), min: s.load_f16(&group.mins()[v]) }
    }

    /// Adds what the sum of a group stands for.
    #[inline(always)]
    fn add<G: Group>(&self, s: S, whole: S::Whole, mark: &Mark, sum: S::V) -> S::V {
        let products = s.mul(s.value(whole, G::OFFSET.wrapping_mul(mark.sum)), self.scale);
        let sum = s.fma(products, s.splat(mark.scale), sum);
        match G::HAS_MINS {
            true => s.fma(self.min, s.splat(mark.total), sum),
            false => sum,
        }
    }
}

// === impl Fill ===

impl<A: Element> Work for Fill<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, cols, rows, lines, marks } = self;
        for (r, row) in a.chunks_exact(cols).enumerate() {
            let mut health = s.splat(0.0);
            for (g, values) in row.as_chunks::<GROUP>().0.iter().enumerate() {
                let halves = [A::load(s, &values.as_chunks().0[0]), A::load(s, &values.as_chunks().0[1])];
                // Infinity times nothing is no number, and stays none in a sum.
                health = s.fma(s.add(halves[0], halves[1]), s.splat(0.0), health);
                (lines[g * rows + r], marks[g * rows + r]) = round(s, halves);
            }
            marks[r].scale += s.sum(health);
        }
        // What is missing at the end was filled by an earlier product, or never.
        for (lines, marks) in lines.chunks_exact_mut(rows).zip(marks.chunks_exact_mut(rows)) {
            lines[a.len() / cols..].fill(Numbers::zeroed());
            marks[a.len() / cols..].fill(Mark::zeroed());
        }
    }
}

/// The nearest whole multiples of a scale that lets the greatest value just fit.
#[inline(always)]
fn round<S: Simd>(s: S, [first, second]: [S::V; 2]) -> (Numbers, Mark) {
    let greatest = s.greatest(
        s.max(s.max(first, s.sub(s.splat(0.0), first)), s.max(second, s.sub(s.splat(0.0), second))),
    );
    if greatest < LEAST {
        return (Numbers::zeroed(), Mark::zeroed());
    }
    let scale = s.splat(GREATEST / greatest);
    let mut bits = [[0.0; LANES]; 2];
    s.store(s.fma(first, scale, s.splat(ROUND)), &mut bits[0]);
    s.store(s.fma(second, scale, s.splat(ROUND)), &mut bits[1]);
    let mut parts = [[0; GROUP]; 2];
    let mut sum = 0_i32;
    let [highs, lows] = &mut parts;
    for ((bits, high), low) in bits.as_flattened().iter().zip(highs).zip(lows) {
        let number = bits.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let upper = number.wrapping_add(8) >> 4;
        *high = upper as i8;
        *low = number.wrapping_sub(upper << 4) as i8;
        sum = sum.wrapping_add(number);
    }
    let scale = greatest / GREATEST;
    (Numbers(bytemuck::cast(parts)), Mark { scale, sum, total: scale * sum as f32, rest: 0 })
}
