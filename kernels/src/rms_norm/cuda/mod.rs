//! The norms on a device: one block per row.
//!
//! Order, a function of `h` alone: runs of 8 elements are dealt to the block's threads by turns; a thread adds its
//! squares by ascending index; lanes of a warp are added as a butterfly of distances 16, 8, 4, 2, 1, and so are the
//! warps' sums. Otherwise the arithmetic of the CPU's norms.

use lathe_device::{Arg, Extent, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::{KernelError, at_least};
use crate::view::float;

const TEXT: &str = include_str!("kernel.cu");
/// Elements that a thread takes in a row.
const RUN: usize = 8;
const MAX_THREADS: usize = 512;
/// Longest row whose elements fit the registers of a block.
pub(crate) const MAX_H: usize = 4 * RUN * MAX_THREADS;

/// A norm over rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormProblem {
    /// Rows.
    pub m: Symbol,
    /// Columns.
    pub h: usize,
    /// Of input, weight and output.
    pub dtype: DType,
    /// Added to the mean square.
    pub eps: f32,
}

/// `rms_norm`: inputs x `D[m, h]`, weight `D[h]`; output `D[m, h]`.
///
/// # Errors
/// `Unsupported` for dtypes and rows of more than 16,384 elements, `Shape` for empty rows.
pub fn launches(p: &NormProblem) -> Result<Launches, KernelError> {
    let args = vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::F32(p.eps)];
    one(p, "rms_norm", args, 2 * p.dtype.size())
}

/// `add_rms_norm`: inputs delta `f32[m, h]`, residual `D[m, h]`, weight `D[h]`; outputs sum `D[m, h]`, which may be
/// the residual's own bytes, and normed `D[m, h]`.
///
/// # Errors
/// As [`launches`].
pub fn add_launches(p: &NormProblem) -> Result<Launches, KernelError> {
    let args =
        vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::Output(1), Arg::F32(p.eps)];
    one(p, "add_rms_norm", args, 4 + 3 * p.dtype.size())
}

/// Threads of a block: one per run, whole warps, as many as hold the row in registers.
pub(crate) fn threads(h: usize) -> usize {
    h.div_ceil(RUN).next_multiple_of(32).min(MAX_THREADS)
}

fn one(
    p: &NormProblem,
    entry: &'static str,
    args: Vec<Arg>,
    bytes_per_element: usize,
) -> Result<Launches, KernelError> {
    float(entry, p.dtype)?;
    at_least(entry, "h", 1, p.h)?;
    if p.h > MAX_H {
        return Err(KernelError::Unsupported {
            kernel: entry,
            what: format!("rows of {} elements; device norms hold up to {MAX_H}", p.h),
        });
    }
    let vec = 1 << p.h.trailing_zeros().min(RUN.trailing_zeros());
    let source = Source::new(
        format!("rms_norm-{}-{}", p.dtype, p.h),
        TEXT,
        vec![
            ("ELEMENT", element(p.dtype).into()),
            ("H", p.h.to_string()),
            ("THREADS", threads(p.h).to_string()),
            ("VEC", vec.to_string()),
        ],
    );
    let h = p.h as u64;
    let stage = Stage {
        source,
        entry,
        when: When::Always,
        grid: [Extent::per(p.m, 1, 1), Extent::fixed(1), Extent::fixed(1)],
        block: threads(p.h) as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost: Cost {
            fixed_bytes: h * p.dtype.size() as u64,
            row_bytes: h * bytes_per_element as u64,
            row_flops: 4 * h,
        },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(h: usize, dtype: DType) -> NormProblem {
        NormProblem { m: Symbol::Tokens, h, dtype, eps: 1e-5 }
    }

    #[test]
    fn every_element_of_a_row_has_a_thread_with_room_for_it() {
        for h in [1, 7, 8, 31, 256, 611, 2048, 4096, 4104, 5120, 8192, 16384] {
            let t = threads(h);
            assert!(t.is_multiple_of(32) && t <= MAX_THREADS && h.div_ceil(t * RUN) <= 4, "{h}: {t}");
        }
    }

    #[test]
    fn both_norms_of_a_model_share_one_module() {
        let p = problem(4096, DType::BF16);
        let (plain, add) = (launches(&p).unwrap(), add_launches(&p).unwrap());
        assert_eq!(plain.stages[0].source, add.stages[0].source);
        assert_eq!(add.stages[0].cost.row_bytes, 4096 * 10);
        assert_eq!(plain.stages[0].source.defines[3], ("VEC", "8".into()));
        let odd = launches(&problem(612, DType::F32)).unwrap();
        assert_eq!(odd.stages[0].source.defines[3], ("VEC", "4".into()));
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        assert!(launches(&problem(0, DType::F32)).is_err());
        assert!(launches(&problem(64, DType::I32)).is_err());
        let e = add_launches(&problem(16385, DType::F32)).unwrap_err().to_string();
        assert_eq!(e, "add_rms_norm: unsupported: rows of 16385 elements; device norms hold up to 16384");
    }
}
