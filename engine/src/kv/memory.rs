//! Pages in the machine's memory: one lock a page and layer, so that a handoff
//! can read finished layers of a page while the engine writes later ones.
//!
//! Who may write what is the pool's business (a page being written belongs to
//! one sequence or one handoff). The locks make a mistake a wait, not a data
//! race; in correct operation none is ever contended for writing.

use std::io::{self, IoSlice, IoSliceMut};

use baton_protocol::KvShape;
use half::bf16;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{FillBytes, KvStore, PageId, Piece, UseBytes};

/// KV rows of all pages: `[page][layer]` pieces of `[token][row]`.
pub struct KvMemory {
    shape: KvShape,
    /// Length of a piece.
    words: usize,
    /// Words keep the pieces aligned for both element types. Empty until its page is
    /// used for the first time: a pool takes the memory that was ever needed at once.
    pieces: Vec<RwLock<Box<[u32]>>>,
}

/// One layer of one page, readable.
pub struct PageRead<'a>(pub(crate) RwLockReadGuard<'a, Box<[u32]>>);

/// One layer of one page, writable.
pub struct PageWrite<'a>(pub(crate) RwLockWriteGuard<'a, Box<[u32]>>);

// === impl KvMemory ===

impl KvMemory {
    /// Zeroed memory for `pages` pages.
    pub fn new(shape: KvShape, pages: usize) -> Self {
        let words = (shape.row_bytes() * shape.page_tokens as usize).div_ceil(4);
        let pieces = (0..pages * shape.layers as usize).map(|_| RwLock::default()).collect();
        Self { shape, words, pieces }
    }

    /// Shape of the rows.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pieces.len() / (self.shape.layers as usize).max(1)
    }

    /// One layer of one page for reading, by one thread also several times at once: frames of the same page
    /// leave together.
    pub fn read(&self, page: PageId, layer: usize) -> PageRead<'_> {
        let guard = self.piece(page, layer).read_recursive();
        if !guard.is_empty() {
            return PageRead(guard);
        }
        drop(guard);
        PageRead(RwLockWriteGuard::downgrade(self.write(page, layer).0))
    }

    /// One layer of one page for writing.
    pub fn write(&self, page: PageId, layer: usize) -> PageWrite<'_> {
        let mut guard = self.piece(page, layer).write();
        if guard.is_empty() {
            *guard = vec![0; self.words].into_boxed_slice();
        }
        PageWrite(guard)
    }

    fn piece(&self, page: PageId, layer: usize) -> &RwLock<Box<[u32]>> {
        debug_assert!(layer < self.shape.layers as usize);
        &self.pieces[page.0 as usize * self.shape.layers as usize + layer]
    }
}

impl KvStore for KvMemory {
    fn shape(&self) -> &KvShape {
        &self.shape
    }

    fn pages(&self) -> usize {
        self.pages()
    }

    fn read(&self, pieces: &[Piece], use_bytes: &mut UseBytes<'_>) -> io::Result<()> {
        let places = || pieces.chunk_by(same_place);
        let guards: Vec<_> = places().map(|place| self.read(place[0].page, place[0].layer)).collect();
        let mut slices = Vec::with_capacity(pieces.len());
        for (guard, place) in guards.iter().zip(places()) {
            let bytes = guard.bytes();
            slices.extend(place.iter().map(|piece| IoSlice::new(&bytes[piece.bytes.clone()])));
        }
        use_bytes(&slices)
    }

    fn write(&self, pieces: &[Piece], fill: &mut FillBytes<'_>) -> io::Result<()> {
        // Every writer of these pages takes the locks in the same order: by layer, then by token.
        let places = || pieces.chunk_by(same_place);
        let mut guards: Vec<_> = places().map(|place| self.write(place[0].page, place[0].layer)).collect();
        let mut slices = Vec::with_capacity(pieces.len());
        for (guard, place) in guards.iter_mut().zip(places()) {
            let (mut rest, mut at) = (guard.bytes(), 0);
            for piece in place {
                let (these, others) = rest[piece.bytes.start - at..].split_at_mut(piece.bytes.len());
                slices.push(IoSliceMut::new(these));
                (rest, at) = (others, piece.bytes.end);
            }
        }
        fill(&mut slices)
    }

    fn copy_page(&self, from: PageId, to: PageId) {
        for layer in 0..self.shape.layers as usize {
            let source = self.read(from, layer);
            self.write(to, layer).0.copy_from_slice(&source.0);
        }
    }

    fn zero_pages(&self, pages: &[PageId]) {
        for &page in pages {
            // What was never written is empty, and stays so.
            (0..self.shape.layers as usize).for_each(|layer| self.piece(page, layer).write().fill(0));
        }
    }
}

/// Whether two pieces are under the same lock.
fn same_place(a: &Piece, b: &Piece) -> bool {
    (a.page, a.layer) == (b.page, b.layer)
}

// === impl PageRead, PageWrite ===

impl PageRead<'_> {
    /// `[token][K|V][kv_head][head_dim]`, when the cache is bf16.
    pub fn bf16(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.0)
    }

    /// `[token][K|V][kv_head][head_dim]`, when the cache is f32.
    pub fn f32(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// The same as bytes (may end in padding to a word).
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl PageWrite<'_> {
    /// `[token][K|V][kv_head][head_dim]`, when the cache is bf16.
    pub fn bf16(&mut self) -> &mut [bf16] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// `[token][K|V][kv_head][head_dim]`, when the cache is f32.
    pub fn f32(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// The same as bytes (may end in padding to a word).
    pub fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
