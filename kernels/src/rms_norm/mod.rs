//! `y = x / sqrt(mean(x^2) + eps) * w` per row, or per group of columns of a row; per row also after a residual add.
//!
//! Order: element i of a row (of a group) goes to lane i % 16 of the sum of squares, lanes are added by `tree16`; then one
//! reciprocal square root as `1 / sqrt(..)`, `(x * inv) * w` in f32, one rounding. With a residual, the sum is rounded
//! to its dtype first and the norm is of the rounded sum. The same bits on every ISA.

use std::ops::Range;

use lathe_numerics::DType;
use lathe_numerics::contract::{TREE_LANES, tree16};

use crate::convert::Element;
use crate::error::{KernelError, at_least, span};
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(test)]
pub(crate) mod tests;

/// Operands of an [`RmsNorm`], or of a layer norm without its bias.
pub struct NormArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[rows, h]`, row r at `r * x_stride`.
    pub x: Src<'a>,
    /// Elements between rows of x.
    pub x_stride: usize,
    /// `[h]`, or `[h / groups]` for all groups; x's dtype or f32.
    pub weight: Src<'a>,
    /// Added to the mean square or to the variance.
    pub eps: f32,
    /// `[rows, h]`, x's dtype, row r at `r * out_stride`.
    pub out: Dst<'a>,
    /// Elements between rows of out.
    pub out_stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub h: usize,
    /// Parts of a row that are normalised apart, all of one size.
    pub groups: usize,
}

impl<'a> NormArgs<'a> {
    /// Checks operands against shapes; gives the elements of a group.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub(crate) fn check(&self, kernel: &'static str) -> Result<usize, KernelError> {
        float(kernel, self.x.dtype())?;
        norm_weight(kernel, self.x.dtype(), self.weight.dtype())?;
        same(kernel, "out dtype", self.x.dtype(), self.out.dtype())?;
        let n = group_len(kernel, self.h, self.groups)?;
        at_least(kernel, "weight elements", n, self.weight.len())?;
        let len = |what, stride| span(kernel, what, self.rows, self.h, stride);
        at_least(kernel, "x elements", len("x stride", self.x_stride)?, self.x.len())?;
        at_least(kernel, "out elements", len("out stride", self.out_stride)?, self.out.len())?;
        Ok(n)
    }

    /// Where the weights of group `g` begin: groups have their own, or all the same.
    pub(crate) fn weight_start(&self, g: usize) -> usize {
        if self.weight.len() >= self.h { g * (self.h / self.groups) } else { 0 }
    }

    /// Row `r` of group `g` of x and of out.
    ///
    /// # Safety
    /// The operands passed [`NormArgs::check`] and are of `T`; `r` is a row and `g` a group; nobody else has the row of out.
    #[inline(always)]
    pub(crate) unsafe fn row<T: Element>(&self, r: usize, g: usize) -> (&'a [T], &'a mut [T]) {
        let n = self.h / self.groups;
        // SAFETY: the caller's promise.
        unsafe {
            (self.x.slice(r * self.x_stride + g * n, n), self.out.slice(r * self.out_stride + g * n, n))
        }
    }
}

/// A checked RMS norm; a unit is a row.
pub struct RmsNorm<'a>(NormArgs<'a>);

impl<'a> RmsNorm<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: NormArgs<'a>) -> Result<Self, KernelError> {
        a.check("rms_norm")?;
        Ok(RmsNorm(a))
    }
}

impl Kernel for RmsNorm<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        let n = a.h / a.groups;
        with_float!(a.x.dtype(), T => with_weight!(a.weight.dtype(), T, W => a.path.run(#[inline(always)] || for r in units {
            for g in 0..a.groups {
                // SAFETY: rows were checked when built; the unit owns its output row.
                let ((x, out), w) = unsafe { (a.row::<T>(r, g), a.weight.slice::<W>(a.weight_start(g), n)) };
                norm_row(x, w, a.eps, out);
            }
        })));
    }
}

/// Operands of an [`AddRmsNorm`]: `residual = round(residual + delta)` in place, `out = norm(residual) * weight`.
pub struct AddRmsNormArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// f32 `[rows, h]`, row r at `r * delta_stride`.
    pub delta: Src<'a>,
    /// Elements between rows of delta.
    pub delta_stride: usize,
    /// `[rows, h]`, read and written, row r at `r * h`.
    pub residual: Dst<'a>,
    /// `[h]`, the residual's dtype or f32.
    pub weight: Src<'a>,
    /// Added to the mean square.
    pub eps: f32,
    /// `[rows, h]`, the residual's dtype, row r at `r * h`.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub h: usize,
}

/// A checked residual add and RMS norm; a unit is a row.
pub struct AddRmsNorm<'a>(AddRmsNormArgs<'a>);

impl<'a> AddRmsNorm<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: AddRmsNormArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "add_rms_norm";
        let dtype = a.residual.dtype();
        float(NAME, dtype)?;
        same(NAME, "delta dtype", DType::F32, a.delta.dtype())?;
        norm_weight(NAME, dtype, a.weight.dtype())?;
        same(NAME, "out dtype", dtype, a.out.dtype())?;
        at_least(NAME, "h", 1, a.h)?;
        at_least(NAME, "weight elements", a.h, a.weight.len())?;
        let n = span(NAME, "h", a.rows, a.h, a.h)?;
        at_least(NAME, "residual elements", n, a.residual.len())?;
        at_least(NAME, "out elements", n, a.out.len())?;
        let n = span(NAME, "delta stride", a.rows, a.h, a.delta_stride)?;
        at_least(NAME, "delta elements", n, a.delta.len())?;
        Ok(AddRmsNorm(a))
    }
}

impl Kernel for AddRmsNorm<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        with_float!(a.residual.dtype(), T => with_weight!(a.weight.dtype(), T, W => a.path.run(#[inline(always)] || for r in units {
            // SAFETY: rows were checked when built; the unit owns its residual and output rows.
            let (delta, residual, w, out) = unsafe {
                (
                    a.delta.slice::<f32>(r * a.delta_stride, a.h),
                    a.residual.slice::<T>(r * a.h, a.h),
                    a.weight.slice::<W>(0, a.h),
                    a.out.slice::<T>(r * a.h, a.h),
                )
            };
            for (s, d) in residual.iter_mut().zip(delta) {
                *s = T::from_f32(s.to_f32() + d);
            }
            norm_row(residual, w, a.eps, out);
        })));
    }
}

/// Runs `$body` with `$w` bound to the Rust type of a norm's weights: the activations' `$t`, or f32.
macro_rules! with_weight {
    ($dtype:expr, $t:ident, $w:ident => $body:expr) => {
        if $dtype == lathe_numerics::DType::F32 {
            type $w = f32;
            $body
        } else {
            type $w = $t;
            $body
        }
    };
}
pub(crate) use with_weight;

/// Refuses weights that are of neither the activations' type nor f32.
pub(crate) fn norm_weight(kernel: &'static str, x: DType, weight: DType) -> Result<(), KernelError> {
    if weight == DType::F32 { Ok(()) } else { same(kernel, "weight dtype", x, weight) }
}

/// Columns of one of `groups` parts of `h` columns.
pub(crate) fn group_len(kernel: &'static str, h: usize, groups: usize) -> Result<usize, KernelError> {
    at_least(kernel, "h", 1, h)?;
    if groups > 0 && h.is_multiple_of(groups) {
        return Ok(h / groups);
    }
    Err(KernelError::Unsupported { kernel, what: format!("{h} columns in {groups} groups of one size") })
}

/// The sum over a row of `f` of each element, by the contract's lanes and tree.
#[inline(always)]
pub(crate) fn tree_sum<T: Element>(x: &[T], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; TREE_LANES];
    let (chunks, tail) = x.as_chunks::<TREE_LANES>();
    for c in chunks {
        for l in 0..TREE_LANES {
            lanes[l] += f(c[l].to_f32());
        }
    }
    for (l, v) in lanes.iter_mut().zip(tail) {
        *l += f(v.to_f32());
    }
    tree16(&lanes)
}

/// What a row is multiplied by.
#[inline(always)]
pub(crate) fn inverse_rms<T: Element>(x: &[T], eps: f32) -> f32 {
    1.0 / (tree_sum(
        x,
        #[inline(always)]
        |v| v * v,
    ) / x.len() as f32
        + eps)
        .sqrt()
}

#[inline(always)]
fn norm_row<T: Element, W: Element>(x: &[T], w: &[W], eps: f32, out: &mut [T]) {
    let inv = inverse_rms(x, eps);
    for (o, (x, w)) in out.iter_mut().zip(x.iter().zip(w)) {
        *o = T::from_f32((x.to_f32() * inv) * w.to_f32());
    }
}
