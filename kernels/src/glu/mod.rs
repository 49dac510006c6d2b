//! `out = act(gate) * up`, computed in f32 and rounded once. The same bits on every ISA.

use std::ops::Range;

use lathe_numerics::Activation;

use crate::error::{KernelError, at_least, span};
use crate::lanes::with_activation;
use crate::view::{float, same, with_float};
use crate::{Dst, Element, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;

/// Operands of a [`Glu`]. Gate and up have one dtype; out may have another.
pub struct GluArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// The gate's function.
    pub act: Activation,
    /// `[rows, cols]`, row r at `r * stride`.
    pub gate: Src<'a>,
    /// `[rows, cols]`, row r at `r * stride`.
    pub up: Src<'a>,
    /// Elements between rows of gate and of up.
    pub stride: usize,
    /// `[rows, cols]`, row r at `r * cols`.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// A checked gated product; a unit is a row.
pub struct Glu<'a>(GluArgs<'a>);

impl<'a> Glu<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: GluArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "glu";
        float(NAME, a.gate.dtype())?;
        float(NAME, a.out.dtype())?;
        same(NAME, "up dtype", a.gate.dtype(), a.up.dtype())?;
        let n = span(NAME, "stride", a.rows, a.cols, a.stride)?;
        at_least(NAME, "gate elements", n, a.gate.len())?;
        at_least(NAME, "up elements", n, a.up.len())?;
        at_least(NAME, "out elements", span(NAME, "cols", a.rows, a.cols, a.cols)?, a.out.len())?;
        Ok(Glu(a))
    }
}

impl Kernel for Glu<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        with_float!(a.gate.dtype(), T => with_float!(a.out.dtype(), O => with_activation!(a.act, f => {
            a.path.run(#[inline(always)] || for r in units {
                // SAFETY: rows were checked when built; the unit owns its output row.
                let (gate, up, out) = unsafe {
                    (
                        a.gate.slice::<T>(r * a.stride, a.cols),
                        a.up.slice::<T>(r * a.stride, a.cols),
                        a.out.slice::<O>(r * a.cols, a.cols),
                    )
                };
                for (o, (g, u)) in out.iter_mut().zip(gate.iter().zip(up)) {
                    *o = O::from_f32(f(T::to_f32(*g)) * T::to_f32(*u));
                }
            });
        })));
    }
}

#[cfg(test)]
mod tests;
