//! `y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + bias` per row, or per group of columns of a row.
//!
//! Order: both sums take the 16 lanes and tree of `rms_norm`, the second one over the differences; then one reciprocal
//! square root as `1 / sqrt(..)`, `((x - mean) * inv) * w + bias` in f32, unfused, one rounding. The same bits on every
//! ISA.

use std::ops::Range;

use crate::convert::Element;
use crate::error::{KernelError, at_least};
use crate::rms_norm::{NormArgs, tree_sum, with_weight};
use crate::view::{same, with_float};
use crate::{Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

/// A checked layer norm; a unit is a row.
pub struct LayerNorm<'a> {
    norm: NormArgs<'a>,
    bias: Option<Src<'a>>,
}

impl<'a> LayerNorm<'a> {
    /// Checks operands against shapes; `bias` is of the weight's type and as long.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(norm: NormArgs<'a>, bias: Option<Src<'a>>) -> Result<Self, KernelError> {
        const NAME: &str = "layer_norm";
        norm.check(NAME)?;
        if let Some(bias) = bias {
            same(NAME, "bias dtype", norm.weight.dtype(), bias.dtype())?;
            at_least(NAME, "bias elements", norm.weight.len().min(norm.h), bias.len())?;
        }
        Ok(LayerNorm { norm, bias })
    }
}

impl Kernel for LayerNorm<'_> {
    fn units(&self) -> usize {
        self.norm.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.norm;
        assert!(units.end <= a.rows);
        let n = a.h / a.groups;
        with_float!(a.x.dtype(), T => with_weight!(a.weight.dtype(), T, W => a.path.run(#[inline(always)] || for r in units {
            for g in 0..a.groups {
                let of = a.weight_start(g);
                // SAFETY: rows were checked when built; the unit owns its output row.
                let ((x, out), w, bias) = unsafe {
                    (a.row::<T>(r, g), a.weight.slice::<W>(of, n), self.bias.map(|b| b.slice::<W>(of, n)))
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
