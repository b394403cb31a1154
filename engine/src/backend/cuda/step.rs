//! What a step computes, as the kernels read it: one block of words.

use std::{collections::HashMap, ops::Range};

use baton_kernels::{
    Draw, Shape,
    cuda::attention::{Chunk, row_tiles},
};

use crate::batch::{Batch, BatchSequence};

/// Sizes of a step, and so the places of its parts in its block. Sequences
/// with a single new token come first, the others behind them. A step of
/// single tokens alone is padded to a form that many steps share, so that its
/// kernels are recorded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Sequences with a single new token: a row each.
    pub singles: usize,
    /// Sequences with several.
    pub chunks: usize,
    /// Rows of those.
    pub chunk_rows: usize,
    /// Words that describe tiles of those rows to attention.
    pub tile_words: usize,
    /// Rows that logits are wanted of; all rows, in order, when there are no chunks.
    pub wanted: usize,
    /// Entries of a sequence in the page table.
    pub table_pages: usize,
    /// Whether logits are changed before tokens are drawn.
    pub is_shaped: bool,
}

/// A batch in the order in which its rows are computed.
pub(super) struct Step<'a> {
    pub form: Form,
    sequences: Vec<Ordered<'a>>,
    tiles: Vec<i32>,
    /// How the batch's wanted sequences draw; none: the likeliest.
    draws: &'a [Option<Draw>],
    /// Where the rows of the batch's wanted sequences come out, in batch order.
    pub outputs: Vec<usize>,
}

/// A sequence, and its first row.
struct Ordered<'a> {
    sequence: &'a BatchSequence<'a>,
    first_row: usize,
}

/// The place of a row that is no token's: its keys and values are dropped.
const NOWHERE: i32 = -1;

/// Steps of single tokens are padded to one of these numbers of sequences.
const SINGLES: [usize; 19] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];

// === impl Form ===

impl Form {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.singles + self.chunk_rows
    }

    /// The number that a step of `singles` single tokens is padded to.
    pub fn padded_singles(singles: usize) -> usize {
        SINGLES.into_iter().find(|padded| *padded >= singles).unwrap_or(singles.next_multiple_of(64))
    }

    /// Sequences in all.
    pub fn sequences(&self) -> usize {
        self.singles + self.chunks
    }

    /// Whether it is nothing but single tokens.
    pub fn is_decode(&self) -> bool {
        self.chunks == 0
    }

    /// Tokens to look up, `[row]`
    pub fn tokens(&self) -> Range<usize> {
        0..self.rows()
    }

    /// `[row]`
    pub fn positions(&self) -> Range<usize> {
        self.rows()..2 * self.rows()
    }

    /// Where a row's keys and values go: page times page size plus offset, `[row]`.
    pub fn slots(&self) -> Range<usize> {
        2 * self.rows()..3 * self.rows()
    }

    /// Tokens known after the step, `[sequence]`.
    pub fn lengths(&self) -> Range<usize> {
        let start = 3 * self.rows();
        start..start + self.sequences()
    }

    /// Tiles of the chunks' rows, counted from the first chunk's first row.
    pub fn tiles(&self) -> Range<usize> {
        let start = self.lengths().end.next_multiple_of(4);
        start..start + self.tile_words
    }

    /// Rows that logits are wanted of.
    pub fn wanted(&self) -> Range<usize> {
        let start = self.tiles().end;
        start..start + self.wanted
    }

    /// How tokens are drawn from the wanted rows.
    pub fn draws(&self) -> Range<usize> {
        let start = self.wanted().end.next_multiple_of(4);
        start..start + self.wanted * Draw::WORDS
    }

    /// What is done to the wanted rows' logits before.
    pub fn shapes(&self) -> Range<usize> {
        let start = self.draws().end;
        start..start + if self.is_shaped { self.wanted * Shape::WORDS } else { 0 }
    }

    /// Pages, `[sequence][table_pages]`.
    pub fn table(&self) -> Range<usize> {
        let start = self.shapes().end;
        start..start + self.sequences() * self.table_pages
    }

    /// Words in all.
    pub fn words(&self) -> usize {
        self.table().end
    }

    /// Words of the largest step of these limits.
    pub fn most_words(rows: usize, sequences: usize, table_pages: usize) -> usize {
        let tiles = 4 * (rows / 64 + sequences);
        let draws = sequences * (Draw::WORDS + Shape::WORDS);
        3 * rows + 2 * sequences + tiles + 8 + draws + sequences * padded_pages(table_pages)
    }
}

