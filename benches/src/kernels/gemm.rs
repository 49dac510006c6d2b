//! GEMM over the weights of the model and row counts from decode to prefill.

use anyhow::Result;
use half::bf16;
use lathe_kernels::gemm::{Epilogue, Gemm, GemmArgs, cases::LLAMA_1B, packed_len};
use lathe_kernels::{IsaPath, Src};
use lathe_numerics::DType;

use super::{Cx, launch};

const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, 128, 512];
/// Rows beyond which the head is not measured: only sampled rows get there.
const HEAD_ROWS: usize = 32;

/// Bytes of weights that one run reads: long beside the start of its threads, and far beyond any cache, as small
/// weights are read from one copy after the other. Many rows take long enough with one weight.
const BYTES_OF_FEW: usize = 256 << 20;
const FEW_ROWS: usize = 32;

/// Problems of one shape with a weight of their own each.
pub struct Problems {
    n: usize,
    k: usize,
    m: usize,
    x: Vec<bf16>,
    outs: Vec<Vec<f32>>,
}

impl Problems {
    /// As many as read enough memory.
    pub fn new(n: usize, k: usize, m: usize) -> Result<Self> {
        let count =
            if m > FEW_ROWS { 1 } else { (BYTES_OF_FEW / (packed_len(DType::BF16, n, k)? * 2)).max(1) };
        let x = (0..m * k).map(|i| bf16::from_f32((i % 17) as f32 - 8.0)).collect();
        Ok(Problems { n, k, m, x, outs: vec![vec![0f32; m * n]; count] })
    }

    /// The problems, with weights one after the other in `memory`.
    pub fn gemms<'a>(&'a mut self, path: IsaPath, memory: &'a [u64]) -> Result<Vec<Gemm<'a>>> {
        let Problems { n, k, m, ref x, ref mut outs } = *self;
        let len = packed_len(DType::BF16, n, k)?;
        let gemm = |(out, weight): (&'a mut Vec<f32>, &'a [u64])| {
            // SAFETY: the slice's own bytes.
            let weight = unsafe { std::slice::from_raw_parts(weight.as_ptr().cast::<u8>(), len * 2) };
            Ok(Gemm::new(GemmArgs {
                path,
                x: x.as_slice().into(),
                x_stride: k,
                m,
                n,
                k,
                weight: Src::bytes(DType::BF16, weight)?,
                bias: None,
                out: out.as_mut_slice().into(),
                out_stride: n,
                epilogue: Epilogue::Store,
            })?)
        };
        outs.iter_mut().zip(memory.chunks_exact(len / 4)).map(gemm).collect()
    }
}

/// Weights are taken from `memory`, which holds the largest.
pub fn measure(cx: &mut Cx, memory: &[u64]) -> Result<()> {
    let mut scratch = vec![vec![]; cx.threads];
    for &(name, n, k) in LLAMA_1B {
        for m in ROWS.into_iter().filter(|m| name != "head" || *m <= HEAD_ROWS) {
            let mut problems = Problems::new(n, k, m)?;
            let gemms = problems.gemms(cx.path, memory)?;
            let (bytes, flops) = (n * k * 2, 2 * m * n * k);
            cx.row(format!("gemm {name} {n}x{k}, {m} rows"), Some(bytes), Some(flops), gemms.len(), || {
                launch(&gemms, &mut scratch);
            })?;
        }
    }
    Ok(())
}
