//! GEMM over the weights of the model and row counts from decode to prefill.

use anyhow::Result;
use half::bf16;
use lathe_kernels::gemm::{Epilogue, Gemm, GemmArgs, cases::LLAMA_1B, packed_len};
use lathe_kernels::{KernelError, Src};
use lathe_numerics::DType;

use super::{Cx, launch};

const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, 128, 512];
/// Rows beyond which the head is not measured: only sampled rows get there.
const HEAD_ROWS: usize = 32;

/// Small weights are read from copies in turn, so that they come from memory as in a model.
pub fn measure(cx: &mut Cx, memory: &[u64]) -> Result<()> {
    let (path, mut scratch) = (cx.path, vec![vec![]; cx.threads]);
    for &(name, n, k) in LLAMA_1B {
        let len = packed_len(DType::BF16, n, k)?;
        let copies: Vec<&[u64]> = memory.chunks_exact(len / 4).collect();
        for m in ROWS.into_iter().filter(|m| name != "head" || *m <= HEAD_ROWS) {
            let x: Vec<bf16> = (0..m * k).map(|i| bf16::from_f32((i % 17) as f32 - 8.0)).collect();
            let mut out = vec![0f32; m * n];
            let mut problem = |weight: &[u64]| -> Result<(), KernelError> {
                // SAFETY: the slice's own bytes.
                let weight = unsafe { std::slice::from_raw_parts(weight.as_ptr().cast::<u8>(), len * 2) };
                let gemm = Gemm::new(GemmArgs {
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
                })?;
                launch(&gemm, &mut scratch);
                Ok(())
            };
            problem(copies[0])?;
            let mut turn = 0;
            let mut fault = Ok(());
            cx.row(format!("gemm {name} {n}x{k}, {m} rows"), Some(n * k * 2), Some(2 * m * n * k), || {
                turn = (turn + 1) % copies.len();
                if let Err(e) = problem(copies[turn]) {
                    fault = Err(e);
                }
            })?;
            fault?;
        }
    }
    Ok(())
}
