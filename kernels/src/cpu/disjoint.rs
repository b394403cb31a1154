//! One output slice, written by many threads in parts that do not overlap.

#![expect(unsafe_code, reason = "threads write interleaved parts (columns of rows) of one slice")]

use std::marker::PhantomData;

/// A slice that tasks may take parts of.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]` to other threads, which is sending `T`; that
// the parts do not overlap is promised by the callers of `part`.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `at .. at + len`.
    ///
    /// # Panics
    /// When they are not in the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[inline(always)]
    pub unsafe fn part(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: within the slice that is borrowed for 'a; not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
