//! Functions of the elements of one or two matrices of any float types: computed in f32, rounded once to the result's
//! type. The same bits on every ISA. A cast of a part of a matrix's columns is a copy of them.

use std::fmt;
use std::ops::Range;

use lathe_numerics::Activation;

use crate::convert::Element;
use crate::error::{KernelError, at_least, span};
use crate::lanes;
use crate::lanes::with_activation;
use crate::view::{float, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

/// Elements of a row that make a unit: enough that handing it out costs nothing beside it.
const PIECE: usize = 4096;
/// Elements that are in f32 at a time, in the first-level cache.
const BLOCK: usize = 256;

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// The element itself.
    Cast,
    /// `x * factor`.
    Scale(f32),
    /// `cap * tanh(x / cap)` (arXiv 2408.00118).
    Softcap(f32),
    /// An activation.
    Activation(Activation),
}

impl Unary {
    /// The word for it in plans and device sources.
    pub const fn name(self) -> &'static str {
        match self {
            Unary::Cast => "cast",
            Unary::Scale(_) => "scale",
            Unary::Softcap(_) => "softcap",
            Unary::Activation(act) => act.name(),
        }
    }

    /// What the function takes beside the element.
    pub const fn param(self) -> Option<f32> {
        match self {
            Unary::Scale(p) | Unary::Softcap(p) => Some(p),
            Unary::Cast | Unary::Activation(_) => None,
        }
    }

    /// Reads [`Unary::name`] and [`Unary::param`] back; `None` for an unknown name, a parameter that is missing or that
    /// nothing takes.
    pub fn of(name: &str, param: Option<f32>) -> Option<Self> {
        match (name, param) {
            ("cast", None) => Some(Unary::Cast),
            ("scale", Some(factor)) => Some(Unary::Scale(factor)),
            ("softcap", Some(cap)) => Some(Unary::Softcap(cap)),
            (act, None) => act.parse().ok().map(Unary::Activation),
            _ => None,
        }
    }
}

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a * b`.
    Mul,
}

impl Binary {
    /// The word for it in plans and device sources.
    pub const fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Mul => "mul",
        }
    }

    /// Reads [`Binary::name`] back.
    pub fn of(name: &str) -> Option<Self> {
        [Binary::Add, Binary::Mul].into_iter().find(|f| f.name() == name)
    }
}

impl fmt::Display for Unary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Operands of an [`Elementwise`] of one matrix.
pub struct UnaryArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// What is computed.
    pub function: Unary,
    /// `[rows, cols]`, row r at `r * x_stride`.
    pub x: Src<'a>,
    /// Elements between rows of x.
    pub x_stride: usize,
    /// `[rows, cols]`, row r at `r * cols`.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// Operands of an [`Elementwise`] of two matrices.
pub struct BinaryArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// What is computed.
    pub function: Binary,
    /// `[len]`, rows one after another.
    pub a: Src<'a>,
    /// `[len]`.
    pub b: Src<'a>,
    /// `[len]`.
    pub out: Dst<'a>,
    /// Elements.
    pub len: usize,
}

enum Function<'a> {
    Unary(Unary),
    Binary(Binary, Src<'a>),
}

/// A checked function of elements; a unit is a piece of a row.
pub struct Elementwise<'a> {
    path: IsaPath,
    function: Function<'a>,
    x: Src<'a>,
    x_stride: usize,
    out: Dst<'a>,
    rows: usize,
    cols: usize,
}

impl<'a> Elementwise<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn unary(a: UnaryArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "unary";
        float(NAME, a.x.dtype())?;
        float(NAME, a.out.dtype())?;
        at_least(NAME, "x elements", span(NAME, "x stride", a.rows, a.cols, a.x_stride)?, a.x.len())?;
        let len = span(NAME, "cols", a.rows, a.cols, a.cols)?;
        at_least(NAME, "out elements", len, a.out.len())?;
        // Rows that follow each other are one.
        let (rows, cols) = if a.x_stride == a.cols { (1, len) } else { (a.rows, a.cols) };
        let function = Function::Unary(a.function);
        Ok(Elementwise { path: a.path, function, x: a.x, x_stride: a.x_stride, out: a.out, rows, cols })
    }

    /// Checks operands against shapes.
    ///
    /// # Errors
    /// As [`Elementwise::unary`].
    pub fn binary(a: BinaryArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "binary";
        float(NAME, a.a.dtype())?;
        float(NAME, a.b.dtype())?;
        float(NAME, a.out.dtype())?;
        at_least(NAME, "a elements", a.len, a.a.len())?;
        at_least(NAME, "b elements", a.len, a.b.len())?;
        at_least(NAME, "out elements", a.len, a.out.len())?;
        let function = Function::Binary(a.function, a.b);
        Ok(Elementwise { path: a.path, function, x: a.a, x_stride: a.len, out: a.out, rows: 1, cols: a.len })
    }

    fn pieces(&self) -> usize {
        self.cols.div_ceil(PIECE)
    }

    /// # Safety
    /// The elements lie within the operands, and the caller owns those of the result.
    #[inline(always)]
    unsafe fn block(&self, from: usize, to: usize, n: usize) {
        let mut y = [0.0f32; BLOCK];
        let y = &mut y[..n];
        // SAFETY: the caller's promise.
        unsafe { load(self.x, from, y) };
        match self.function {
            Function::Unary(Unary::Cast) => {}
            Function::Unary(Unary::Scale(factor)) => each(
                y,
                #[inline(always)]
                |v| v * factor,
            ),
            Function::Unary(Unary::Softcap(cap)) => each(
                y,
                #[inline(always)]
                |v| lanes::softcap(v, cap),
            ),
            Function::Unary(Unary::Activation(act)) => {
                with_activation!(act, f => each(y, f));
            }
            Function::Binary(function, b) => {
                let mut other = [0.0f32; BLOCK];
                let other = &mut other[..n];
                // SAFETY: the caller's promise.
                unsafe { load(b, from, other) };
                for (a, b) in y.iter_mut().zip(other) {
                    *a = match function {
                        Binary::Add => *a + *b,
                        Binary::Mul => *a * *b,
                    };
                }
            }
        }
        with_float!(self.out.dtype(), T => {
            // SAFETY: the caller's promise.
            let out = unsafe { self.out.slice::<T>(to, n) };
            for (o, y) in out.iter_mut().zip(y) {
                *o = <T as Element>::from_f32(*y);
            }
        });
    }
}

#[inline(always)]
fn each(y: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in y {
        *v = f(*v);
    }
}

/// # Safety
/// `x` has elements `from .. from + y.len()`.
#[inline(always)]
unsafe fn load(x: Src<'_>, from: usize, y: &mut [f32]) {
    with_float!(x.dtype(), T => {
        // SAFETY: the caller's promise.
        let x = unsafe { x.slice::<T>(from, y.len()) };
        for (y, x) in y.iter_mut().zip(x) {
            *y = Element::to_f32(*x);
        }
    });
}

impl Kernel for Elementwise<'_> {
    fn units(&self) -> usize {
        self.rows * self.pieces()
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        assert!(units.end <= self.units());
        let pieces = self.pieces();
        self.path.run(
            #[inline(always)]
            || {
                for unit in units {
                    let (row, start) = (unit / pieces, unit % pieces * PIECE);
                    for at in (start..self.cols.min(start + PIECE)).step_by(BLOCK) {
                        let n = BLOCK.min(self.cols - at);
                        // SAFETY: rows and columns were checked when built; the unit owns its piece of the result.
                        unsafe { self.block(row * self.x_stride + at, row * self.cols + at, n) };
                    }
                }
            },
        );
    }
}
