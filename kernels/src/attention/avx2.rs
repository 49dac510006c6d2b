//! AVX2 product of weights and values: fused, values widened to f32, in parts of few rows or few columns.

use std::arch::x86_64::*;

use lathe_numerics::contract::PANEL;
use lathe_numerics::{ATTENTION_LEAF, DType};

use super::ValueArgs;

const BF16: u8 = 0;
const F16: u8 = 1;
const F32: u8 = 2;

/// # Safety
/// `a` covers `rows` rows and `chunks` chunks; the features are present.
pub(super) unsafe fn values(dtype: DType, rows: usize, chunks: usize, a: &ValueArgs) {
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::BF16 => parts::<BF16>(rows, chunks, a),
            DType::F16 => parts::<F16>(rows, chunks, a),
            _ => parts::<F32>(rows, chunks, a),
        }
    }
}

/// # Safety
/// As `values`.
unsafe fn parts<const D: u8>(rows: usize, chunks: usize, a: &ValueArgs) {
    let count = rows.div_ceil(6);
    for i in 0..count {
        let (row, end) = (i * rows / count, (i + 1) * rows / count);
        let mut chunk = 0;
        while chunk < chunks {
            // SAFETY: passed on; the part lies within the product.
            chunk += unsafe {
                match (end - row, chunks - chunk) {
                    (1, 4..) => typed::<D, 1, 4>(row, chunk, chunks, a),
                    (1, 2..) => typed::<D, 1, 2>(row, chunk, chunks, a),
                    (1, _) => typed::<D, 1, 1>(row, chunk, chunks, a),
                    (2, 2..) => typed::<D, 2, 2>(row, chunk, chunks, a),
                    (2, _) => typed::<D, 2, 1>(row, chunk, chunks, a),
                    (3, 2..) => typed::<D, 3, 2>(row, chunk, chunks, a),
                    (3, _) => typed::<D, 3, 1>(row, chunk, chunks, a),
                    (4, _) => typed::<D, 4, 1>(row, chunk, chunks, a),
                    (5, _) => typed::<D, 5, 1>(row, chunk, chunks, a),
                    _ => typed::<D, 6, 1>(row, chunk, chunks, a),
                }
            };
        }
    }
}

/// A part of R rows from `row` and C chunks from `chunk`; gives C.
///
/// # Safety
/// As `values`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn typed<const D: u8, const R: usize, const C: usize>(
    row: usize,
    chunk: usize,
    chunks: usize,
    a: &ValueArgs,
) -> usize {
    let mut acc = [[[_mm256_setzero_ps(); 2]; C]; R];
    let size = if D == F32 { 4 } else { 2 };
    let cut = chunk + C == chunks && a.last < PANEL;
    // Columns that a value row has, from the first of this part.
    let cols = if cut { (C - 1) * PANEL + a.last } else { C * PANEL };
    let mut whole = [[0u8; PANEL * 4]; C];
    // SAFETY: accumulator rows are padded to whole chunks; a value row is read through a copy where its columns end within
    // a chunk.
    unsafe {
        let sums = a.acc.add(row * a.acc_stride + chunk * PANEL);
        if a.resume {
            for r in 0..R {
                for c in 0..C {
                    for h in 0..2 {
                        acc[r][c][h] = _mm256_loadu_ps(sums.add(r * a.acc_stride + c * PANEL + h * 8));
                    }
                }
            }
        }
        for j in a.from..a.to {
            let panel = j / PANEL;
            let offset = ((j % PANEL) * a.row_len + a.col + chunk * PANEL) * size;
            if let Some(ahead) = a.ahead {
                _mm_prefetch::<_MM_HINT_T1>(ahead[panel].wrapping_add(offset).cast());
                _mm_prefetch::<_MM_HINT_T1>(
                    ahead[panel].wrapping_add(offset + (C - 1) * PANEL * size).cast(),
                );
            }
            let mut from = a.v[panel].add(offset);
            if cut {
                std::ptr::copy_nonoverlapping(from, whole.as_mut_ptr().cast(), cols * size);
                from = whole.as_ptr().cast();
            }
            let mut v = [[_mm256_setzero_ps(); 2]; C];
            for c in 0..C {
                for h in 0..2 {
                    let at = from.add((c * PANEL + h * 8) * size);
                    v[c][h] = match D {
                        BF16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                            _mm_loadu_si128(at.cast()),
                        ))),
                        F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                        _ => _mm256_loadu_ps(at.cast()),
                    };
                }
            }
            for r in 0..R {
                let p = _mm256_broadcast_ss(&*a.p.add((row + r) * ATTENTION_LEAF + j));
                for c in 0..C {
                    for h in 0..2 {
                        acc[r][c][h] = _mm256_fmadd_ps(p, v[c][h], acc[r][c][h]);
                    }
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                for h in 0..2 {
                    _mm256_storeu_ps(sums.add(r * a.acc_stride + c * PANEL + h * 8), acc[r][c][h]);
                }
            }
        }
    }
    C
}
