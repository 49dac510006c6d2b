//! One thread pool for all kernels: work is claimed in chunks, waiting threads spin briefly, then yield, then sleep.
//!
//! A kernel is a fork and a join, hundreds of times per step, so a join must not cost a system call; but a machine is
//! shared, so nobody spins for long. Chunks are claimed one by one: a thread that the system has put aside holds up
//! one chunk, not its share of the whole. The last ones are small, so that all threads end together; a thread that waits
//! for the others asks memory for the weights that come next.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use lathe_kernels::prefetch;

/// Polls before a waiting thread gives its time slice away: some microseconds, longer than the gap between two kernels.
const SPINS: u32 = 4_000;
/// Time slices given away before an idle worker sleeps.
const YIELDS: u32 = 64;

/// Time after which a thread offers its core to others between two jobs: less than a time slice, so that a thread which shares
/// its core is put aside while it holds no chunk that others wait for. On a core of its own it goes on at once.
const TURN: Duration = Duration::from_millis(1);

/// Chunks per thread of the first three quarters of the work; more even out threads that run at different speeds, fewer
/// cost fewer claims.
const LARGE: usize = 6;
/// Chunks per thread of the last quarter, each a fourth of a large one.
const SMALL: usize = 8;
/// Small chunks that a large one is as long as.
const RATIO: usize = 4;
/// Small chunks per thread that all work is as long as.
const PARTS: usize = LARGE * RATIO + SMALL;

/// Threads whose chunks a claim word can count.
const MAX_THREADS: usize = 4096;

/// Bytes that a waiting thread asks memory for: what fits in the second-level cache beside what is there.
const AHEAD: usize = 256 << 10;
const CACHE_LINE: usize = 64;

/// Fields of the claim word, low to high: next chunk, number of chunks, job number.
const NEXT_BITS: u32 = 16;
const COUNT_BITS: u32 = 16;

type Work<'a> = &'a (dyn Fn(usize, &mut Claims<'_>) + Sync);

/// What the workers are asked to do.
#[derive(Clone, Copy)]
struct Job {
    work: Work<'static>,
    units: usize,
    chunks: usize,
    threads: usize,
    ahead: Stream,
}

impl Job {
    fn range(&self, chunk: usize) -> Range<usize> {
        let at = |index| boundary(index, self.units, self.chunks, self.threads);
        at(chunk)..at(chunk + 1)
    }
}

/// Memory that is read from its beginning on, in chunks; only ever asked for, never read here.
#[derive(Clone, Copy)]
struct Stream {
    start: *const u8,
    len: usize,
}

impl Stream {
    const NONE: Stream = Stream { start: std::ptr::null(), len: 0 };

    /// Lines with which the chunk of `worker` begins, if every worker takes a large one.
    fn lines(self, worker: usize, threads: usize) -> impl Iterator<Item = *const u8> {
        let large = self.len / (PARTS * threads) * RATIO;
        let start = self.start.wrapping_add(worker * large);
        (0..large.min(AHEAD)).step_by(CACHE_LINE).map(move |offset| start.wrapping_add(offset))
    }
}

/// Unit at which chunk `index` of `chunks` begins.
fn boundary(index: usize, units: usize, chunks: usize, threads: usize) -> usize {
    if chunks == units {
        return index;
    }
    let part = if index <= LARGE * threads { index * RATIO } else { index + LARGE * threads * (RATIO - 1) };
    part * units / (PARTS * threads)
}

/// Claims the next chunk of whatever job there is.
fn claim(shared: &Shared) -> Option<usize> {
    let mut word = shared.claim.load(Ordering::Acquire);
    loop {
        let next = word & ((1 << NEXT_BITS) - 1);
        let count = (word >> NEXT_BITS) & ((1 << COUNT_BITS) - 1);
        if next >= count {
            return None;
        }
        match shared.claim.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Some(next as usize),
            Err(now) => word = now,
        }
    }
}

/// The chunks that one thread claims of a job, one after the other.
pub struct Claims<'a> {
    /// Nothing to claim from where one thread does all of it.
    shared: Option<(&'a Shared, Job)>,
    first: Option<Range<usize>>,
    /// Chunks of this thread. They are reported when it has left the job's code, and until then the job cannot end: so
    /// what is claimed next is always of the same job.
    taken: u32,
}

impl Iterator for Claims<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let (shared, job) = self.shared?;
        let chunk = claim(shared)?;
        self.taken += 1;
        Some(job.range(chunk))
    }
}

