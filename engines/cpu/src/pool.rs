//! One thread pool for all kernels: work is claimed in chunks, waiting threads spin briefly, then yield, then sleep.
//!
//! A launch is a fork and a join, hundreds of times per step, so a join must not cost a system call; but a machine is
//! shared, so nobody spins for long. Chunks are claimed one by one: a thread that the system has put aside holds up
//! one chunk, not its share of the whole, and nothing at all when it has none: whoever finishes the last chunk of a launch
//! makes the next one ready. The last chunks are small, so that all threads end together; a thread that waits for the others
//! asks memory for the weights that come next.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use lathe_kernels::prefetch;

/// Polls before a waiting thread gives its time slice away: some microseconds, longer than the gap between two kernels.
const SPINS: u32 = 4_000;
/// Time slices given away before an idle worker sleeps.
const YIELDS: u32 = 64;

/// Time after which a thread offers its core to others between two launches: less than a time slice, so that a thread which
/// shares its core is put aside while it holds no chunk that others wait for. On a core of its own it goes on at once.
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

/// Launches one after the other, each spread over threads.
pub trait Launches: Send + Sync {
    /// Makes the next launch ready; `None` after the last one. All threads are done with the launch before; which thread this
    /// is called on differs.
    fn next(&mut self) -> Option<Launch>;

    /// Does ranges of the launch that `next` made ready last. `worker` is below the pool's number of threads and is never in two
    /// calls at a time.
    fn work(&self, worker: usize, ranges: &mut Claims<'_>);
}

/// What there is to do in a launch.
#[derive(Clone, Copy)]
pub struct Launch {
    /// Units, handed out in ranges that cover each once.
    pub units: usize,
    /// What the launches after this one read first.
    pub ahead: Stream,
}

/// A launch that threads claim from.
#[derive(Clone, Copy)]
struct Job {
    launch: Launch,
    chunks: usize,
}

impl Job {
    fn range(&self, chunk: usize, threads: usize) -> Range<usize> {
        let at = |index| boundary(index, self.launch.units, self.chunks, threads);
        at(chunk)..at(chunk + 1)
    }
}

/// Memory that is read from its beginning on, in chunks; only ever asked for, never read here.
#[derive(Clone, Copy)]
pub struct Stream {
    start: *const u8,
    len: usize,
}

// SAFETY: an address that nobody reads.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Nothing.
    pub const NONE: Stream = Stream { start: std::ptr::null(), len: 0 };

    /// These bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Stream { start: bytes.as_ptr(), len: bytes.len() }
    }

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

/// The chunks that one thread claims of a launch, one after the other.
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
        let chunk = shared.claim()?;
        self.taken += 1;
        Some(job.range(chunk, shared.threads()))
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
    /// What is run; valid from before the first job is published until `ended`.
    launches: UnsafeCell<Option<*mut (dyn Launches + 'static)>>,
    /// Nobody touches `launches` any more.
    ended: AtomicBool,
    /// Set when a launch panicked; [`Pool::run`] panics in turn.
    panicked: AtomicBool,
    stop: AtomicBool,
    /// The workers' threads; written before the first job.
    workers: OnceLock<Vec<Thread>>,
    /// One flag per worker: asleep, needs an unpark.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` and `launches` are written while no chunk is claimable, by the thread that finished the last one or, when
// nothing runs, by the caller of `run`; they are read after a successful claim, which synchronises with the publication of the
// claim word. What `launches` points at is `Send` and `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Worker threads and the calling thread together; the caller is worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Turn,
}

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

/// One launch of a function.
struct Single<F> {
    units: Option<usize>,
    work: F,
}

