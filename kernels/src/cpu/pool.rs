//! The compute threads of a process.

use std::{
    mem,
    sync::{Arc, mpsc::sync_channel},
};

use parking_lot::{Mutex, MutexGuard};
use rayon::prelude::*;

use super::{amx::Line, simd::Isa};

/// Reports that may wait for the caller of [`ComputePool::drive`] before the computation does.
const REPORTS: usize = 256;

/// A fixed number of threads that compute and otherwise sleep. One a process,
/// shared by all backends.
#[derive(Debug)]
pub struct ComputePool {
    threads: rayon::ThreadPool,
    isa: Isa,
    exact: bool,
    /// Whose turn it is: two computations at a time would only wait inside of each other.
    turn: Mutex<()>,
    /// Memory for activations as tile registers want them.
    lines: Mutex<Vec<Line>>,
}

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} compute threads")]
pub struct PoolError {
    /// How many were asked for.
    pub threads: usize,
    /// Why not.
    #[source]
    pub source: rayon::ThreadPoolBuildError,
}

// === impl ComputePool ===

impl ComputePool {
    /// Starts `threads` threads (at least one) for the best instructions of this processor.
    ///
    /// # Errors
    /// When the system refuses threads.
    pub fn new(threads: usize) -> Result<Arc<Self>, PoolError> {
        Self::with_isa(threads, Isa::best())
    }

    /// The same for products that round no activation, with the best instructions
    /// that can ([`Isa::is_exact`]).
    ///
    /// # Errors
    /// When the system refuses threads.
    pub fn exact(threads: usize) -> Result<Arc<Self>, PoolError> {
        Self::start(threads, Isa::best_exact(), true)
    }

    /// The same with chosen instructions.
    ///
    /// # Errors
    /// When the system refuses threads.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Arc<Self>, PoolError> {
        Self::start(threads, isa, false)
    }

    /// As [`exact`](Self::exact) with chosen instructions.
    ///
    /// # Panics
    /// When these are not exact.
    #[cfg(test)]
    pub(super) fn exact_with_isa(threads: usize, isa: Isa) -> Arc<Self> {
        assert!(isa.is_exact());
        Self::start(threads, isa, true).unwrap()
    }

    fn start(threads: usize, isa: Isa, exact: bool) -> Result<Arc<Self>, PoolError> {
        let threads = threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|source| PoolError { threads, source })?;
        Ok(Arc::new(Self { threads: pool, isa, exact, turn: Mutex::new(()), lines: Mutex::default() }))
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// The instructions its kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether products take activations as they are.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Lends memory that holds anything. Who comes while it is lent gets new memory.
    pub(super) fn with_lines<R>(&self, work: impl FnOnce(&mut Vec<Line>) -> R) -> R {
        let mut lines = mem::take(&mut *self.lines.lock());
        let result = work(&mut lines);
        *self.lines.lock() = lines;
        result
    }

    /// Runs a whole computation on the pool's threads. Computations of several callers
    /// take turns.
    pub fn run<R: Send>(&self, compute: impl FnOnce() -> R + Send) -> R {
        let turn = self.turn.lock();
        let result = self.threads.install(compute);
        MutexGuard::unlock_fair(turn);
        result
    }

    /// Runs `run` once for each task, on all threads; returns when all are done.
    pub fn for_each<T: Send>(&self, tasks: Vec<T>, run: impl Fn(T) + Send + Sync) {
        if tasks.len() <= 1 {
            return tasks.into_iter().for_each(run);
        }
        self.threads.install(|| tasks.into_par_iter().with_max_len(1).for_each(run));
    }

    /// As [`run`](Self::run), while the calling thread hands the computation's reports to
    /// `on_report`, in order and as they come.
    pub fn drive<R: Send>(
        &self,
        compute: impl FnOnce(&mut dyn FnMut(usize)) -> R + Send,
        on_report: &mut dyn FnMut(usize),
    ) -> R {
        let turn = self.turn.lock();
        let (reports, inbox) = sync_channel(REPORTS);
        let mut result = None;
        self.threads.in_place_scope(|scope| {
            let result = &mut result;
            scope.spawn(move |_| {
                // A send fails only when the caller's thread is unwinding.
                *result = Some(compute(&mut |report| reports.send(report).unwrap_or_default()));
            });
            inbox.iter().for_each(on_report);
        });
        MutexGuard::unlock_fair(turn);
        result.expect("the scope waits for the computation and passes on its panic")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = ComputePool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        pool.for_each((0..1000).collect(), |task| {
            sum.fetch_add(task, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 999 * 500);
    }

    #[test]
    fn work_has_the_threads_of_the_pool() {
        let pool = ComputePool::new(3).unwrap();
        let name = || std::thread::current().name().unwrap().to_owned();
        let names: Vec<String> = pool.run(|| (0..100).into_par_iter().map(|_| name()).collect());
        assert!(names.iter().all(|name| name.starts_with("compute-")), "{names:?}");
        assert_eq!(pool.run(rayon::current_num_threads), 3);
    }

    #[test]
    fn reports_arrive_in_order_on_the_calling_thread() {
        let pool = ComputePool::new(2).unwrap();
        let caller = std::thread::current().id();
        let mut seen = Vec::new();
        let result = pool.drive(
            |report| {
                assert_ne!(std::thread::current().id(), caller);
                (0..1000).for_each(report);
                7
            },
            &mut |report| {
                assert_eq!(std::thread::current().id(), caller);
                seen.push(report);
            },
        );
        assert_eq!((result, seen), (7, (0..1000).collect()));
    }

    #[test]
    #[should_panic(expected = "kernel gave up")]
    fn a_panic_of_the_computation_reaches_the_caller() {
        let pool = ComputePool::new(1).unwrap();
        pool.drive(|_| panic!("kernel gave up"), &mut |_| ());
    }
}
