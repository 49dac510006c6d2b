//! The weighted sum of a row's experts: `((y_0 w_0 + y_1 w_1) + ...) + sigmoid(gate) * shared`, then one rounding.
//!
//! Products and sums apart, in f32, in the order of the choices; the shared expert is optional. Same bits on every ISA.

use std::ops::Range;

use lathe_numerics::DType;

use crate::error::{KernelError, at_least, product};
use crate::view::{float, same, with_float};
use crate::{Dst, Element, IsaPath, Kernel, Src, lanes};

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

const NAME: &str = "combine";

/// Operands of a [`Combine`]; all dense.
pub struct CombineArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[rows, choices * cols]`.
    pub y: Src<'a>,
    /// `f32[rows, choices]`.
    pub weights: Src<'a>,
    /// `f32[rows, cols]` and its gate `f32[rows, 1]`.
    pub shared: Option<(Src<'a>, Src<'a>)>,
    /// `[rows, cols]`, any float dtype.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
    /// Experts of a row.
    pub choices: usize,
    /// Columns of the result.
    pub cols: usize,
}

/// A checked combination; a unit is a row.
pub struct Combine<'a>(CombineArgs<'a>);

/// Columns that are summed together, in registers.
const BLOCK: usize = 64;

impl<'a> Combine<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers and no choices; `Unsupported` for dtypes.
    pub fn new(a: CombineArgs<'a>) -> Result<Self, KernelError> {
        float(NAME, a.y.dtype())?;
        float(NAME, a.out.dtype())?;
        same(NAME, "weights dtype", DType::F32, a.weights.dtype())?;
        at_least(NAME, "choices", 1, a.choices)?;
        let cells = product(NAME, "rows * cols", &[a.rows, a.cols])?;
        at_least(NAME, "y elements", product(NAME, "y", &[cells, a.choices])?, a.y.len())?;
        at_least(NAME, "weights elements", product(NAME, "weights", &[a.rows, a.choices])?, a.weights.len())?;
        at_least(NAME, "out elements", cells, a.out.len())?;
        if let Some((shared, gate)) = a.shared {
            same(NAME, "shared dtype", DType::F32, shared.dtype())?;
            same(NAME, "gate dtype", DType::F32, gate.dtype())?;
            at_least(NAME, "shared elements", cells, shared.len())?;
            at_least(NAME, "gate elements", a.rows, gate.len())?;
        }
        Ok(Combine(a))
    }
}

#[inline(always)]
fn row<T: Element, O: Element>(y: &[T], w: &[f32], shared: Option<(&[f32], f32)>, out: &mut [O]) {
    let cols = out.len();
    for c0 in (0..cols).step_by(BLOCK) {
        let n = BLOCK.min(cols - c0);
        let mut sums = [0.0; BLOCK];
        for (j, w) in w.iter().enumerate() {
            let part = sums.iter_mut().zip(&y[j * cols + c0..][..n]);
            if j == 0 {
                part.for_each(|(s, y)| *s = y.to_f32() * w);
            } else {
                part.for_each(|(s, y)| *s += y.to_f32() * w);
            }
        }
        if let Some((shared, scale)) = shared {
            sums.iter_mut().zip(&shared[c0..][..n]).for_each(|(s, x)| *s += scale * x);
        }
        out[c0..][..n].iter_mut().zip(&sums).for_each(|(o, s)| *o = O::from_f32(*s));
    }
}

impl Kernel for Combine<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        with_float!(a.y.dtype(), T => with_float!(a.out.dtype(), O => a.path.run(#[inline(always)] || for r in units {
            // SAFETY: rows were checked when built; the unit owns its row of the result.
            unsafe {
                let shared = a.shared.map(|(shared, gate)| {
                    let gate = gate.slice::<f32>(r, 1)[0];
                    (shared.slice::<f32>(r * a.cols, a.cols), lanes::sigmoid(gate))
                });
                let y = a.y.slice::<T>(r * a.choices * a.cols, a.choices * a.cols);
                let weights = a.weights.slice::<f32>(r * a.choices, a.choices);
                row(y, weights, shared, a.out.slice::<O>(r * a.cols, a.cols));
            }
        })));
    }
}
