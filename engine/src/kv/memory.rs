//! The memory behind pages: one lock a page and layer, so that a handoff can
//! read finished layers of a page while the engine writes later ones.
//!
//! Who may write what is the pool's business (a page being written belongs to
//! one sequence or one handoff). The locks make a mistake a wait, not a data
//! race; in correct operation none is ever contended for writing.

use baton_protocol::KvShape;
use half::bf16;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Index of a page in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// KV rows of all pages: `[page][layer]` pieces of `[token][K|V][kv_head][head_dim]`.
pub struct KvMemory {
    shape: KvShape,
    /// Words keep the pieces aligned for both element types.
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
        let pieces = (0..pages * shape.layers as usize)
            .map(|_| RwLock::new(vec![0u32; words].into_boxed_slice()))
            .collect();
        Self { shape, pieces }
    }

    /// Shape of the rows.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// One layer of one page for reading.
    pub fn read(&self, page: PageId, layer: usize) -> PageRead<'_> {
        PageRead(self.piece(page, layer).read())
    }

    /// One layer of one page for writing.
    pub fn write(&self, page: PageId, layer: usize) -> PageWrite<'_> {
        PageWrite(self.piece(page, layer).write())
    }

    /// Copies all layers of a page (copy-on-write of a shared tail).
    pub fn copy_page(&self, from: PageId, to: PageId) {
        for layer in 0..self.shape.layers as usize {
            let source = self.piece(from, layer).read();
            self.piece(to, layer).write().copy_from_slice(&source);
        }
    }

    fn piece(&self, page: PageId, layer: usize) -> &RwLock<Box<[u32]>> {
        debug_assert!(layer < self.shape.layers as usize);
        &self.pieces[page.0 as usize * self.shape.layers as usize + layer]
    }
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
