//! `out = silu(gate) * up`, computed in f32 and rounded once. The same bits on every ISA.

use std::ops::Range;

use crate::error::{KernelError, at_least, span};
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src, lanes};

#[cfg(feature = "cuda")]
pub mod cuda;

/// Operands of a [`SiluMul`]. Gate and up have one dtype; out may have another.
pub struct SiluMulArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
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

/// A checked SwiGLU product; a unit is a row.
pub struct SiluMul<'a>(SiluMulArgs<'a>);

impl<'a> SiluMul<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: SiluMulArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "silu_mul";
        float(NAME, a.gate.dtype())?;
        float(NAME, a.out.dtype())?;
        same(NAME, "up dtype", a.gate.dtype(), a.up.dtype())?;
        let n = span(NAME, "stride", a.rows, a.cols, a.stride)?;
        at_least(NAME, "gate elements", n, a.gate.len())?;
        at_least(NAME, "up elements", n, a.up.len())?;
        at_least(NAME, "out elements", span(NAME, "cols", a.rows, a.cols, a.cols)?, a.out.len())?;
        Ok(SiluMul(a))
    }
}

impl Kernel for SiluMul<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        with_float!(a.gate.dtype(), T => with_float!(a.out.dtype(), O => a.path.run(|| for r in units {
            // SAFETY: rows were checked when built; the unit owns its output row.
            let (gate, up, out) = unsafe {
                (
                    a.gate.slice::<T>(r * a.stride, a.cols),
                    a.up.slice::<T>(r * a.stride, a.cols),
                    a.out.slice::<O>(r * a.cols, a.cols),
                )
            };
            for (o, (g, u)) in out.iter_mut().zip(gate.iter().zip(up)) {
                *o = <O as crate::Element>::from_f32(
                    lanes::silu(crate::Element::to_f32(*g)) * crate::Element::to_f32(*u),
                );
            }
        })));
    }
}

#[cfg(test)]
mod tests;
