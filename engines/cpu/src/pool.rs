//! One thread pool for all kernels: work is claimed in chunks, waiting threads spin briefly, then yield, then sleep.
//!
//! A kernel is a fork and a join, hundreds of times per step, so a join must not cost a system call; but a machine is
//! shared, so nobody spins for long. Chunks are claimed one by one: a thread that the system has put aside holds up
//! one chunk, not its share of the whole.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};

/// Polls before a waiting thread gives its time slice away: some microseconds, longer than the gap between two kernels.
const SPINS: u32 = 4_000;
/// Time slices given away before an idle worker sleeps.
const YIELDS: u32 = 64;
/// Chunks per thread; more even out threads that run at different speeds, fewer cost fewer claims.
const CHUNKS_PER_THREAD: usize = 8;

/// Fields of the claim word, low to high: next chunk, number of chunks, job number.
const NEXT_BITS: u32 = 16;
const COUNT_BITS: u32 = 16;

type Job<'a> = &'a (dyn Fn(usize, Range<usize>) + Sync);

struct Shared {
    /// Job number, chunk count and next chunk in one word, so that a late thread can never claim from a new job
    /// with an old job's data.
    claim: AtomicU64,
    /// Chunks of the current job that are finished.
    finished: AtomicU32,
    /// The job; valid from the moment its claim word is published until its last chunk is finished.
    job: UnsafeCell<Option<(Job<'static>, usize, usize)>>,
    /// Set when a chunk panicked; the submitter panics in turn.
    panicked: AtomicBool,
    stop: AtomicBool,
    /// One flag per worker: asleep, needs an unpark.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the submitter while no chunk is claimable, and read only after a successful claim, which
// synchronises with the publication of the claim word.
unsafe impl Sync for Shared {}

/// Worker threads and the calling thread together; the caller is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl Pool {
    /// A pool of `threads` threads, the caller included; at least one.
    ///
    /// # Errors
    /// The system's error when a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let n_workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            claim: AtomicU64::new(0),
            finished: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(n_workers) };
        for index in 0..n_workers {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("lathe-worker-{}", index + 1))
                .spawn(move || work(&shared, index))?;
            pool.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(worker, range)` so that the ranges cover `0..units` once; returns when all are done. Allocates
    /// nothing. `worker` is below [`Pool::threads`] and never runs two ranges at a time.
    ///
    /// # Panics
    /// When a chunk panicked.
    pub fn run(&mut self, units: usize, job: impl Fn(usize, Range<usize>) + Sync) {
        let max_chunks = (self.threads() * CHUNKS_PER_THREAD).min((1 << COUNT_BITS) - 1);
        let chunks = units.min(max_chunks);
        if self.workers.is_empty() || chunks <= 1 {
            if units > 0 {
                job(0, 0..units);
            }
            return;
        }
        let shared = &*self.shared;
        let borrowed: Job<'_> = &job;
        // SAFETY: this function does not return before every chunk is finished, and nobody touches the job after
        // finishing its last chunk, so the borrow outlives all uses.
        let erased: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(borrowed) };
        // SAFETY: the last job's chunks are all finished and its claim word is exhausted: nobody reads `job` now.
        unsafe { *shared.job.get() = Some((erased, units, chunks)) };
        shared.finished.store(0, Ordering::Relaxed);
        let number = (shared.claim.load(Ordering::Relaxed) >> (NEXT_BITS + COUNT_BITS)) + 1;
        let word = (number << (NEXT_BITS + COUNT_BITS)) | ((chunks as u64) << NEXT_BITS);
        // Sequentially consistent with the workers' `asleep`: either they see the job or we see them asleep.
        shared.claim.store(word, Ordering::SeqCst);
        for (flag, (thread, _)) in shared.asleep.iter().zip(&self.workers) {
            if flag.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        while run_chunk(shared, 0) {}
        let mut polls = 0;
        while shared.finished.load(Ordering::Acquire) < chunks as u32 {
            polls += 1;
            if polls < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel panicked on a worker thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker cannot panic outside a chunk, and those panics were reported by `run`.
                drop(handle.join());
            }
        }
    }
}

/// Claims and runs one chunk; false when none is left.
fn run_chunk(shared: &Shared, worker: usize) -> bool {
    let mut word = shared.claim.load(Ordering::Acquire);
    let chunk = loop {
        let next = word & ((1 << NEXT_BITS) - 1);
        let count = (word >> NEXT_BITS) & ((1 << COUNT_BITS) - 1);
        if next >= count {
            return false;
        }
        match shared.claim.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break next as usize,
            Err(now) => word = now,
        }
    };
    // SAFETY: a chunk was claimed, so the job is published and its submitter waits until we report it finished.
    let Some((job, units, chunks)) = (unsafe { *shared.job.get() }) else { return false };
    let range = chunk * units / chunks..(chunk + 1) * units / chunks;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(worker, range)));
    if outcome.is_err() {
        shared.panicked.store(true, Ordering::Relaxed);
    }
    shared.finished.fetch_add(1, Ordering::Release);
    true
}

fn work(shared: &Shared, index: usize) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if run_chunk(shared, index + 1) {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle < SPINS {
            std::hint::spin_loop();
        } else if idle < SPINS + YIELDS {
            std::thread::yield_now();
        } else {
            shared.asleep[index].store(true, Ordering::SeqCst);
            let word = shared.claim.load(Ordering::SeqCst);
            let empty = word & ((1 << NEXT_BITS) - 1) >= (word >> NEXT_BITS) & ((1 << COUNT_BITS) - 1);
            if empty && !shared.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            shared.asleep[index].store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_unit_runs_once_whatever_the_counts() {
        for threads in [1, 2, 3, 8] {
            let mut pool = Pool::new(threads).unwrap();
            for units in [0, 1, 2, 7, 63, 64, 65, 1000] {
                let hits: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                pool.run(units, |worker, range| {
                    assert!(worker < threads);
                    for i in range {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(
                    hits.iter().all(|h| h.load(Ordering::Relaxed) == 1),
                    "{threads} threads {units} units"
                );
            }
        }
    }

    #[test]
    fn many_short_jobs_and_pauses() {
        let mut pool = Pool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(16, |_, range| {
                sum.fetch_add(range.len(), Ordering::Relaxed);
            });
            if round % 4000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert_eq!(sum.into_inner(), 320_000);
    }

    #[test]
    fn a_panic_reaches_the_submitter_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(48, |_, range| assert!(!range.contains(&40), "unit 40"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(48, |_, range| {
            sum.fetch_add(range.len(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 48);
    }
}