struct Shared {
    /// Job number, chunk count and next chunk in one word, so that a late thread can never claim from a new job
    /// with an old job's data.
    claim: AtomicU64,
    /// Chunks of the current job that are finished.
    finished: AtomicU32,
    /// The job; valid from the moment its claim word is published until its last chunk is finished.
    job: UnsafeCell<Option<Job>>,
    /// Set when a chunk panicked; the submitter panics in turn.
    panicked: AtomicBool,
    stop: AtomicBool,
    /// One flag per worker: asleep, needs an unpark.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the submitter while no chunk is claimable, and read only after a successful claim, which
// synchronises with the publication of the claim word.
unsafe impl Sync for Shared {}
// SAFETY: as above; what a job borrows is `Sync`, and the stream is an address that nobody reads.
unsafe impl Send for Shared {}

/// Worker threads and the calling thread together; the caller is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    ahead: Stream,
    turn: Turn,
}

// SAFETY: the stream is an address that nobody reads.
unsafe impl Send for Pool {}

/// When a thread last offered its core to others.
struct Turn(Instant);

impl Turn {
    /// Offers the core if it is time; to be called without a chunk.
    fn offer(&mut self) {
        if self.0.elapsed() >= TURN {
            std::thread::yield_now();
            self.0 = Instant::now();
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller included; at least one and at most 4,096.
    ///
    /// # Errors
    /// The system's error when a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let n_workers = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            claim: AtomicU64::new(0),
            finished: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool {
            shared,
            workers: Vec::with_capacity(n_workers),
            ahead: Stream::NONE,
            turn: Turn(Instant::now()),
        };
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

    /// Says what the jobs after the next one will read first: threads that wait ask memory for it.
    pub fn read_ahead(&mut self, bytes: &[u8]) {
        self.ahead = Stream { start: bytes.as_ptr(), len: bytes.len() };
    }

    /// Runs `work(worker, ranges)` on some threads so that all their ranges together cover `0..units` once; returns when all are
    /// done. Allocates nothing. `worker` is below [`Pool::threads`] and is never in two calls at a time.
    ///
    /// # Panics
    /// When `work` panicked.
    pub fn run(&mut self, units: usize, work: impl Fn(usize, &mut Claims<'_>) + Sync) {
        let threads = self.threads();
        let most = (LARGE + SMALL) * threads;
        if self.workers.is_empty() || units <= 1 {
            if units > 0 {
                work(0, &mut Claims { shared: None, first: Some(0..units), taken: 0 });
            }
            return;
        }
        self.turn.offer();
        let chunks = units.min(most);
        let shared = &*self.shared;
        let borrowed: Work<'_> = &work;
        // SAFETY: this function does not return before every chunk is reported, and nobody touches the job after
        // reporting its last chunks, so the borrow outlives all uses.
        let erased: Work<'static> = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(borrowed) };
        let job = Job { work: erased, units, chunks, threads, ahead: self.ahead };
        // SAFETY: the last job's chunks are all finished and its claim word is exhausted: nobody reads `job` now.
        unsafe { *shared.job.get() = Some(job) };
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
        while participate(shared, 0).is_some() {}
        let mut lines = self.ahead.lines(0, threads);
        let mut polls = 0;
        while shared.finished.load(Ordering::Acquire) < chunks as u32 {
            polls += 1;
            match lines.next() {
                Some(line) => prefetch(line),
                None if polls < SPINS => std::hint::spin_loop(),
                None => std::thread::yield_now(),
            }
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

/// Works on the job while there is something to claim; `None` when there was nothing, else what is read next.
fn participate(shared: &Shared, worker: usize) -> Option<(Stream, usize)> {
    let chunk = claim(shared)?;
    // SAFETY: a chunk was claimed, so the job is published and its submitter waits until we report it finished.
    let job = unsafe { *shared.job.get() }?;
    let mut claims = Claims { shared: Some((shared, job)), first: Some(job.range(chunk)), taken: 1 };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (job.work)(worker, &mut claims)));
    if outcome.is_err() {
        shared.panicked.store(true, Ordering::Relaxed);
    }
    shared.finished.fetch_add(claims.taken, Ordering::Release);
    Some((job.ahead, job.threads))
}

fn work(shared: &Shared, index: usize) {
    let worker = index + 1;
    let mut idle = 0;
    let mut ahead = None;
    let mut turn = Turn(Instant::now());
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some((stream, threads)) = participate(shared, worker) {
            idle = 0;
            ahead = Some(stream.lines(worker, threads));
            turn.offer();
            continue;
        }
        idle += 1;
        if let Some(line) = ahead.as_mut().and_then(Iterator::next) {
            prefetch(line);
        } else if idle < SPINS {
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
                pool.run(units, |worker, ranges| {
                    assert!(worker < threads);
                    for i in ranges.flatten() {
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
            pool.run(16, |_, ranges| {
                sum.fetch_add(ranges.flatten().count(), Ordering::Relaxed);
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
            pool.run(48, |_, ranges| ranges.for_each(|r| assert!(!r.contains(&40), "unit 40")));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(48, |_, ranges| {
            sum.fetch_add(ranges.flatten().count(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 48);
    }
}
