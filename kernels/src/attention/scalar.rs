//! Portable product of weights and values, unfused.

use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;

use super::ValueArgs;
use crate::convert::Element;

/// # Safety
/// `a` covers `rows` rows and `chunks` chunks.
pub(super) unsafe fn values(dtype: DType, rows: usize, chunks: usize, a: &ValueArgs) {
    // SAFETY: passed on.
    unsafe {
        match dtype {
            DType::BF16 => typed::<half::bf16>(rows, chunks, a),
            DType::F16 => typed::<half::f16>(rows, chunks, a),
            _ => typed::<f32>(rows, chunks, a),
        }
    }
}

unsafe fn typed<T: Element>(rows: usize, chunks: usize, a: &ValueArgs) {
    for r in 0..rows {
        for c in 0..chunks {
            let cols = if c + 1 == chunks { a.last } else { PANEL };
            // SAFETY: accumulator chunk (r, c); value rows from..to, columns of chunk c.
            unsafe {
                let out = a.acc.add(r * a.acc_stride + c * PANEL).cast::<[f32; PANEL]>();
                let mut acc = if a.resume { *out } else { [0.0; PANEL] };
                for j in a.from..a.to {
                    let row = a.v[j / PANEL].cast::<T>().add((j % PANEL) * a.row_len + a.col + c * PANEL);
                    let p = *a.p.add(r * lathe_numerics::ATTENTION_LEAF + j);
                    if cols == PANEL {
                        let v = &*row.cast::<[T; PANEL]>();
                        for l in 0..PANEL {
                            acc[l] += p * v[l].to_f32();
                        }
                    } else {
                        for (l, acc) in acc.iter_mut().enumerate().take(cols) {
                            *acc += p * (*row.add(l)).to_f32();
                        }
                    }
                }
                *out = acc;
            }
        }
    }
}
