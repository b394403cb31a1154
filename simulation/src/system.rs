//! The system calls by which one run would differ from the next: clocks and
//! random bytes. They are defined here in place of the C library's, so that
//! nothing in production code knows of it: `std::time::Instant`, hash maps,
//! `fastrand` and `getrandom` all end here. Outside a run they are the system's.

#![allow(unsafe_code, reason = "two functions of the C library are defined")]

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Nanoseconds that a run has lasted, and one more; 0 is no run.
static ELAPSED: AtomicU64 = AtomicU64::new(0);

/// Seconds by which the clock on the wall is wrong.
static JUMPED: AtomicI64 = AtomicI64::new(0);

/// State of the random bytes.
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// When a run begins, by either clock: long after the beginning of time.
const BEGIN_SECONDS: i64 = 1_800_000_000;

/// From now on this process has the clocks and random bytes of a run, for good.
pub fn begin(seed: u64) {
    RANDOM.store(seed ^ 0x9e37_79b9_7f4a_7c15, Relaxed);
    ELAPSED.store(1, Relaxed);
}

/// What clocks show from now on.
pub fn set_elapsed(elapsed: Duration) {
    ELAPSED.store(elapsed.as_nanos() as u64 + 1, Relaxed);
}

/// How long the run has lasted.
pub fn elapsed() -> Duration {
    Duration::from_nanos(ELAPSED.load(Relaxed).saturating_sub(1))
}

/// Sets the clock on the wall forward or back.
pub fn jump(seconds: i64) {
    JUMPED.fetch_add(seconds, Relaxed);
}

/// As in the C library.
///
/// # Safety
/// `to` must be valid for writing, as its callers promise the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, to: *mut libc::timespec) -> c_int {
    let Some(elapsed) = ELAPSED.load(Relaxed).checked_sub(1) else {
        // SAFETY: the system call has the function's own contract.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, to) } as c_int;
    };
    let on_wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    let begin = BEGIN_SECONDS + if on_wall { JUMPED.load(Relaxed) } else { 0 };
    let time = libc::timespec {
        tv_sec: begin + (elapsed / 1_000_000_000) as i64,
        tv_nsec: (elapsed % 1_000_000_000) as i64,
    };
    // SAFETY: the caller says that it may be written.
    unsafe { to.write(time) };
    0
}

/// As in the C library.
///
/// # Safety
/// `to` must be valid for writing `bytes` bytes, as its callers promise the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(to: *mut c_void, bytes: usize, flags: c_uint) -> isize {
    if ELAPSED.load(Relaxed) == 0 {
        // SAFETY: the system call has the function's own contract.
        return unsafe { libc::syscall(libc::SYS_getrandom, to, bytes, flags) } as isize;
    }
    for at in 0..bytes {
        // SAFETY: `at` is below the length that the caller allows.
        unsafe { to.cast::<u8>().add(at).write((next() >> 32) as u8) };
    }
    bytes as isize
}

/// splitmix64
fn next() -> u64 {
    let step = 0x9e37_79b9_7f4a_7c15_u64;
    let word = RANDOM.fetch_add(step, Relaxed).wrapping_add(step);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}
