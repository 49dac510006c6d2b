//! `y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + bias` per row, or per group of columns of a row.
//!
//! Order: both sums take the 16 lanes and tree of `rms_norm`, the second one over the differences; then one reciprocal
//! square root as `1 / sqrt(..)`, `((x - mean) * inv) * w + bias` in f32, unfused, one rounding. The same bits on every
//! ISA.

use std::ops::Range;

use crate::convert::Element;
use crate::error::{KernelError, at_least, span};
use crate::rms_norm::{group_len, norm_weight, tree_sum, with_weight};
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

/// Operands of a [`LayerNorm`].
pub struct LayerNormArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[rows, h]`, row r at `r * h`.
    pub x: Src<'a>,
    /// `[h]`, or `[h / groups]` for all groups; x's dtype or f32.
    pub weight: Src<'a>,
    /// As `weight`, and as long.
    pub bias: Option<Src<'a>>,
    /// Added to the variance.
    pub eps: f32,
    /// `[rows, h]`, x's dtype, row r at `r * h`.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub h: usize,
    /// Parts of a row that are normalised apart, all of one size.
    pub groups: usize,
}

/// A checked layer norm; a unit is a row.
pub struct LayerNorm<'a>(LayerNormArgs<'a>);

impl<'a> LayerNorm<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: LayerNormArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "layer_norm";
        float(NAME, a.x.dtype())?;
        norm_weight(NAME, a.x.dtype(), a.weight.dtype())?;
        same(NAME, "out dtype", a.x.dtype(), a.out.dtype())?;
        let n = group_len(NAME, a.h, a.groups)?;
        at_least(NAME, "weight elements", n, a.weight.len())?;
        if let Some(bias) = a.bias {
            same(NAME, "bias dtype", a.weight.dtype(), bias.dtype())?;
            at_least(NAME, "bias elements", a.weight.len().min(a.h), bias.len())?;
        }
        let len = span(NAME, "h", a.rows, a.h, a.h)?;
        at_least(NAME, "x elements", len, a.x.len())?;
        at_least(NAME, "out elements", len, a.out.len())?;
        Ok(LayerNorm(a))
    }
}

impl Kernel for LayerNorm<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        let n = a.h / a.groups;
        let own = usize::from(a.weight.len() >= a.h);
        with_float!(a.x.dtype(), T => with_weight!(a.weight.dtype(), T, W => a.path.run(#[inline(always)] || for r in units {
            for g in 0..a.groups {
                // SAFETY: rows were checked when built; the unit owns its output row.
                let (x, w, bias, out) = unsafe {
                    (
                        a.x.slice::<T>(r * a.h + g * n, n),
                        a.weight.slice::<W>(own * g * n, n),
                        a.bias.map(|b| b.slice::<W>(own * g * n, n)),
                        a.out.slice::<T>(r * a.h + g * n, n),
                    )
                };
                norm_row(x, w, bias, a.eps, out);
            }
        })));
    }
}

#[inline(always)]
fn norm_row<T: Element, W: Element>(x: &[T], w: &[W], bias: Option<&[W]>, eps: f32, out: &mut [T]) {
    let n = x.len() as f32;
    let mean = tree_sum(
        x,
        #[inline(always)]
        |v| v,
    ) / n;
    let variance = tree_sum(
        x,
        #[inline(always)]
        |v| (v - mean) * (v - mean),
    ) / n;
    let inv = 1.0 / (variance + eps).sqrt();
    match bias {
        Some(bias) => {
            for ((o, b), (x, w)) in out.iter_mut().zip(bias).zip(x.iter().zip(w)) {
                *o = T::from_f32(scaled(x.to_f32(), w.to_f32(), mean, inv) + b.to_f32());
            }
        }
        None => {
            for (o, (x, w)) in out.iter_mut().zip(x.iter().zip(w)) {
                *o = T::from_f32(scaled(x.to_f32(), w.to_f32(), mean, inv));
            }
        }
    }
}

#[inline(always)]
fn scaled(x: f32, w: f32, mean: f32, inv: f32) -> f32 {
    ((x - mean) * inv) * w
}
