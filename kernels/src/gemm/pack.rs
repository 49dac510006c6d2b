//! The packed weight layout, one for every ISA: panels of 16 features, features innermost.
//!
//! bf16: `[ceil(n/16)][ceil(k/2)][16][2]`, so 64 bytes are 16 features x 2 neighbouring k; f16 and f32:
//! `[ceil(n/16)][k][16]`. Missing features and the odd k are zero.

use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;

use crate::error::{KernelError, at_least, product};
use crate::view::float;

/// k as stored: even for bf16.
pub const fn padded_k(dtype: DType, k: usize) -> usize {
    match dtype {
        DType::BF16 => k.next_multiple_of(2),
        _ => k,
    }
}

/// Bytes of one panel of 16 features.
pub const fn panel_bytes(dtype: DType, k: usize) -> usize {
    PANEL * padded_k(dtype, k) * dtype.size()
}

/// Elements of a packed `[n, k]` weight.
///
/// # Errors
/// `Shape` on overflow, `Unsupported` for integer dtypes.
pub fn packed_len(dtype: DType, n: usize, k: usize) -> Result<usize, KernelError> {
    float("gemm", dtype)?;
    let k = k.checked_add(1).map(|_| padded_k(dtype, k)).unwrap_or(usize::MAX);
    product("gemm", "packed weight", &[n.div_ceil(PANEL), PANEL, k])
}

/// Packs one panel: `rows` holds up to 16 rows of `k` elements of `dtype` (little endian, any alignment), each at
/// least `k` long; missing rows become zero. `out` is [`panel_bytes`] long.
///
/// # Errors
/// `Shape` when a row or `out` is too short or there are more than 16 rows.
pub fn pack_panel(dtype: DType, rows: &[&[u8]], k: usize, out: &mut [u8]) -> Result<(), KernelError> {
    float("gemm", dtype)?;
    crate::error::at_most("gemm", "rows of a panel", PANEL, rows.len())?;
    at_least("gemm", "panel bytes", panel_bytes(dtype, k), out.len())?;
    for r in rows {
        at_least("gemm", "bytes of a weight row", k * dtype.size(), r.len())?;
    }
    let out = &mut out[..panel_bytes(dtype, k)];
    if rows.len() < PANEL {
        out.fill(0);
    }
    match dtype {
        DType::BF16 => {
            if k % 2 == 1 {
                let last = out.len() - PANEL * 4;
                out[last..].fill(0);
            }
            // A pair of neighbouring k is one 4-byte unit.
            interleave::<4>(rows, k / 2, out);
            if k % 2 == 1 {
                let base = (k / 2) * PANEL * 4;
                for (l, r) in rows.iter().enumerate() {
                    out[base + l * 4..base + l * 4 + 2].copy_from_slice(&r[(k - 1) * 2..k * 2]);
                }
            }
        }
        DType::F16 => interleave::<2>(rows, k, out),
        _ => interleave::<4>(rows, k, out),
    }
    Ok(())
}

/// `out[s][l] = rows[l][s]` over units of `U` bytes; blocked so that a source cache line is read once.
fn interleave<const U: usize>(rows: &[&[u8]], steps: usize, out: &mut [u8]) {
    let (rows, out) = (rows, out.as_chunks_mut::<U>().0);
    let block = 64 / U;
    for s0 in (0..steps).step_by(block) {
        let len = block.min(steps - s0);
        let out = &mut out[s0 * PANEL..(s0 + len) * PANEL];
        for (l, row) in rows.iter().enumerate() {
            let src = &row[s0 * U..(s0 + len) * U].as_chunks::<U>().0[..len];
            for (dst, src) in out.iter_mut().skip(l).step_by(PANEL).zip(src) {
                *dst = *src;
            }
        }
    }
}

/// Offset, in elements, of weight row `row`, element `k` within a packed weight.
#[inline(always)]
pub(crate) fn packed_index(dtype: DType, stored_k: usize, row: usize, k: usize) -> usize {
    let panel = (row / PANEL) * PANEL * stored_k;
    match dtype {
        DType::BF16 => panel + (k / 2) * (PANEL * 2) + (row % PANEL) * 2 + k % 2,
        _ => panel + k * PANEL + row % PANEL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_land_where_the_index_says() {
        for (dtype, size) in [(DType::BF16, 2), (DType::F16, 2), (DType::F32, 4)] {
            for k in [1, 2, 3, 16, 31, 32, 33, 100] {
                for n in [1, 5, 16] {
                    let rows: Vec<Vec<u8>> = (0..n)
                        .map(|r| {
                            (0..k)
                                .flat_map(|c| ((r * 1000 + c + 1) as u32).to_le_bytes()[..size].to_vec())
                                .collect()
                        })
                        .collect();
                    let views: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
                    let mut out = vec![0xAAu8; panel_bytes(dtype, k)];
                    pack_panel(dtype, &views, k, &mut out).unwrap();
                    let stored = padded_k(dtype, k);
                    let mut seen = vec![false; out.len() / size];
                    for r in 0..n {
                        for c in 0..k {
                            let i = packed_index(dtype, stored, r, c);
                            assert_eq!(out[i * size..(i + 1) * size], rows[r][c * size..(c + 1) * size]);
                            seen[i] = true;
                        }
                    }
                    for (i, seen) in seen.iter().enumerate() {
                        assert!(*seen || out[i * size..(i + 1) * size].iter().all(|b| *b == 0));
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let row = [0u8; 4];
        let mut out = [0u8; 128];
        assert!(pack_panel(DType::BF16, &[&row], 3, &mut out).is_err());
        assert!(pack_panel(DType::BF16, &[&row], 2, &mut out[..32]).is_err());
        assert!(pack_panel(DType::BF16, &[&row[..]; 17], 2, &mut out).is_err());
        assert!(pack_panel(DType::I32, &[&row], 1, &mut out).is_err());
        assert!(packed_len(DType::BF16, usize::MAX, usize::MAX).is_err());
    }
}
