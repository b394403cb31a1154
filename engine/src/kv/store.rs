//! Where pages are: trait [`KvStore`].

use std::{
    io::{self, IoSlice, IoSliceMut},
    ops::Range,
};

use baton_protocol::{DeviceSpan, KvShape};

/// Index of a page in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// A run of bytes within one layer of one page: whole rows, or some heads of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which page.
    pub page: PageId,
    /// Which layer.
    pub layer: usize,
    /// Which of the layer's bytes; they start and end with an element or a scale.
    pub bytes: Range<usize>,
}

/// Takes the bytes of pieces, one slice a piece, in order.
pub type UseBytes<'a> = dyn FnMut(&[IoSlice<'_>]) -> io::Result<()> + 'a;

/// Fills the bytes of pieces, one slice a piece, in order.
pub type FillBytes<'a> = dyn FnMut(&mut [IoSliceMut<'_>]) -> io::Result<()> + 'a;

/// KV rows of all pages, in whatever memory their backend computes on:
/// `[page][layer]` pieces of `[token][row]`. Pieces of one layer of one page
/// stand together where they are given, in ascending order and disjoint.
///
/// Who may touch which page is the pool's business.
pub trait KvStore: Send + Sync {
    /// Shape of the rows.
    fn shape(&self) -> &KvShape;

    /// How many pages there are.
    fn pages(&self) -> usize;

    /// Lends the bytes of rows that the backend has reported as done, or a handoff has written.
    ///
    /// # Errors
    /// Those of `use_bytes`, and of the device.
    fn read(&self, pieces: &[Piece], use_bytes: &mut UseBytes<'_>) -> io::Result<()>;

    /// Has rows filled; steps that begin after it returns see them. What is in
    /// them after an error is not known.
    ///
    /// # Errors
    /// Those of `fill`, and of the device.
    fn write(&self, pieces: &[Piece], fill: &mut FillBytes<'_>) -> io::Result<()>;

    /// Where pieces lie on a card, for as long as this store lives; none when they are not on
    /// one. Copies of pages enqueued before have ended.
    ///
    /// # Errors
    /// Those of the device.
    fn on_device(&self, _pieces: &[Piece]) -> io::Result<Option<DeviceSpan>> {
        Ok(None)
    }

    /// Copies all layers of a page (copy-on-write of a shared tail); steps that
    /// begin after it returns see the copy. A device that fails at it fails the next step too.
    fn copy_page(&self, from: PageId, to: PageId);

    /// Fills all layers of pages with zeros, in the same order with steps and copies as
    /// [`copy_page`](Self::copy_page).
    fn zero_pages(&self, pages: &[PageId]);
}
