//! Tiles of fused multiply-adds, of any instruction set with registers of f32. A bf16 widens by a shift or a mask.

use std::marker::PhantomData;

use half::{bf16, f16};
use lathe_numerics::DType;

use super::tile::{Ahead, Kind, LINE, MAX_PANELS, TileArgs};
use crate::Element;
use crate::sixteen::{self, Product, Sixteen, read_again};

/// # Safety
/// As `tile::run`, on a machine with the instruction set; not for `Bf16Pairs`.
pub(super) unsafe fn run<S: Sixteen>(kind: Kind, rows: usize, panels: usize, args: &TileArgs) {
    // SAFETY: passed on.
    unsafe {
        match kind {
            Kind::F32 => Tile::<f32>::run::<S>(rows, panels, args),
            Kind::F16 => Tile::<f16>::run::<S>(rows, panels, args),
            Kind::Bf16Wide | Kind::Bf16Pairs => Tile::<bf16>::run::<S>(rows, panels, args),
        }
    }
}

/// A tile of weights of one type.
struct Tile<'a, T> {
    rows: usize,
    panels: usize,
    args: &'a TileArgs,
    weights: PhantomData<T>,
}

impl<T: Element> Tile<'_, T> {
    /// k of a step: bf16 stand in pairs.
    const DEPTH: usize = if matches!(T::DTYPE, DType::BF16) { 2 } else { 1 };

    /// # Safety
    /// As `run` of the module.
    unsafe fn run<S: Sixteen>(rows: usize, panels: usize, args: &TileArgs) {
        let tile = Tile::<T> { rows, panels, args, weights: PhantomData };
        // SAFETY: passed on.
        unsafe { sixteen::run::<S>(&tile, rows, panels) }
    }
}

impl<T: Element> Product for Tile<'_, T> {
    #[inline(always)]
    unsafe fn part<S: Sixteen, const R: usize, const P: usize>(&self, row: usize, panel: usize) {
        let Tile { rows, panels, args: a, .. } = *self;
        let (x, steps) = (a.x, a.steps);
        // A hint about x, which is at hand, costs less than asking each time; not so beside four panels.
        let asks = P <= 2 || a.ahead.is_some();
        let Ahead { at, stride } = a.ahead.unwrap_or(Ahead { at: [x.cast(); MAX_PANELS], stride: 0 });
        let (mut weights, mut ahead) = ([a.w[0]; P], [at[0]; P]);
        for p in 0..P {
            (weights[p], ahead[p]) = (a.w[panel + p], at[panel + p]);
        }
        // SAFETY: the caller's pointers cover `steps` and the sums.
        unsafe {
            let mut c = [[S::zero(); P]; R];
            if let Some(from) = a.from {
                for r in 0..R {
                    for p in 0..P {
                        c[r][p] = S::load(from.add(((row + r) * panels + panel + p) * 16));
                    }
                }
            }
            for s in 0..steps {
                let word = s * Self::DEPTH;
                let x = x.add((word / LINE * rows + row) * LINE + word % LINE);
                if asks {
                    for p in 0..P {
                        crate::prefetch(ahead[p].wrapping_add(s * stride));
                    }
                }
                // Many panels one after the other, few half after half: what stays in registers is least so.
                for turn in 0..Self::DEPTH * P {
                    let (i, p) =
                        if P > 2 { (turn % Self::DEPTH, turn / Self::DEPTH) } else { (turn / P, turn % P) };
                    read_again(R * P > 5);
                    let w = weights[p].cast::<T>().add(word * 16);
                    let w = if Self::DEPTH == 2 { S::load_half(w.cast(), i == 1) } else { S::load(w) };
                    for r in 0..R {
                        c[r][p] = c[r][p].add_product(*x.add(r * LINE + i), w);
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    let to = a.to.add((row + r) * a.to_stride + (panel + p) * 16);
                    let sum = if a.add { S::load(to.cast_const()).add(c[r][p]) } else { c[r][p] };
                    sum.store(to);
                }
            }
        }
    }
}
