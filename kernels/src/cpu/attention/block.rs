//! Some heads and query positions of one sequence: what a thread works on.

use std::ops::Range;

use super::{AttentionSequence, AttentionShape, Call, RANGE_KEYS};
use crate::cpu::{
    amx::Amx,
    element::Element,
    simd::{LANES, Simd},
    tile::PANEL,
};

/// Bytes that memory is read by.
const LINE_BYTES: usize = 64;

/// Query positions of a block.
const BLOCK_POSITIONS: usize = 64;

/// With fewer positions a block has all heads: they lie side by side in memory, and
/// reading is most of its work. With more it has one head, so that its keys stay in the cache.
const MANY_POSITIONS: usize = 4;

/// A block's rows are `[kv_head][position][query head of the group]`.
pub(super) struct Block<'a, E> {
    call: &'a Call<'a, E>,
    sequence: &'a AttentionSequence<'a, E>,
    /// Key/value heads.
    pub kv_heads: Range<usize>,
    /// Of the sequence's new tokens.
    positions: Range<usize>,
}

/// Key and value rows of a range, zeros at positions that no row sees.
pub(super) struct Keys<'a, E> {
    pub rows: [&'a [E]; RANGE_KEYS],
    /// Panels of positions that some row sees.
    pub panels: Range<usize>,
}

// === impl Block ===

impl<'a, E: Element> Block<'a, E> {
    /// The blocks of a sequence.
    pub fn of(call: &'a Call<'a, E>, sequence: &'a AttentionSequence<'a, E>) -> Vec<Self> {
        let mut blocks = Vec::new();
        for first in (0..sequence.rows).step_by(BLOCK_POSITIONS) {
            let positions = first..sequence.rows.min(first + BLOCK_POSITIONS);
            let heads = call.shape.kv_heads;
            let each = if positions.len() < MANY_POSITIONS { heads } else { 1 };
            for first in (0..heads).step_by(each) {
                let (kv_heads, positions) = (first..first + each, positions.clone());
                blocks.push(Self { call, sequence, kv_heads, positions });
            }
        }
        blocks
    }

    #[inline]
    pub fn shape(&self) -> AttentionShape {
        self.call.shape
    }

    /// The tile registers, if they make its products.
    #[inline]
    pub fn amx(&self) -> Option<Amx> {
        self.call.amx
    }

    /// Rows of one of its key/value heads.
    #[inline]
    fn head_rows(&self) -> usize {
        self.positions.len() * self.shape().group()
    }

    /// Rows in all.
    #[inline]
    pub fn rows(&self) -> usize {
        self.kv_heads.len() * self.head_rows()
    }

    /// Columns of values and output in whole panels.
    #[inline]
    pub fn padded_dim(&self) -> usize {
        self.shape().head_dim.next_multiple_of(PANEL)
    }

    /// Products of queries and keys.
    pub fn work(&self) -> usize {
        self.rows() * self.seen().len()
    }

    /// Position of the first row.
    #[inline]
    fn first(&self) -> usize {
        self.sequence.start + self.positions.start
    }

    /// Position of a row.
    #[inline]
    pub fn position(&self, row: usize) -> usize {
        self.first() + row % self.head_rows() / self.shape().group()
    }

    /// Positions that some row sees.
    pub fn seen(&self) -> Range<usize> {
        self.shape().first_seen(self.first())..self.sequence.start + self.positions.end
    }

    /// Ranges of keys that some row sees.
    pub fn ranges(&self) -> Range<usize> {
        let seen = self.seen();
        seen.start / RANGE_KEYS..seen.end.div_ceil(RANGE_KEYS)
    }

    /// Rows of a key/value head.
    #[inline]
    pub fn rows_of(&self, kv_head: usize) -> Range<usize> {
        let first = (kv_head - self.kv_heads.start) * self.head_rows();
        first..first + self.head_rows()
    }

