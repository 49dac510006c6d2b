//! Rates of the kernels on the shapes of Llama-3.2-1B: `rate [gemm|attention|sampling|other] [threads]`.
//!
//! Bounds are measured in the same run: read bandwidth of a large buffer, and the multiply rate of registers alone.

use std::time::Instant;

use half::bf16;
use lathe_kernels::attention::{Attention, AttentionArgs};
use lathe_kernels::gemm::{Epilogue, Gemm, GemmArgs, cases::LLAMA_1B, packed_len};
use lathe_kernels::paged::{Batch, KvCache, KvLayout, Sequence};
use lathe_kernels::sampling::{Context, Params, Scratch, TopLogprob, draw, logprobs};
use lathe_kernels::{IsaPath, Kernel};
use lathe_numerics::DType;

/// The middle of `n` runs; with `RATE=best` the fastest, for machines that others load.
fn median(n: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut t: Vec<f64> = (0..n)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    t.sort_by(f64::total_cmp);
    if std::env::var_os("RATE").is_some_and(|v| v == "best") { t[0] } else { t[n / 2] }
}

fn run(kernel: &dyn Kernel, scratch: &mut [Vec<f32>]) {
    let (units, n) = (kernel.units(), scratch.len());
    std::thread::scope(|s| {
        for (t, scratch) in scratch.iter_mut().enumerate() {
            // SAFETY: ranges are disjoint and all buffers outlive the scope.
            s.spawn(move || unsafe { kernel.run(units * t / n..units * (t + 1) / n, scratch) });
        }
    });
}

fn read_bandwidth(buffer: &[u64], threads: usize) -> f64 {
    let part = buffer.len() / threads;
    let t = median(7, || {
        std::thread::scope(|s| {
            for chunk in buffer.chunks_exact(part) {
                s.spawn(move || {
                    let mut sums = [0u64; 32];
                    for c in chunk.as_chunks::<32>().0 {
                        for l in 0..32 {
                            sums[l] = sums[l].wrapping_add(c[l]);
                        }
                    }
                    std::hint::black_box(sums)
                });
            }
        });
    });
    (part * threads * 8) as f64 / t / 1e9
}

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

fn peak(threads: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if lathe_kernels::Isa::Avx512.available() {
        let n = 2_000_000;
        let t = median(7, || {
            std::thread::scope(|s| {
                for _ in 0..threads {
                    // SAFETY: the features were detected.
                    s.spawn(move || std::hint::black_box(unsafe { multiply(n) }));
                }
            });
        });
        return (threads * n * 12 * 64) as f64 / t / 1e9;
    }
    let _ = threads;
    f64::NAN
}

fn weights(words: usize) -> Vec<u64> {
    (0..words as u64)
        .map(|i| 0x3c00_bc10_3b80_bc40 ^ (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x007f_007f_007f_007f))
        .collect()
}

fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: the slice's own bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
}

fn gemm(threads: usize, path: IsaPath) {
    let memory = weights(128_256 * 2048 / 4);
    let (bandwidth, peak) = (read_bandwidth(&memory, threads), peak(threads));
    println!("{} threads, {}: read {bandwidth:.1} GB/s, vdpbf16ps {peak:.0} GFLOP/s", threads, path.isa());
    for &(name, n, k) in LLAMA_1B {
        for m in [1, 2, 4, 8, 16, 32, 128, 512] {
            if name == "head" && m > 32 {
                continue;
            }
            let x: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32((i % 17) as f32 - 8.0)).collect();
            let mut out = vec![0f32; m * n];
            let len = packed_len(DType::BF16, n, k).expect("shape");
            // Small weights are read from copies in turn, so that they come from memory as in a model.
            let copies = (memory.len() * 4 / len).max(1);
            let mut turn = 0;
            let mut scratch = vec![];
            let t = median(if m > 100 { 5 } else { 15 }, || {
                let w = &bytes(&memory)[turn * len * 2..(turn + 1) * len * 2];
                turn = (turn + 1) % copies;
                let gemm = Gemm::new(GemmArgs {
                    path,
                    x: x.as_slice().into(),
                    x_stride: k,
                    m,
                    n,
                    k,
                    weight: lathe_kernels::Src::bytes(DType::BF16, w).expect("aligned"),
                    bias: None,
                    out: out.as_mut_slice().into(),
                    out_stride: n,
                    epilogue: Epilogue::Store,
                })
                .expect("operands");
                scratch.resize(threads, vec![0f32; gemm.scratch_len()]);
                run(&gemm, &mut scratch);
            });
            let (gb, gf) = ((n * k * 2) as f64 / t / 1e9, (2 * m * n * k) as f64 / t / 1e9);
            println!(
                "{name:8} m {m:4}  {:8.3} ms  {gb:6.1} GB/s ({:.2})  {gf:7.1} GFLOP/s ({:.2})",
                t * 1e3,
                gb / bandwidth,
                gf / peak
            );
        }
    }
}

