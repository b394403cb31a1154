#![expect(unsafe_code, reason = "the allocator's settings belong to a C library")]
//! How the allocator holds what is free.

use std::ffi::c_int;

/// `mi_option_purge_delay` of mimalloc 3, by its place in the enumeration of `mimalloc.h`.
const PURGE_DELAY: c_int = 15;

/// What a process holds that only routes is many small things: in pages of 2 MiB, which some
/// systems give to everybody, they take a fifth more memory and no less time. What is free goes back to the
/// system at once instead of after seconds, which takes no more time either (an engine's buffers would).
///
/// To be called while there is one thread. `MIMALLOC_PURGE_DELAY` has precedence.
pub fn stay_small() {
    // A system that refuses has none to give, or insists: both work.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // SAFETY: sets a number that the library has; nobody reads it meanwhile, as no other thread runs.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_goes_back_at_once() {
        // SAFETY: the option exists in this version; reading it has no other effect.
        let before = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        stay_small();
        // SAFETY: as above.
        let after = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!((before, after), (1000, 0));
    }
}