    /// Rows of a key/value head that see a key of a range, which some row sees.
    pub fn seers(&self, kv_head: usize, range: usize) -> Range<usize> {
        let (first, group, base) = (self.first(), self.shape().group(), range * RANGE_KEYS);
        let end = self.shape().window.map_or(usize::MAX, |window| base + RANGE_KEYS - 1 + window);
        let positions = base.max(first) - first..end.min(first + self.positions.len()) - first;
        let rows = self.rows_of(kv_head).start;
        rows + positions.start * group..rows + positions.end * group
    }

    /// Keys of a range that a row sees of it.
    #[inline]
    pub fn seen_of(&self, row: usize, range: usize) -> Range<usize> {
        let (position, base) = (self.position(row), range * RANGE_KEYS);
        let within = |at: usize| at.saturating_sub(base).min(RANGE_KEYS);
        within(self.shape().first_seen(position))..within(position + 1)
    }

    /// Panels of a range that some of these rows of a head see.
    #[inline]
    pub fn panels(&self, rows: Range<usize>, range: usize) -> Range<usize> {
        let (first, last) = (self.seen_of(rows.start, range), self.seen_of(rows.end - 1, range));
        first.start / PANEL..last.end.div_ceil(PANEL)
    }

    /// The keys of a range.
    pub fn keys(&self, range: usize) -> Keys<'a, E> {
        let (tokens, len) = (self.shape().page_tokens, self.shape().kv_row());
        let (seen, base) = (self.seen(), range * RANGE_KEYS);
        let (from, end) = (seen.start.max(base), seen.end.min(base + RANGE_KEYS));
        let (mut page, mut token) = (from / tokens - self.sequence.first_page, from % tokens);
        let mut rows = [self.call.no_key; RANGE_KEYS];
        for row in &mut rows[from - base..end - base] {
            *row = &self.sequence.pages[page][token * len..][..len];
            token += 1;
            if token == tokens {
                (page, token) = (page + 1, 0);
            }
        }
        Keys { rows, panels: (from - base) / PANEL..(end - base).div_ceil(PANEL) }
    }

    /// Rows of a page lie apart too far for the processor to foresee the next one.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, s: S, rows: &[&'a [E]; PANEL], kv_head: usize) {
        let dim = self.shape().head_dim;
        for row in rows {
            for head in [kv_head, self.shape().kv_heads + kv_head] {
                for line in row[head * dim..][..dim].chunks(LINE_BYTES / size_of::<E>()) {
                    s.prefetch(line.as_ptr());
                }
            }
        }
    }

    /// Elements of `q` and `out` where the group's heads of each position begin, in the order of rows.
    fn heads_at(&self) -> impl Iterator<Item = usize> {
        let shape = self.shape();
        let head = move |kv_head: usize| kv_head * shape.group() * shape.head_dim;
        let (first_row, positions) = (self.sequence.first_row, self.positions.clone());
        self.kv_heads.clone().flat_map(move |kv_head| {
            positions.clone().map(move |position| (first_row + position) * shape.q_row() + head(kv_head))
        })
    }

    /// Copies the queries together: `[row][head_dim]`.
    pub fn load_queries(&self, queries: &mut [E]) {
        let len = self.shape().group() * self.shape().head_dim;
        for (to, at) in queries.chunks_exact_mut(len).zip(self.heads_at()) {
            to.copy_from_slice(&self.call.q[at..][..len]);
        }
    }

    /// Rounds `outputs`, `[row][padded head_dim]`, to where they belong.
    #[inline(always)]
    pub fn store<S: Simd>(&self, s: S, outputs: &[f32]) {
        let (dim, group) = (self.shape().head_dim, self.shape().group());
        let mut outputs = outputs.chunks_exact(self.padded_dim());
        for at in self.heads_at() {
            for (head, output) in outputs.by_ref().take(group).enumerate() {
                // SAFETY: no other block has these heads of this row.
                let to = unsafe { self.call.out.part(at + head * dim, dim) };
                let (to, to_rest) = to.as_chunks_mut::<LANES>();
                let (from, from_rest) = output[..dim].as_chunks::<LANES>();
                for (to, from) in to.iter_mut().zip(from) {
                    E::store(s, s.load(from), to);
                }
                for (to, from) in to_rest.iter_mut().zip(from_rest) {
                    *to = E::from_f32(*from);
                }
            }
        }
    }
}
