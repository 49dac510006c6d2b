//! `out[i] = x[rows[i]]`, any dtype.

use std::ops::Range;

use crate::error::{KernelError, at_least, at_most, span};
use crate::view::same;
use crate::{Dst, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;

/// Operands of a [`GatherRows`].
pub struct GatherRowsArgs<'a> {
    /// `[n, cols]`, row r at `r * x_stride`.
    pub x: Src<'a>,
    /// Elements between rows of x.
    pub x_stride: usize,
    /// Rows of x.
    pub n: usize,
    /// Columns.
    pub cols: usize,
    /// Which rows.
    pub rows: &'a [u32],
    /// `[rows, cols]`, x's dtype.
    pub out: Dst<'a>,
}

/// A checked gather; a unit is a row of the result.
pub struct GatherRows<'a>(GatherRowsArgs<'a>);

impl<'a> GatherRows<'a> {
    /// Checks operands against shapes and every index against `n`.
    ///
    /// # Errors
    /// `Shape` for short buffers and indices at or above `n`, `Unsupported` when dtypes differ.
    pub fn new(a: GatherRowsArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "gather_rows";
        same(NAME, "out dtype", a.x.dtype(), a.out.dtype())?;
        at_least(NAME, "x elements", span(NAME, "x stride", a.n, a.cols, a.x_stride)?, a.x.len())?;
        at_least(NAME, "out elements", span(NAME, "cols", a.rows.len(), a.cols, a.cols)?, a.out.len())?;
        for r in a.rows {
            at_least(NAME, "rows of x", 1, a.n)?;
            at_most(NAME, "row", a.n - 1, *r as usize)?;
        }
        Ok(GatherRows(a))
    }
}

impl Kernel for GatherRows<'_> {
    fn units(&self) -> usize {
        self.0.rows.len()
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        let size = a.x.dtype().size();
        for i in units {
            let r = a.rows[i] as usize;
            // SAFETY: both rows were checked when built.
            unsafe {
                let src = a.x.byte_ptr().add(r * a.x_stride * size);
                let dst = a.out.byte_ptr().add(i * a.cols * size);
                std::ptr::copy(src, dst, a.cols * size);
            }
        }
    }
}

#[cfg(test)]
mod tests;
