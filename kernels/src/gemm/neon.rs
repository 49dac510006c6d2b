//! NEON tiles: FMA over four registers a panel, so a tile runs in parts of few rows of one panel, or of fewer rows of
//! more: as many as keep their sums in registers. A bf16 widens by a shift or a mask.

use std::arch::aarch64::*;

use super::tile::{Kind, LINE, TileArgs};
use crate::neon::{self, BF16, F16, F32, Sixteen};

/// Rows and panels of a tile, and of it the part at row `row` and panel `panel`.
#[derive(Clone, Copy)]
struct Part {
    rows: usize,
    panels: usize,
    row: usize,
    panel: usize,
}

/// Most rows of a part: 24 registers of sums, four of weights, one of x; 20, with pairs, their halves and a mask.
const fn part_rows<const K: u8>() -> usize {
    if K == BF16 { 5 } else { 6 }
}

/// # Safety
/// As `tile::run`; not for `Bf16Pairs`.
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
    let count = rows.div_ceil(part_rows::<K>());
    for i in 0..count {
        let (row, end) = (i * rows / count, (i + 1) * rows / count);
        let mut panel = 0;
        while panel < panels {
            let part = Part { rows, panels, row, panel };
            // SAFETY: passed on; the part lies within the tile.
            panel += unsafe {
                match (end - row, panels - panel) {
                    (1, 4..) if K != BF16 => tile::<K, 1, 4>(part, args),
                    (1, 2..) => tile::<K, 1, 2>(part, args),
                    (1, _) => tile::<K, 1, 1>(part, args),
                    (2, 2..) => tile::<K, 2, 2>(part, args),
                    (2, _) => tile::<K, 2, 1>(part, args),
                    (3, 2..) if K != BF16 => tile::<K, 3, 2>(part, args),
                    (3, _) => tile::<K, 3, 1>(part, args),
                    (4, _) => tile::<K, 4, 1>(part, args),
                    (5, _) => tile::<K, 5, 1>(part, args),
                    _ => tile::<K, 6, 1>(part, args),
                }
            };
        }
    }
}

/// Weights of one k. Of a bf16 pair, k is the even or the odd one.
///
/// # Safety
/// `at` points at a step of a panel.
#[inline(always)]
unsafe fn weights<const K: u8>(at: *const u8, odd: usize) -> Sixteen {
    // SAFETY: passed on.
    unsafe {
        if K != BF16 {
            return neon::widen::<K>(at);
        }
        let (at, upper) = (at.cast::<u32>(), vdupq_n_u32(0xffff_0000));
        let mut w = neon::zero();
        for i in 0..4 {
            let pairs = vld1q_u32(at.add(4 * i));
            let bits = if odd == 0 { vshlq_n_u32::<16>(pairs) } else { vandq_u32(pairs, upper) };
            w[i] = vreinterpretq_f32_u32(bits);
        }
        w
    }
}

/// Runs a part of R rows and P panels; gives P.
///
/// # Safety
/// As `run`.
unsafe fn tile<const K: u8, const R: usize, const P: usize>(part: Part, a: &TileArgs) -> usize {
    let Part { rows, panels, row, panel } = part;
    let (words, w_bytes) = match K {
        BF16 => (2, 64),
        F16 => (1, 32),
        _ => (1, 64),
    };
    let mut c = [[neon::zero(); P]; R];
    // SAFETY: the caller's pointers cover `steps` and the sums.
    unsafe {
        if let Some(from) = a.from {
            for r in 0..R {
                for p in 0..P {
                    c[r][p] = neon::load(from.add(((row + r) * panels + panel + p) * 16));
                }
            }
        }
        for s in 0..a.steps {
            let x = a.x.add((words * s / LINE * rows + row) * LINE + words * s % LINE);
            if let Some(ahead) = &a.ahead {
                for p in 0..P {
                    neon::prefetch(ahead.at[panel + p].wrapping_add(s * ahead.stride));
                }
            }
            for odd in 0..words {
                for p in 0..P {
                    let w = weights::<K>(a.w[panel + p].add(s * w_bytes), odd);
                    for r in 0..R {
                        neon::multiply(&mut c[r][p], w, *x.add(r * LINE + odd));
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                let to = a.to.add((row + r) * a.to_stride + (panel + p) * 16);
                if a.add {
                    let before = neon::load(to);
                    for i in 0..4 {
                        c[r][p][i] = vaddq_f32(before[i], c[r][p][i]);
                    }
                }
                neon::store(to, c[r][p]);
            }
        }
    }
    P
}