// === impl Step ===

impl<'a> Step<'a> {
    /// Orders a batch that was checked. If `uniform`, single tokens are computed as others are.
    pub fn new(batch: &'a Batch<'a>, page_tokens: usize, uniform: bool) -> Self {
        let is_single = |sequence: &&BatchSequence<'_>| !uniform && sequence.end - sequence.start == 1;
        let (singles, chunks): (Vec<_>, Vec<_>) = batch.sequences.iter().partition(is_single);
        let pages = batch.sequences.iter().map(|sequence| sequence.end.div_ceil(page_tokens)).max();
        let mut form = Form {
            singles: singles.len(),
            chunks: chunks.len(),
            chunk_rows: chunks.iter().map(|sequence| sequence.end - sequence.start).sum(),
            tile_words: 0,
            wanted: batch.sequences.iter().filter(|sequence| sequence.wants_logits).count(),
            table_pages: padded_pages(pages.unwrap_or(1)),
            is_shaped: batch.shapes.iter().any(Option::is_some),
        };
        if form.is_decode() {
            form.singles = Form::padded_singles(form.singles);
            form.wanted = form.singles;
        }
        let mut first_row = 0;
        let mut ordered = |sequence: &'a BatchSequence<'a>| {
            let rows = sequence.end - sequence.start;
            first_row += rows;
            Ordered { sequence, first_row: first_row - rows }
        };
        let sequences: Vec<_> = singles.into_iter().chain(chunks).map(&mut ordered).collect();
        let tiles = tiles(&sequences[sequences.len() - form.chunks..]);
        form.tile_words = tiles.len();
        let outputs = outputs(batch, &sequences, form.is_decode());
        Self { form, sequences, tiles, draws: &batch.draws, outputs }
    }

    /// Writes the block; `words` is as long as the form says. Padded rows are
    /// token 0 of a sequence without tokens. Tokens that are pending come from
    /// `previous`, the outputs of the step before.
    pub fn write(&self, page_tokens: usize, previous: &[usize], words: &mut [i32]) {
        let form = &self.form;
        words[form.tokens()].fill(0);
        words[form.positions()].fill(0);
        words[form.slots()].fill(NOWHERE);
        words[form.lengths()].fill(0);
        words[form.table()].fill(0);
        for (index, Ordered { sequence, first_row }) in self.sequences.iter().enumerate() {
            for (row, position) in (*first_row..).zip(sequence.start..sequence.end) {
                let page = sequence.pages[position / page_tokens].0 as usize;
                words[form.tokens().start + row] = word(sequence.tokens[position], previous);
                words[form.positions().start + row] = position as i32;
                words[form.slots().start + row] = (page * page_tokens + position % page_tokens) as i32;
            }
            words[form.lengths().start + index] = sequence.end as i32;
            let table = &mut words[form.table()][index * form.table_pages..][..form.table_pages];
            for (entry, page) in table.iter_mut().zip(sequence.pages) {
                *entry = page.0 as i32;
            }
        }
        words[form.tiles()].copy_from_slice(&self.tiles);
        for draw in words[form.draws()].chunks_exact_mut(Draw::WORDS) {
            draw.copy_from_slice(Draw::LIKELIEST.words());
        }
        for (output, draw) in self.outputs.iter().zip(self.draws) {
            let Some(draw) = draw else { continue };
            let at = form.draws().start + output * Draw::WORDS;
            words[at..at + Draw::WORDS].copy_from_slice(draw.words());
        }
        for (output, row) in words[form.wanted()].iter_mut().zip(self.wanted_rows()) {
            *output = row as i32;
        }
    }

