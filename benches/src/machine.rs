//! The machine under test: what it is, what it can do at most, who else uses it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::Spread;

/// Cores' worth of foreign work up to which the machine counts as quiet.
pub const QUIET: f64 = 0.15;

/// What a result depends on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// `model name` of /proc/cpuinfo, with family, model and stepping as virtual machines hide the name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// GiB of memory.
    pub memory_gib: f64,
    /// `uname -r`.
    pub kernel: String,
}

impl Machine {
    /// Reads /proc.
    pub fn detect() -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name));
            line.and_then(|l| l.split(':').nth(1)).map_or("unknown", str::trim)
        };
        let meminfo = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        let kib = meminfo.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Machine {
            cpu: format!(
                "{} (family {}, model {})",
                field("model name"),
                field("cpu family"),
                field("model")
            ),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / (1 << 20) as f64,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
        })
    }
}

/// CPU time at one moment, in clock ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    at: Instant,
    busy: u64,
    own: u64,
}

/// Tells the CPU time of `processes` and this one from that of everybody else, the hypervisor's steal included.
#[derive(Debug)]
pub struct Others<'a> {
    processes: &'a [u32],
    start: Ticks,
}

fn ticks(processes: &[u32]) -> Result<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let t: Vec<u64> = first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    anyhow::ensure!(t.len() == 8, "/proc/stat: unknown form: {first}");
    let mut own = 0;
    for pid in processes.iter().chain([&std::process::id()]) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Fields are counted from behind the name, which may hold spaces: utime and stime are 14 and 15 of all.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        own += fields.filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
    }
    // user nice system idle iowait irq softirq steal
    let busy = t.iter().sum::<u64>() - t[3] - t[4];
    Ok(Ticks { at: Instant::now(), busy, own })
}

impl<'a> Others<'a> {
    /// Starts to count.
    pub fn start(processes: &'a [u32]) -> Result<Self> {
        Ok(Others { processes, start: ticks(processes)? })
    }

    /// Cores that others used since the start.
    pub fn cores(&self) -> Result<f64> {
        let now = ticks(self.processes)?;
        // SAFETY: no pointers.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let foreign = (now.busy - self.start.busy) as f64 - (now.own - self.start.own) as f64;
        let seconds = (now.at - self.start.at).as_secs_f64().max(1e-3);
        Ok((foreign / per_second / seconds).max(0.0))
    }
}

/// Waits until others leave the machine alone for a second, as long as `left` lasts. True if they did.
pub fn wait_quiet(processes: &[u32], left: &mut Duration) -> Result<bool> {
    const LOOK: Duration = Duration::from_secs(1);
    while *left >= LOOK {
        let others = Others::start(processes)?;
        std::thread::sleep(LOOK);
        *left -= LOOK;
        if others.cores()? < QUIET {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The most that memory and arithmetic give, measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bounds {
    /// Reading memory, GB/s.
    pub read: f64,
    /// `vdpbf16ps` on registers alone, GFLOP/s; NaN on a machine without it.
    pub bf16: f64,
}

/// A buffer far larger than any cache.
pub struct Roof {
    buffer: Vec<u64>,
}

/// Streams of each reading thread, one way each; the fastest is the bound. Threads beyond the first may only get in each
/// other's way, so one alone is tried too.
const STREAMS: [usize; 2] = [1, 8];
/// Ways to read: one thread or all, each with every number of streams.
pub const WAYS: usize = 2 * STREAMS.len();

impl Roof {
    /// Takes `bytes` of memory, in huge pages where the system gives them: the bound is the memory's, not that of
    /// address translation.
    pub fn new(bytes: usize) -> Self {
        let mut buffer = vec![0; bytes / 8];
        let (start, page) = (buffer.as_mut_ptr() as usize, 4096);
        // SAFETY: pages within the buffer; advice changes no contents. A system that refuses it loses a little speed.
        unsafe {
            let first = start.next_multiple_of(page);
            libc::madvise(first as *mut _, start + bytes - bytes % 8 - first, libc::MADV_HUGEPAGE);
        }
        for (i, w) in buffer.iter_mut().enumerate() {
            *w = i as u64;
        }
        Roof { buffer }
    }

    /// The memory, for other uses.
    pub fn words(&mut self) -> &mut [u64] {
        &mut self.buffer
    }

    /// Both bounds with up to `threads` threads; about half a second.
    pub fn measure(&self, threads: usize) -> Bounds {
        let medians = (0..WAYS).filter_map(|way| Spread::of((0..5).map(|_| self.read(way, threads))));
        let seconds = medians.map(|s| s.median).fold(f64::INFINITY, f64::min);
        Bounds { read: self.bytes() / seconds / 1e9, bf16: multiply_rate(threads) }
    }

    /// Bytes of one reading.
    pub fn bytes(&self) -> f64 {
        std::mem::size_of_val(&self.buffer[..]) as f64
    }

    /// Seconds to read all once in one of [`WAYS`] ways.
    pub fn read(&self, way: usize, threads: usize) -> f64 {
        let (threads, streams) =
            (if way < STREAMS.len() { threads } else { 1 }, STREAMS[way % STREAMS.len()]);
        let start = Instant::now();
        std::thread::scope(|s| {
            for part in self.buffer.chunks(self.buffer.len().div_ceil(threads)) {
                s.spawn(move || std::hint::black_box(sum(part, streams)));
            }
        });
        start.elapsed().as_secs_f64()
    }
}

fn sum(part: &[u64], streams: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature was detected.
        return unsafe { sum_avx512(part, streams) };
    }
    sum_streams(part, streams)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(part: &[u64], streams: usize) -> u64 {
    sum_streams(part, streams)
}

/// Sums `streams` equal parts side by side, a page's quarter of each in turn: the hardware follows every one of them.
#[inline(always)]
fn sum_streams(part: &[u64], streams: usize) -> u64 {
    const STEP: usize = 128;
    const LANES: usize = 32;
    let len = part.len() / streams;
    let mut sums = [0u64; LANES];
    for at in (0..len - len % STEP).step_by(STEP) {
        for stream in 0..streams {
            for words in part[stream * len + at..][..STEP].as_chunks::<LANES>().0 {
                for (s, w) in sums.iter_mut().zip(words) {
                    *s = s.wrapping_add(*w);
                }
            }
        }
    }
    sums.iter().fold(0, |a, s| a.wrapping_add(*s))
}

/// GFLOP/s of `vdpbf16ps` on registers alone; NaN on a machine without it.
pub fn multiply_rate(threads: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
        const N: usize = 1_000_000;
        let times = (0..3).map(|_| {
            let start = Instant::now();
            std::thread::scope(|s| {
                for _ in 0..threads {
                    // SAFETY: the features were detected.
                    s.spawn(|| std::hint::black_box(unsafe { multiply(N) }));
                }
            });
            start.elapsed().as_secs_f64()
        });
        let seconds = Spread::of(times).map_or(f64::NAN, |s| s.median);
        return (threads * N * 12 * 64) as f64 / seconds / 1e9;
    }
    let _ = threads;
    f64::NAN
}

/// `n` times 12 independent multiplications of 32 pairs: more than the unit's latency times its width.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(n: usize) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: 64 plain bytes.
    let x: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(std::hint::black_box(1))) };
    let mut acc = [_mm512_setzero_ps(); 12];
    for _ in 0..n {
        for a in &mut acc {
            *a = _mm512_dpbf16_ps(*a, x, x);
        }
    }
    acc.iter().map(|a| _mm512_reduce_add_ps(*a)).sum()
}