impl<F: Fn(usize, &mut Claims<'_>) + Send + Sync> Launches for Single<F> {
    fn next(&mut self) -> Option<Launch> {
        Some(Launch { units: self.units.take()?, ahead: Stream::NONE })
    }

    fn work(&self, worker: usize, ranges: &mut Claims<'_>) {
        (self.work)(worker, ranges);
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
            launches: UnsafeCell::new(None),
            ended: AtomicBool::new(true),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            workers: OnceLock::new(),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(n_workers), turn: Turn(Instant::now()) };
        for index in 0..n_workers {
            let shared = Arc::clone(&pool.shared);
            pool.workers.push(
                std::thread::Builder::new()
                    .name(format!("lathe-worker-{}", index + 1))
                    .spawn(move || work(&shared, index))?,
            );
        }
        let threads = pool.workers.iter().map(|worker| worker.thread().clone());
        pool.shared.workers.get_or_init(|| threads.collect());
        Ok(pool)
    }

    /// One launch: runs `work(worker, ranges)` as [`Pool::run`] does.
    pub fn launch(&mut self, units: usize, work: impl Fn(usize, &mut Claims<'_>) + Send + Sync) {
        self.run(&mut Single { units: Some(units), work });
    }

    /// Runs all launches, each on some threads so that their ranges together cover its units once; returns when all are done.
    /// Allocates nothing.
    ///
    /// # Panics
    /// When a launch panicked; those after it are not begun.
    pub fn run(&mut self, launches: &mut impl Launches) {
        let shared = &*self.shared;
        let borrowed: *mut (dyn Launches + '_) = launches;
        // SAFETY: only the lifetime changes: this function does not return before `ended`, after which nobody uses the
        // pointer.
        let erased: *mut (dyn Launches + 'static) = unsafe { std::mem::transmute(borrowed) };
        shared.ended.store(false, Ordering::Relaxed);
        // SAFETY: nothing runs, so the claim word is exhausted and nobody reads this.
        unsafe { *shared.launches.get() = Some(erased) };
        shared.advance(0);
        let mut lines = None;
        let mut polls = 0;
        while !shared.ended.load(Ordering::Acquire) {
            if let Some(ahead) = shared.participate(0) {
                lines = Some(ahead.lines(0, shared.threads()));
                polls = 0;
                self.turn.offer();
                continue;
            }
            polls += 1;
            match lines.as_mut().and_then(Iterator::next) {
                Some(line) => prefetch(line),
                None if polls < SPINS => std::hint::spin_loop(),
                None => std::thread::yield_now(),
            }
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker cannot panic outside of a launch, and those panics were reported by `run`.
            drop(worker.join());
        }
    }
}

impl Shared {
    /// Threads, the caller of [`Pool::run`] included.
    fn threads(&self) -> usize {
        self.asleep.len() + 1
    }

    /// Claims the next chunk of whatever job there is.
    fn claim(&self) -> Option<usize> {
        let mut word = self.claim.load(Ordering::Acquire);
        loop {
            let next = word & ((1 << NEXT_BITS) - 1);
            let count = (word >> NEXT_BITS) & ((1 << COUNT_BITS) - 1);
            if next >= count {
                return None;
            }
            match self.claim.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(next as usize),
                Err(now) => word = now,
            }
        }
    }

    /// Makes launches ready until there is one for others to take part in, or none. To be called by one thread at a time, when
    /// no job is open: by the one that finished the last chunk.
    fn advance(&self, worker: usize) {
        // SAFETY: no job is open, so nobody else reads or writes it.
        let Some(launches) = (unsafe { *self.launches.get() }) else { return };
        let next = || {
            loop {
                // SAFETY: it lives until `ended`, and nobody else uses it while no job is open.
                let launch = unsafe { (*launches).next() }?;
                if self.threads() > 1 && launch.units > 1 {
                    return Some(launch);
                }
                if launch.units > 0 {
                    let mut all = Claims { shared: None, first: Some(0..launch.units), taken: 0 };
                    // SAFETY: as above.
                    unsafe { (*launches).work(worker, &mut all) };
                }
            }
        };
        match catch_unwind(AssertUnwindSafe(next)) {
            Ok(Some(launch)) => self.publish(launch),
            Ok(None) => self.ended.store(true, Ordering::Release),
            Err(_) => self.fail(),
        }
    }

    /// Opens a job.
    fn publish(&self, launch: Launch) {
        let chunks = launch.units.min((LARGE + SMALL) * self.threads());
        // SAFETY: the last job's chunks are all finished and its claim word is exhausted: nobody reads `job` now.
        unsafe { *self.job.get() = Some(Job { launch, chunks }) };
        self.finished.store(0, Ordering::Relaxed);
        let number = (self.claim.load(Ordering::Relaxed) >> (NEXT_BITS + COUNT_BITS)) + 1;
        let word = (number << (NEXT_BITS + COUNT_BITS)) | ((chunks as u64) << NEXT_BITS);
        // Sequentially consistent with the workers' `asleep`: either they see the job or we see them asleep.
        self.claim.store(word, Ordering::SeqCst);
        for (flag, thread) in self.asleep.iter().zip(self.workers.get().into_iter().flatten()) {
            if flag.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    fn fail(&self) {
        self.panicked.store(true, Ordering::Relaxed);
        self.ended.store(true, Ordering::Release);
    }

    /// Works on the job while there is something to claim; `None` when there was nothing, else what is read next.
    fn participate(&self, worker: usize) -> Option<Stream> {
        let chunk = self.claim()?;
        // SAFETY: a chunk was claimed, so the job is published, and stays until we report it finished.
        let (job, launches) = unsafe { ((*self.job.get())?, (*self.launches.get())?) };
        let mut claims =
            Claims { shared: Some((self, job)), first: Some(job.range(chunk, self.threads())), taken: 1 };
        // SAFETY: as above; `next` is not called before all chunks are finished.
        let launch = || unsafe { (*launches).work(worker, &mut claims) };
        if catch_unwind(AssertUnwindSafe(launch)).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        let before = self.finished.fetch_add(claims.taken, Ordering::AcqRel);
        if (before + claims.taken) as usize == job.chunks {
            if self.panicked.load(Ordering::Relaxed) {
                self.fail();
            } else {
                self.advance(worker);
            }
        }
        Some(job.launch.ahead)
    }
}

fn work(shared: &Shared, index: usize) {
    let worker = index + 1;
    let mut idle = 0;
    let mut lines = None;
    let mut turn = Turn(Instant::now());
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(ahead) = shared.participate(worker) {
            idle = 0;
            lines = Some(ahead.lines(worker, shared.threads()));
            turn.offer();
            continue;
        }
        idle += 1;
        if let Some(line) = lines.as_mut().and_then(Iterator::next) {
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
                pool.launch(units, |worker, ranges| {
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
            pool.launch(16, |_, ranges| {
                sum.fetch_add(ranges.flatten().count(), Ordering::Relaxed);
            });
            if round % 4000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert_eq!(sum.into_inner(), 320_000);
    }

    /// Launches of differing sizes that each add one to every cell, and see what the launch before did.
    struct Chain {
        sizes: Vec<usize>,
        done: usize,
        cells: Vec<AtomicUsize>,
        /// A launch whose `next` panics.
        faulty: Option<usize>,
    }

    impl Launches for Chain {
        fn next(&mut self) -> Option<Launch> {
            if let Some(last) = self.done.checked_sub(1) {
                let units = self.sizes[last];
                let counts: Vec<usize> = self.cells.iter_mut().map(|c| std::mem::take(c.get_mut())).collect();
                assert!(counts[..units].iter().all(|&c| c == 1), "launch {last}: {counts:?}");
                assert!(counts[units..].iter().all(|&c| c == 0), "launch {last}: {counts:?}");
            }
            assert_ne!(self.faulty, Some(self.done));
            self.done += 1;
            Some(Launch { units: *self.sizes.get(self.done - 1)?, ahead: Stream::NONE })
        }

        fn work(&self, _: usize, ranges: &mut Claims<'_>) {
            for unit in ranges.flatten() {
                self.cells[unit].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn chain(launches: usize) -> Chain {
        let sizes = (0..launches).map(|i| [64, 1, 0, 7, 200, 2][i % 6]).collect();
        let cells = (0..200).map(|_| AtomicUsize::new(0)).collect();
        Chain { sizes, done: 0, cells, faulty: None }
    }

    #[test]
    fn launches_follow_each_other_on_whatever_thread() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for launches in [0, 1, 2, 10_000] {
                let mut chain = chain(launches);
                pool.run(&mut chain);
                assert_eq!(chain.done, launches + 1);
            }
        }
    }

    #[test]
    fn a_panic_between_launches_ends_them() {
        let mut pool = Pool::new(3).unwrap();
        let mut chain = Chain { faulty: Some(50), ..chain(100) };
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(&mut chain)));
        assert!(outcome.is_err());
        assert_eq!(chain.done, 50);
        pool.run(&mut self::chain(100));
    }

    #[test]
    fn a_panic_reaches_the_submitter_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.launch(48, |_, ranges| ranges.for_each(|r| assert!(!r.contains(&40), "unit 40")));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.launch(48, |_, ranges| {
            sum.fetch_add(ranges.flatten().count(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 48);
    }
}
