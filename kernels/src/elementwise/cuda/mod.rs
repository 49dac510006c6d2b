//! Elementwise functions on a device, with the CPU's bits: vectors of up to 16 bytes, a row per block in x.

use lathe_device::{Arg, Symbol};
use lathe_numerics::DType;

use super::{Binary, Unary};
use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least};
use crate::view::float;

const THREADS: usize = 256;

/// `out = function(x)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnaryProblem {
    /// What is computed.
    pub function: Unary,
    /// Rows.
    pub m: Symbol,
    /// Columns.
    pub cols: usize,
    /// Elements between rows of x.
    pub stride: usize,
    /// First column of x, counted from an address that is a multiple of 16.
    pub start: usize,
    /// Of x.
    pub dtype: DType,
    /// Of the result.
    pub out: DType,
}

/// `out = function(a, b)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BinaryProblem {
    /// What is computed.
    pub function: Binary,
    /// Rows.
    pub m: Symbol,
    /// Columns.
    pub cols: usize,
    /// Of a.
    pub a: DType,
    /// Of b.
    pub b: DType,
    /// Of the result.
    pub out: DType,
}

/// The widest vector whose elements divide all of `extents` and take at most 16 bytes in each type.
fn vector(extents: usize, types: &[DType]) -> usize {
    let size = types.iter().map(|t| t.size()).max().unwrap_or(1);
    (16 / size).min(1 << extents.trailing_zeros().min(3))
}

/// Work of rows of `cols` elements, by bytes and operations of an element.
fn cost(cols: usize, bytes: usize, flops: u64) -> Cost {
    Cost { fixed_bytes: 0, row_bytes: (cols * bytes) as u64, row_flops: flops * cols as u64 }
}

/// Input x `[m, cols]` at `start` and `stride`; output `[m, cols]`.
///
/// # Errors
/// `Unsupported` for dtypes, `Shape` for empty rows and a stride that the columns do not fit into.
pub fn unary_launches(p: &UnaryProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "unary";
    float(NAME, p.dtype)?;
    float(NAME, p.out)?;
    at_least(NAME, "cols", 1, p.cols)?;
    at_least(NAME, "stride", p.start.saturating_add(p.cols), p.stride)?;
    let vec = vector(p.cols | p.stride | p.start, &[p.dtype, p.out]);
    let source = Source::new(
        format!("{}-{}-{}-{}", p.function, p.dtype, p.out, p.cols),
        include_str!("unary.cu"),
        vec![
            ("FUNCTION", p.function.name().into()),
            ("IN", element(p.dtype).into()),
            ("OUT", element(p.out).into()),
            ("COLS", p.cols.to_string()),
            ("STRIDE", p.stride.to_string()),
            ("THREADS", THREADS.to_string()),
            ("VEC", vec.to_string()),
        ],
    );
    let args = vec![Arg::Input(0), Arg::Output(0), Arg::F32(p.function.param().unwrap_or(0.0))];
    let flops = match p.function {
        Unary::Cast => 0,
        Unary::Scale(_) => 1,
        Unary::Softcap(_) | Unary::Activation(_) => 20,
    };
    let cost = cost(p.cols, p.dtype.size() + p.out.size(), flops);
    let stage = Stage::over_columns((source, NAME), (p.m, p.cols, vec), THREADS, args, cost);
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

/// Inputs a and b `[m, cols]`; output `[m, cols]`.
///
/// # Errors
/// `Unsupported` for dtypes, `Shape` for empty rows.
pub fn binary_launches(p: &BinaryProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "binary";
    let types = [p.a, p.b, p.out];
    types.into_iter().try_for_each(|t| float(NAME, t))?;
    at_least(NAME, "cols", 1, p.cols)?;
    let vec = vector(p.cols, &types);
    let source = Source::new(
        format!("{}-{}-{}-{}-{}", p.function, p.a, p.b, p.out, p.cols),
        include_str!("binary.cu"),
        vec![
            ("FUNCTION", p.function.name().into()),
            ("A", element(p.a).into()),
            ("B", element(p.b).into()),
            ("OUT", element(p.out).into()),
            ("COLS", p.cols.to_string()),
            ("THREADS", THREADS.to_string()),
            ("VEC", vec.to_string()),
        ],
    );
    let args = vec![Arg::Input(0), Arg::Input(1), Arg::Output(0)];
    let cost = cost(p.cols, types.iter().map(|t| t.size()).sum(), 1);
    let stage = Stage::over_columns((source, NAME), (p.m, p.cols, vec), THREADS, args, cost);
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use lathe_device::Extent;

    use super::*;

    const P: UnaryProblem = UnaryProblem {
        function: Unary::Cast,
        m: Symbol::Tokens,
        cols: 1024,
        stride: 6144,
        start: 4096,
        dtype: DType::F32,
        out: DType::BF16,
    };

    #[test]
    fn vectors_divide_columns_stride_and_start() {
        let vec =
            |p: UnaryProblem| unary_launches(&p).unwrap().stages[0].source.defines.last().unwrap().1.clone();
        assert_eq!(vec(P), "4");
        assert_eq!(vec(UnaryProblem { dtype: DType::F16, ..P }), "8");
        assert_eq!(vec(UnaryProblem { start: 6, ..P }), "2");
        assert_eq!(vec(UnaryProblem { stride: 9001, ..P }), "1");
    }

    #[test]
    fn grids_cover_the_columns() {
        let p = BinaryProblem {
            function: Binary::Add,
            m: Symbol::Rows,
            cols: 4100,
            a: DType::F32,
            b: DType::BF16,
            out: DType::BF16,
        };
        let stage = &binary_launches(&p).unwrap().stages[0];
        assert_eq!(stage.grid[1], Extent::fixed(5));
        assert_eq!(stage.cost.row_bytes, 4100 * 8);
        assert_eq!(stage.source.name, "add-f32-bf16-bf16-4100");
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        assert!(unary_launches(&UnaryProblem { cols: 0, ..P }).is_err());
        assert!(unary_launches(&UnaryProblem { start: 5121, ..P }).is_err());
        assert!(unary_launches(&UnaryProblem { out: DType::I32, ..P }).is_err());
    }
}