    /// The row of a sequence's token at `position`, which is new.
    pub fn row(&self, sequence: &BatchSequence<'_>, position: usize) -> Option<usize> {
        let ordered = self.sequences.iter().find(|ordered| std::ptr::eq(ordered.sequence, sequence))?;
        Some(ordered.first_row + position - sequence.start)
    }

    /// Last rows of the wanted sequences, in the order of their outputs; all rows of a padded step.
    pub fn wanted_rows(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        if self.form.is_decode() {
            return Box::new(0..self.form.singles);
        }
        let wanted = self.sequences.iter().filter(|ordered| ordered.sequence.wants_logits);
        Box::new(wanted.map(|Ordered { sequence, first_row }| first_row + sequence.end - sequence.start - 1))
    }
}

/// Writes what is done to rows, by where they come out, to a form's [`shapes`](Form::shapes).
pub(super) fn write_shapes(shapes: &[(usize, Shape)], words: &mut [i32]) {
    words.chunks_exact_mut(Shape::WORDS).for_each(|shape| shape.copy_from_slice(Shape::NONE.words()));
    for (output, shape) in shapes {
        words[output * Shape::WORDS..][..Shape::WORDS].copy_from_slice(shape.words());
    }
}

/// Tiles of the chunks, which count rows and sequences from the first of them.
fn tiles(chunks: &[Ordered<'_>]) -> Vec<i32> {
    let Some(base) = chunks.first().map(|chunk| chunk.first_row) else { return Vec::new() };
    let chunk = |(sequence, Ordered { sequence: part, first_row }): (usize, &Ordered<'_>)| Chunk {
        sequence,
        first_row: first_row - base,
        rows: part.end - part.start,
        start: part.start,
    };
    row_tiles(&chunks.iter().enumerate().map(chunk).collect::<Vec<_>>())
}

/// A token as the kernels read it: one that is pending is `-1 - output` of the step before.
fn word(token: u32, previous: &[usize]) -> i32 {
    match previous.get((u32::MAX - token) as usize) {
        Some(output) => -1 - *output as i32,
        None => token as i32,
    }
}

/// For each wanted sequence of the batch, in its order, where its row of logits comes out.
fn outputs(batch: &Batch<'_>, ordered: &[Ordered<'_>], all_come_out: bool) -> Vec<usize> {
    let mut output = 0;
    let mut by_sequence = HashMap::with_capacity(ordered.len());
    for Ordered { sequence, .. } in ordered {
        if all_come_out || sequence.wants_logits {
            by_sequence.insert(std::ptr::from_ref(*sequence), output);
            output += 1;
        }
    }
    let wanted = batch.sequences.iter().filter(|sequence| sequence.wants_logits);
    wanted.map(|sequence| by_sequence[&std::ptr::from_ref(sequence)]).collect()
}

