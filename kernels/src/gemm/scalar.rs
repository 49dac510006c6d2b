//! Portable tiles: products and sums unfused, 16 features side by side.

use super::tile::{Kind, LINE, TileArgs};
use crate::convert::{bf16_bits_to_f32, f16_bits_to_f32};

/// # Safety
/// As `tile::run`.
pub(super) unsafe fn run(kind: Kind, rows: usize, panels: usize, a: &TileArgs) {
    for p in 0..panels {
        let mut r = 0;
        while r < rows {
            let n = if rows - r >= 2 { 2 } else { 1 };
            // SAFETY: rows r..r + n and panel p are within the tile.
            unsafe {
                match (kind, n) {
                    (Kind::F32, 2) => f32_rows::<2>(rows, panels, r, p, a),
                    (Kind::F32, _) => f32_rows::<1>(rows, panels, r, p, a),
                    (Kind::F16, 2) => f16_rows::<2>(rows, panels, r, p, a),
                    (Kind::F16, _) => f16_rows::<1>(rows, panels, r, p, a),
                    (_, 2) => bf16_rows::<2>(rows, panels, r, p, a),
                    (_, _) => bf16_rows::<1>(rows, panels, r, p, a),
                }
            }
            r += n;
        }
    }
}

#[inline(always)]
unsafe fn load<const N: usize>(panels: usize, r: usize, p: usize, a: &TileArgs) -> [[f32; 16]; N] {
    let mut acc = [[0.0; 16]; N];
    if let Some(from) = a.from {
        for i in 0..N {
            // SAFETY: element (r + i, p) of the sums.
            acc[i] = unsafe { *from.add(((r + i) * panels + p) * 16).cast() };
        }
    }
    acc
}

#[inline(always)]
unsafe fn store<const N: usize>(r: usize, p: usize, a: &TileArgs, acc: [[f32; 16]; N]) {
    for i in 0..N {
        // SAFETY: element (r + i, p) of the sums.
        let to = unsafe { &mut *a.to.add((r + i) * a.to_stride + p * 16).cast::<[f32; 16]>() };
        if a.add {
            to.iter_mut().zip(acc[i]).for_each(|(t, s)| *t += s);
        } else {
            *to = acc[i];
        }
    }
}

unsafe fn f32_rows<const N: usize>(rows: usize, panels: usize, r: usize, p: usize, a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut acc = load::<N>(panels, r, p, a);
        let w = a.w[p].cast::<[f32; 16]>();
        for s in 0..a.steps {
            let w = &*w.add(s);
            for i in 0..N {
                let x = *a.x.add((s / LINE * rows + r + i) * LINE + s % LINE);
                for l in 0..16 {
                    acc[i][l] += x * w[l];
                }
            }
        }
        store(r, p, a, acc);
    }
}

unsafe fn f16_rows<const N: usize>(rows: usize, panels: usize, r: usize, p: usize, a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut acc = load::<N>(panels, r, p, a);
        let w = a.w[p].cast::<[u16; 16]>();
        for s in 0..a.steps {
            // Loops, as `map` would call a function for them.
            let (halves, mut w) = (&*w.add(s), [0.0; 16]);
            for l in 0..16 {
                w[l] = f16_bits_to_f32(halves[l]);
            }
            for i in 0..N {
                let x = *a.x.add((s / LINE * rows + r + i) * LINE + s % LINE);
                for l in 0..16 {
                    acc[i][l] += x * w[l];
                }
            }
        }
        store(r, p, a, acc);
    }
}

unsafe fn bf16_rows<const N: usize>(rows: usize, panels: usize, r: usize, p: usize, a: &TileArgs) {
    // SAFETY: the caller's pointers cover `steps`.
    unsafe {
        let mut acc = load::<N>(panels, r, p, a);
        let w = a.w[p].cast::<[u32; 16]>();
        for s in 0..a.steps {
            let pair = *w.add(s);
            let line = a.x.add((2 * s / LINE * rows + r) * LINE + 2 * s % LINE);
            let (mut even, mut odd) = ([0.0; 16], [0.0; 16]);
            for l in 0..16 {
                even[l] = bf16_bits_to_f32(pair[l] as u16);
                odd[l] = f32::from_bits(pair[l] & 0xffff_0000);
            }
            for i in 0..N {
                let x = *line.add(i * LINE);
                for l in 0..16 {
                    acc[i][l] += x * even[l];
                }
                let x = *line.add(i * LINE + 1);
                for l in 0..16 {
                    acc[i][l] += x * odd[l];
                }
            }
        }
        store(r, p, a, acc);
    }
}
