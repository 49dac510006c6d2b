//! AVX2 tiles: FMA over two registers a panel, so a tile runs in parts of at most 6 rows of one panel, or of fewer rows of
//! more. A bf16 widens by a shift or a mask.

use std::arch::x86_64::*;

use super::tile::{Ahead, Kind, LINE, MAX_PANELS, TileArgs};

const BF16: u8 = 0;
const F16: u8 = 1;
const F32: u8 = 2;

/// Rows and panels of a tile, and of it the part at row `row` and panel `panel`.
#[derive(Clone, Copy)]
struct Part {
    rows: usize,
    panels: usize,
    row: usize,
    panel: usize,
}

/// Most rows of a part: 12 registers of sums, two of weights, one of x.
const PART_ROWS: usize = 6;

/// # Safety
/// As `tile::run`, on a machine with the features below; not for `Bf16Pairs`.
pub(super) unsafe fn run(kind: Kind, rows: usize, panels: usize, args: &TileArgs) {
    // SAFETY: passed on.
    unsafe {
        match kind {
            Kind::F32 => parts::<F32>(rows, panels, args),
            Kind::F16 => parts::<F16>(rows, panels, args),
            Kind::Bf16Wide | Kind::Bf16Pairs => parts::<BF16>(rows, panels, args),
        }
    }
}

/// # Safety
/// As `run`.
unsafe fn parts<const K: u8>(rows: usize, panels: usize, args: &TileArgs) {
    let count = rows.div_ceil(PART_ROWS);
    for i in 0..count {
        let (row, end) = (i * rows / count, (i + 1) * rows / count);
        let mut panel = 0;
        while panel < panels {
            let part = Part { rows, panels, row, panel };
            let left = panels - panel;
            // SAFETY: passed on; the part lies within the tile.
            panel += unsafe {
                match (end - row, left) {
                    (1, 4..) => tile::<K, 1, 4>(part, args),
                    (1, 3) => tile::<K, 1, 3>(part, args),
                    (1, 2) => tile::<K, 1, 2>(part, args),
                    (1, _) => tile::<K, 1, 1>(part, args),
                    (2, 2..) => tile::<K, 2, 2>(part, args),
                    (2, _) => tile::<K, 2, 1>(part, args),
                    (3, 2..) => tile::<K, 3, 2>(part, args),
                    (3, _) => tile::<K, 3, 1>(part, args),
                    (4, _) => tile::<K, 4, 1>(part, args),
                    (5, _) => tile::<K, 5, 1>(part, args),
                    _ => tile::<K, 6, 1>(part, args),
                }
            };
        }
    }
}

/// Runs a part of R rows and P panels; gives P.
///
/// # Safety
/// As `run`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const K: u8, const R: usize, const P: usize>(part: Part, a: &TileArgs) -> usize {
    let Part { rows, panels, row, panel } = part;
    let (words, w_bytes) = if K == BF16 {
        (2, 64)
    } else if K == F16 {
        (1, 32)
    } else {
        (1, 64)
    };
    let mut c = [[[_mm256_setzero_ps(); 2]; P]; R];
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let ahead = a.ahead.unwrap_or(Ahead { at: [a.x.cast(); MAX_PANELS], stride: 0 });
    // SAFETY: the caller's pointers cover `steps` and the sums.
    unsafe {
        if let Some(from) = a.from {
            for r in 0..R {
                for p in 0..P {
                    for h in 0..2 {
                        let at = ((row + r) * panels + panel + p) * 16 + h * 8;
                        c[r][p][h] = _mm256_loadu_ps(from.add(at));
                    }
                }
            }
        }
        for s in 0..a.steps {
            let x = a.x.add((words * s / LINE * rows + row) * LINE + words * s % LINE);
            for p in 0..P {
                _mm_prefetch::<_MM_HINT_T1>(ahead.at[panel + p].wrapping_add(s * ahead.stride).cast());
            }
            for odd in 0..words {
                let mut w = [[_mm256_setzero_ps(); 2]; P];
                for p in 0..P {
                    for h in 0..2 {
                        let at = a.w[panel + p].add(s * w_bytes + h * w_bytes / 2);
                        w[p][h] = match K {
                            BF16 => {
                                let pair = _mm256_loadu_si256(at.cast());
                                _mm256_castsi256_ps(if odd == 0 {
                                    _mm256_slli_epi32::<16>(pair)
                                } else {
                                    _mm256_and_si256(pair, upper)
                                })
                            }
                            F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
                            _ => _mm256_loadu_ps(at.cast()),
                        };
                    }
                }
                for r in 0..R {
                    let v = _mm256_broadcast_ss(&*x.add(r * LINE + odd));
                    for p in 0..P {
                        for h in 0..2 {
                            c[r][p][h] = _mm256_fmadd_ps(v, w[p][h], c[r][p][h]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for h in 0..2 {
                    let to = a.to.add((row + r) * a.to_stride + (panel + p) * 16 + h * 8);
                    let sum = c[r][p][h];
                    _mm256_storeu_ps(to, if a.add { _mm256_add_ps(_mm256_loadu_ps(to), sum) } else { sum });
                }
            }
        }
    }
    P
}