/// Page tables are padded too, to few different lengths.
fn padded_pages(pages: usize) -> usize {
    pages.next_power_of_two().max(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::pending, kv::PageId};

    const PAGES: [PageId; 3] = [PageId(5), PageId(2), PageId(9)];
    const TOKENS: [u32; 10] = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19];

    fn part(start: usize, end: usize, wants_logits: bool) -> BatchSequence<'static> {
        BatchSequence { tokens: &TOKENS, start, end, pages: &PAGES, wants_logits }
    }

    fn words(step: &Step<'_>) -> Vec<i32> {
        let mut words = vec![77; step.form.words()];
        step.write(4, &[3, 1], &mut words);
        words
    }

    #[test]
    fn single_tokens_come_first_and_chunks_behind() {
        let batch =
            Batch::new(vec![part(2, 5, true), part(6, 7, false), part(0, 2, false), part(9, 10, true)]);
        let step = Step::new(&batch, 4, false);
        let form = step.form;
        assert_eq!((form.singles, form.chunks, form.chunk_rows, form.wanted), (2, 2, 5, 2));
        let words = words(&step);
        assert_eq!(words[form.tokens()], [16, 19, 12, 13, 14, 10, 11]);
        assert_eq!(words[form.positions()], [6, 9, 2, 3, 4, 0, 1]);
        assert_eq!(
            words[form.slots()],
            [2 * 4 + 2, 9 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3, 2 * 4, 5 * 4, 5 * 4 + 1]
        );
        assert_eq!(words[form.lengths()], [7, 10, 5, 2]);
        assert_eq!(
            words[form.tiles()],
            row_tiles(&[
                Chunk { sequence: 0, first_row: 0, rows: 3, start: 2 },
                Chunk { sequence: 1, first_row: 3, rows: 2, start: 0 },
            ])
        );
        // The single token's row comes out first, though the chunk is first in the batch.
        assert_eq!((&words[form.wanted()], &step.outputs[..]), (&[1, 4][..], &[1, 0][..]));
        assert_eq!(words[form.table()][..4], [5, 2, 9, 0]);
        assert_eq!(words.len(), form.words());
    }

    #[test]
    fn steps_of_single_tokens_are_padded() {
        let batch = Batch::new(vec![part(3, 4, true), part(4, 5, false), part(9, 10, true)]);
        let step = Step::new(&batch, 4, false);
        let form = step.form;
        assert_eq!((form.singles, form.chunks, form.wanted, form.table_pages), (4, 0, 4, 16));
        let words = words(&step);
        assert_eq!(words[form.tokens()], [13, 14, 19, 0]);
        assert_eq!(words[form.slots()][3], NOWHERE);
        assert_eq!(words[form.lengths()], [4, 5, 10, 0]);
        assert_eq!(words[form.table()][48..], [0; 16]);
        assert_eq!((&words[form.wanted()], &step.outputs[..]), (&[0, 1, 2, 3][..], &[0, 2][..]));
    }

    #[test]
    fn draws_stand_where_their_rows_come_out() {
        let mut batch = Batch::new(vec![part(2, 5, true), part(6, 7, false), part(9, 10, true)]);
        let draw = |share| Draw { share, temperature: 0.5, ..Draw::LIKELIEST };
        batch.draws = vec![Some(draw(7)), Some(draw(8))];
        let step = Step::new(&batch, 4, false);
        let words = words(&step);
        // The single token's row comes out first, though the chunk is first in the batch.
        let shares: Vec<_> = words[step.form.draws()].chunks_exact(Draw::WORDS).map(|draw| draw[4]).collect();
        assert_eq!((&step.outputs[..], &shares[..]), (&[1, 0][..], &[8, 7][..]));
    }

    #[test]
    fn a_uniform_step_has_no_single_tokens() {
        let batch = Batch::new(vec![part(3, 4, true), part(4, 6, false)]);
        let form = Step::new(&batch, 4, true).form;
        assert_eq!((form.singles, form.chunks, form.chunk_rows, form.wanted), (0, 2, 3, 1));
        assert!(!form.is_decode());
    }

    #[test]
    fn pending_tokens_name_rows_of_the_step_before() {
        let tokens = [10, pending(1)];
        let sequence = BatchSequence { tokens: &tokens, start: 1, end: 2, pages: &PAGES, wants_logits: true };
        let batch = Batch::new(vec![sequence]);
        assert_eq!(words(&Step::new(&batch, 4, false))[0], -1 - 1);
    }

    #[test]
    fn parts_of_a_block_do_not_overlap_and_fit() {
        for (singles, chunks, chunk_rows) in [(0, 1, 512), (3, 2, 70), (256, 0, 0), (7, 7, 700)] {
            let tile_words = 4 * (chunk_rows / 64 + chunks);
            let wanted = singles + chunks;
            let form =
                Form { singles, chunks, chunk_rows, tile_words, wanted, table_pages: 32, is_shaped: true };
            let parts = [
                form.tokens(),
                form.positions(),
                form.slots(),
                form.lengths(),
                form.tiles(),
                form.wanted(),
                form.draws(),
                form.shapes(),
                form.table(),
            ];
            assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(form.words() <= Form::most_words(form.rows(), form.sequences(), 24), "{form:?}");
        }
    }

    #[test]
    fn padding_is_little() {
        for singles in 1..2000 {
            assert!(
                (singles..singles + singles.clamp(4, 65)).contains(&Form::padded_singles(singles)),
                "{singles}"
            );
        }
    }
}