fn attention(threads: usize, path: IsaPath) {
    let (heads, kv_heads, hd, block) = (32, 8, 64, 32);
    let layout = KvLayout::new(DType::BF16, kv_heads, hd, block).expect("layout");
    let n_blocks = 2048;
    let mut memory = weights(n_blocks * layout.block_bytes() / 8);
    let bandwidth = read_bandwidth(&memory, threads);
    println!("{threads} threads, {}: read {bandwidth:.1} GB/s", path.isa());
    for (n_seqs, q_len, kv_len) in
        [(1, 1, 512), (1, 1, 4096), (32, 1, 512), (32, 1, 2048), (1, 512, 512), (1, 512, 4096)]
    {
        let per = usize::div_ceil(kv_len, block);
        let seqs: Vec<Sequence> = (0..n_seqs)
            .map(|i| Sequence { q_start: i * q_len, q_len, kv_len, blocks_start: i * per })
            .collect();
        let blocks: Vec<u32> = (0..n_seqs * per).map(|i| (i * 7 % n_blocks) as u32).collect();
        let rows = n_seqs * q_len;
        let q = vec![bf16::from_f32(0.5); rows * heads * hd];
        let mut out = q.clone();
        let mut scratch = vec![];
        let t = median(15, || {
            // SAFETY: exactly the vector's bytes, used by this problem alone.
            let cache = unsafe {
                KvCache::raw(
                    layout,
                    memory.as_mut_ptr().cast(),
                    memory.len() * 8,
                    0,
                    layout.block_bytes(),
                    n_blocks,
                )
            };
            let a = Attention::new(AttentionArgs {
                path,
                q: q.as_slice().into(),
                heads,
                scale: 0.125,
                cache: cache.expect("cache"),
                batch: Batch::new(&seqs, &blocks, block, n_blocks).expect("batch"),
                out: out.as_mut_slice().into(),
            })
            .expect("operands");
            scratch.resize(threads, vec![0f32; a.scratch_len()]);
            run(&a, &mut scratch);
        });
        let read = (n_seqs * kv_len * kv_heads * hd * 4) as f64;
        let seen: usize = (kv_len - q_len + 1..=kv_len).sum();
        let flops = (n_seqs * seen * heads * hd * 4) as f64;
        println!(
            "{n_seqs:3} sequences, q {q_len:4}, kv {kv_len:5}: {:8.3} ms  {:6.1} GB/s  {:7.1} GFLOP/s",
            t * 1e3,
            read / t / 1e9,
            flops / t / 1e9
        );
    }
}

fn sampling(path: IsaPath) {
    let row: Vec<f32> =
        (0..128_256u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect();
    let mut s = Scratch::new(row.len());
    let cx = Context::default();
    let base = Params { temperature: 0.8, ..Params::default() };
    for (name, p) in [
        ("greedy", Params::default()),
        ("temperature", base),
        ("top_k 50", Params { top_k: 50, ..base }),
        ("top_p 0.95", Params { top_p: 0.95, ..base }),
        ("top_k 50 top_p 0.95 min_p", Params { top_k: 50, top_p: 0.95, min_p: 0.01, ..base }),
    ] {
        let t = median(31, || {
            std::hint::black_box(draw(path, &row, &p, &cx, &mut s));
        });
        println!("{name:28} {:8.1} us", t * 1e6);
    }
    let mut top = [TopLogprob::default(); 20];
    let t = median(31, || {
        std::hint::black_box(logprobs(path, &row, 7, &mut top));
    });
    println!("{:28} {:8.1} us", "logprobs, top 20", t * 1e6);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let what = args.first().map_or("all", String::as_str);
    let threads = args.get(1).and_then(|t| t.parse().ok()).unwrap_or(2);
    let path = IsaPath::detect();
    if matches!(what, "gemm" | "all") {
        gemm(threads, path);
    }
    if matches!(what, "attention" | "all") {
        attention(threads, path);
    }
    if matches!(what, "sampling" | "all") {
        sampling(path);
    }
}
