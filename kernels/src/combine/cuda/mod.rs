//! The weighted sum of experts on a device, with the CPU's bits: an element per lane, or four.

use lathe_device::{Arg, Symbol};
use lathe_numerics::DType;

use super::NAME;
use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least, at_most};
use crate::view::float;

const TEXT: &str = include_str!("kernel.cu");
const THREADS: usize = 128;
/// Choices are unrolled.
const MAX_CHOICES: usize = 64;

/// A sum of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows.
    pub m: Symbol,
    /// Columns of the result.
    pub cols: usize,
    /// Experts of a row.
    pub choices: usize,
    /// Of what experts gave.
    pub dtype: DType,
    /// Of the result.
    pub out: DType,
    /// There is an expert that all rows share.
    pub shared: bool,
    /// A residual of the result's shape and type is added before the rounding.
    pub residual: bool,
}

/// Inputs y `D[m, choices * cols]`, weights `f32[m, choices]`, with a residual that, with a shared expert that `f32[m, cols]`
/// and its gate `f32[m, 1]`; output `[m, cols]`.
///
/// # Errors
/// `Unsupported` for dtypes, `Shape` for no columns and for choices outside of `1..=64`.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.out)?;
    at_least(NAME, "cols", 1, p.cols)?;
    at_least(NAME, "choices", 1, p.choices)?;
    at_most(NAME, "choices", MAX_CHOICES, p.choices)?;
    let vec = if p.cols.is_multiple_of(4) { 4 } else { 1 };
    let defines = vec![
        ("CHOICES", p.choices.to_string()),
        ("COLS", p.cols.to_string()),
        ("IN", element(p.dtype).into()),
        ("OUT", element(p.out).into()),
        ("RESIDUAL", u32::from(p.residual).to_string()),
        ("SHARED", u32::from(p.shared).to_string()),
        ("THREADS", THREADS.to_string()),
        ("VEC", vec.to_string()),
    ];
    let source = Source::new(format!("{NAME}-{}-{}x{}", p.dtype, p.choices, p.cols), TEXT, defines);
    let behind = 2 + u32::from(p.residual);
    let optional = |there: bool, at: u32| if there { Arg::Input(at) } else { Arg::U64(0) };
    let (cols, out) = (p.cols as u64, p.out.size() as u64);
    let terms = p.choices as u64 + u64::from(p.shared) + u64::from(p.residual);
    let args = vec![
        Arg::Input(0),
        Arg::Input(1),
        optional(p.residual, 2),
        optional(p.shared, behind),
        optional(p.shared, behind + 1),
        Arg::Output(0),
    ];
    let cost = Cost {
        fixed_bytes: 0,
        row_bytes: cols * (p.choices as u64 * p.dtype.size() as u64 + out)
            + cols * (u64::from(p.shared) * 4 + u64::from(p.residual) * out),
        row_flops: 2 * cols * terms,
    };
    let stage = Stage::over_columns((source, NAME), (p.m, p.cols, vec), THREADS, args, cost);
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Problem = Problem {
        m: Symbol::Tokens,
        cols: 64,
        choices: 8,
        dtype: DType::BF16,
        out: DType::BF16,
        shared: true,
        residual: true,
    };

    #[test]
    fn operands_that_are_not_there_are_null() {
        let args = |p: &Problem| launches(p).unwrap().stages[0].args.clone();
        let [y, w, out, none] = [Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::U64(0)];
        assert_eq!(args(&P), [y, w, Arg::Input(2), Arg::Input(3), Arg::Input(4), out]);
        assert_eq!(args(&Problem { residual: false, ..P }), [y, w, none, Arg::Input(2), Arg::Input(3), out]);
        assert_eq!(args(&Problem { shared: false, ..P }), [y, w, Arg::Input(2), none, none, out]);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        assert!(launches(&Problem { cols: 63, ..P }).is_ok());
        for wrong in [
            Problem { cols: 0, ..P },
            Problem { choices: 0, ..P },
            Problem { choices: 65, ..P },
            Problem { out: DType::I32, ..P },
        ] {
            assert!(launches(&wrong).is_err(), "{wrong:?}");
        }
    }
}
