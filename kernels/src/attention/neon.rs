//! NEON product of weights and values: fused, values widened to f32, in parts of few rows or few columns.

use lathe_numerics::contract::PANEL;
use lathe_numerics::{ATTENTION_LEAF, DType};

use super::ValueArgs;
use crate::neon::{self, BF16, F16, F32};

/// # Safety
/// `a` covers `rows` rows and `chunks` chunks.
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
unsafe fn typed<const D: u8, const R: usize, const C: usize>(
    row: usize,
    chunk: usize,
    chunks: usize,
    a: &ValueArgs,
) -> usize {
    let mut acc = [[neon::zero(); C]; R];
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
                    acc[r][c] = neon::load(sums.add(r * a.acc_stride + c * PANEL));
                }
            }
        }
        for j in a.from..a.to {
            let panel = j / PANEL;
            let offset = ((j % PANEL) * a.row_len + a.col + chunk * PANEL) * size;
            if let Some(ahead) = a.ahead {
                neon::prefetch(ahead[panel].wrapping_add(offset));
                neon::prefetch(ahead[panel].wrapping_add(offset + (C - 1) * PANEL * size));
            }
            let mut from = a.v[panel].add(offset);
            if cut {
                std::ptr::copy_nonoverlapping(from, whole.as_mut_ptr().cast(), cols * size);
                from = whole.as_ptr().cast();
            }
            for c in 0..C {
                let v = neon::widen::<D>(from.add(c * PANEL * size));
                for r in 0..R {
                    neon::multiply(&mut acc[r][c], v, *a.p.add((row + r) * ATTENTION_LEAF + j));
                }
            }
        }
        for r in 0..R {
            for c in 0..C {
                neon::store(sums.add(r * a.acc_stride + c * PANEL), acc[r][c]);
            }
        }
    }
    C
}
