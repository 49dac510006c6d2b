//! AVX-512 product of weights and values: fused, values widened to f32, accumulators in registers.

use std::arch::x86_64::*;

use lathe_numerics::contract::PANEL;
use lathe_numerics::{ATTENTION_LEAF, DType};

use super::ValueArgs;
use crate::Element;

macro_rules! shapes {
    ($t:ty, $rows:expr, $chunks:expr, $a:expr; $(($r:literal, $c:literal)),*) => {
        match ($rows, $chunks) {
            $(($r, $c) => typed::<$t, $r, $c>($a),)*
            _ => unreachable!("values of {} rows and {} chunks", $rows, $chunks),
        }
    };
    ($t:ty, $rows:expr, $chunks:expr, $a:expr) => {
        shapes!($t, $rows, $chunks, $a;
            (1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4),
            (4, 1), (4, 2), (4, 3), (4, 4), (5, 1), (5, 2), (5, 3), (5, 4), (6, 1), (6, 2), (6, 3), (6, 4),
            (7, 1), (7, 2), (8, 1), (8, 2), (9, 1), (9, 2), (10, 1), (10, 2), (11, 1), (11, 2), (12, 1), (12, 2))
    };
}

/// # Safety
/// `a` covers `rows` rows (at most 12) and `chunks` chunks (at most 4, above 6 rows 2); the features are present.
pub(super) unsafe fn values(dtype: DType, rows: usize, chunks: usize, a: &ValueArgs) {
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::BF16 => shapes!(half::bf16, rows, chunks, a),
            DType::F16 => shapes!(half::f16, rows, chunks, a),
            _ => shapes!(f32, rows, chunks, a),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,f16c,fma")]
unsafe fn typed<T: Element, const R: usize, const C: usize>(a: &ValueArgs) {
    let mut acc = [[_mm512_setzero_ps(); C]; R];
    let size = size_of::<T>();
    let tail = (0xffff_u32 >> (PANEL - a.last)) as __mmask16;
    // SAFETY: accumulator rows are padded to whole chunks; value loads are masked to `last` columns in the last chunk.
    unsafe {
        if a.resume {
            for r in 0..R {
                for c in 0..C {
                    acc[r][c] = _mm512_loadu_ps(a.acc.add(r * a.acc_stride + c * PANEL));
                }
            }
        }
        let mut j = a.from;
        while j < a.to {
            let panel = j / PANEL;
            let end = a.to.min((panel + 1) * PANEL);
            let base = a.v[panel].add(a.col * size);
            while j < end {
                let offset = ((j % PANEL) * a.row_len + a.col) * size;
                if let Some(ahead) = a.ahead {
                    for c in (0..C).step_by(64 / (PANEL * size)) {
                        let line = ahead[panel].wrapping_add(offset + c * PANEL * size);
                        _mm_prefetch::<_MM_HINT_T1>(line.cast());
                    }
                }
                let row = base.add((j % PANEL) * a.row_len * size);
                let mut v = [_mm512_setzero_ps(); C];
                for c in 0..C {
                    let mask = if c + 1 == C { tail } else { 0xffff };
                    let at = row.add(c * PANEL * size);
                    v[c] = match T::DTYPE {
                        DType::BF16 => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                            _mm256_maskz_loadu_epi16(mask, at.cast()),
                        ))),
                        DType::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
                        _ => _mm512_maskz_loadu_ps(mask, at.cast()),
                    };
                }
                for r in 0..R {
                    let p = _mm512_set1_ps(*a.p.add(r * ATTENTION_LEAF + j));
                    for c in 0..C {
                        acc[r][c] = _mm512_fmadd_ps(p, v[c], acc[r][c]);
                    }
                }
                j += 1;
            }
        }
        for r in 0..R {
            for c in 0..C {
                _mm512_storeu_ps(a.acc.add(r * a.acc_stride + c * PANEL), acc[r][c]);
            }
        }
    }
}
