//! Activations as tile registers want them: bf16, in strips of two tiles of rows.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;

use crate::cpu::{
    amx::{Amx, BLOCK, Blocks, Line, MAX_ROWS, Tiles},
    element::Element,
    pool::ComputePool,
    simd::{Simd, Work},
    tile::{PANEL, Tile},
};

/// All activations of a product: `[strip][input / 32][part][row][32]`.
pub(super) struct Strips<'a> {
    amx: Amx,
    lines: &'a [Line],
    /// Of a strip. The last one may lack some of them.
    pub rows: usize,
    /// Numbers of bf16 that an activation is the sum of.
    parts: usize,
    cols: usize,
}

/// Strips of a rectangle, and the registers to multiply them in.
pub(super) struct Band<'a> {
    strips: &'a Strips<'a>,
    first: usize,
    count: usize,
    tiles: Tiles,
}

/// One strip to be filled with some rows of activations.
struct Fill<'a, A> {
    a: &'a [A],
    cols: usize,
    rows: usize,
    lines: &'a mut [Line],
}

// === impl Strips ===

impl<'a> Strips<'a> {
    /// Cuts activations of `cols` inputs into parts. `lines` is memory to use.
    pub fn new<A: Element>(
        pool: &ComputePool,
        amx: Amx,
        a: &[A],
        cols: usize,
        lines: &'a mut Vec<Line>,
    ) -> Self {
        let count = a.len() / cols;
        // Of about equal height.
        let rows = count.div_ceil(count.div_ceil(MAX_ROWS).max(1)).max(1);
        let strip = rows * A::PARTS * cols / BLOCK;
        let len = count.div_ceil(rows) * strip;
        if lines.len() < len {
            lines.resize(len, Line::zeroed());
        }
        let strips = lines[..len].chunks_exact_mut(strip);
        let fills = a.chunks(rows * cols).zip(strips).map(|(a, lines)| Fill { a, cols, rows, lines });
        pool.for_each(fills.collect(), |fill| pool.isa().run(fill));
        Self { amx, lines: &lines[..len], rows, parts: A::PARTS, cols }
    }

    /// The strips of some rows, which begin with a strip.
    pub fn band(&self, rows: Range<usize>) -> Band<'_> {
        let strips = rows.start / self.rows..rows.end.div_ceil(self.rows);
        Band { strips: self, first: strips.start, count: strips.len(), tiles: self.amx.tiles(self.rows) }
    }

    /// Where in a strip the lines of an input begin.
    fn line(&self, input: usize) -> usize {
        input / BLOCK * self.parts * self.rows
    }
}

// === impl Band ===

impl Band<'_> {
    /// With those that only fill up the last strip.
    pub fn rows(&self) -> usize {
        self.count * self.strips.rows
    }

    /// The sums over inputs from `input` on, as many as `values` has pairs for: `[input / 2][32][2]`.
    pub fn multiply(&self, input: usize, values: &[bf16], sums: &mut [f32]) {
        let Strips { lines, rows, parts, cols, .. } = *self.strips;
        let strips = lines.chunks_exact(self.strips.line(cols)).skip(self.first);
        for (strip, sums) in strips.zip(sums.chunks_exact_mut(rows * PANEL)) {
            let lines = bytemuck::cast_slice(&strip[self.strips.line(input)..]);
            let a = Blocks { values: lines, stride: BLOCK, step: rows * BLOCK, parts };
            self.tiles.multiply(a, values, Tile { values: sums, stride: PANEL, accumulate: input > 0 });
        }
    }
}

impl<A: Element> Work for Fill<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { a, cols, rows, lines } = self;
        for (r, row) in a.chunks_exact(cols).enumerate() {
            for (block, values) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                let mut split = [Line::zeroed(); 2];
                A::split(s, values, &mut split);
                for (part, line) in split[..A::PARTS].iter().enumerate() {
                    lines[(block * A::PARTS + part) * rows + r] = *line;
                }
            }
        }
        // What is missing at the end was filled by an earlier product, or never.
        for lines in lines.chunks_exact_mut(rows) {
            lines[a.len() / cols..].fill(Line::zeroed());
        }
    }
}
