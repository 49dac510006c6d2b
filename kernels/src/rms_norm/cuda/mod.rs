//! The norms on a device: one block per row, or per group of a row.
//!
//! Order, a function of a group's columns alone: runs of 8 elements are dealt to the block's threads by turns; a thread adds its
//! squares by ascending index; lanes of a warp are added as a butterfly of distances 16, 8, 4, 2, 1, and so are the
//! warps' sums. Otherwise the arithmetic of the CPU's norms.

use lathe_device::{Arg, Extent, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, element};
use crate::error::KernelError;
use crate::rms_norm::{group_len, norm_weight};
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
    /// Parts of a row that are normalised apart, all of one size.
    pub groups: usize,
    /// Of input and output.
    pub dtype: DType,
    /// Of the norm's weights: `dtype` or f32.
    pub weight: DType,
    /// Elements of the norm's weights: `h`, or `h / groups` for all groups.
    pub weight_len: usize,
    /// Added to the mean square.
    pub eps: f32,
}

impl NormProblem {
    /// A norm over whole rows with weights of their type.
    pub const fn rows(m: Symbol, h: usize, dtype: DType, eps: f32) -> Self {
        NormProblem { m, h, groups: 1, dtype, weight: dtype, weight_len: h, eps }
    }
}

/// `rms_norm`: inputs x `D[m, h]`, weight; output `D[m, h]`.
///
/// # Errors
/// `Unsupported` for dtypes and groups of more than 16,384 elements, `Shape` for empty rows.
pub fn launches(p: &NormProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "rms_norm";
    let args = vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::F32(p.eps)];
    norm_stage(p, (NAME, TEXT, vec![]), NAME, args, 2 * p.dtype.size())
}

/// `add_rms_norm`: inputs delta `f32[m, h]`, residual `D[m, h]`, weight; outputs sum `D[m, h]`, which may be
/// the residual's own bytes, and normed `D[m, h]`.
///
/// # Errors
/// As [`launches`]; `Unsupported` for groups.
pub fn add_launches(p: &NormProblem) -> Result<Launches, KernelError> {
    const NAME: &str = "add_rms_norm";
    if p.groups != 1 {
        let what = format!("{} groups; a residual is added to whole rows", p.groups);
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    let args =
        vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::Output(1), Arg::F32(p.eps)];
    norm_stage(p, ("rms_norm", TEXT, vec![]), NAME, args, 4 + 3 * p.dtype.size())
}

/// Threads of a block: one per run, whole warps, as many as hold the row in registers.
pub(crate) fn threads(h: usize) -> usize {
    h.div_ceil(RUN).next_multiple_of(32).min(MAX_THREADS)
}

/// The launch of one kernel of a source that includes `row.cuh`: name, text and further macros of the source; entry.
pub(crate) fn norm_stage(
    p: &NormProblem,
    (name, text, defines): (&str, &'static str, Vec<(&'static str, String)>),
    entry: &'static str,
    args: Vec<Arg>,
    bytes_per_element: usize,
) -> Result<Launches, KernelError> {
    float(entry, p.dtype)?;
    norm_weight(entry, p.dtype, p.weight)?;
    let n = group_len(entry, p.h, p.groups)?;
    if n > MAX_H {
        return Err(KernelError::Unsupported {
            kernel: entry,
            what: format!("rows of {n} elements; device norms hold up to {MAX_H}"),
        });
    }
    if p.weight_len != n && p.weight_len != p.h {
        let what = format!("{} weights for groups of {n} of {} columns", p.weight_len, p.h);
        return Err(KernelError::Unsupported { kernel: entry, what });
    }
    let vec = 1 << n.trailing_zeros().min(RUN.trailing_zeros());
    let weight_rows = p.weight_len / n;
    let mut all = vec![
        ("ELEMENT", element(p.dtype).into()),
        ("WEIGHT", element(p.weight).into()),
        ("H", n.to_string()),
        ("WEIGHT_ROWS", weight_rows.to_string()),
        ("THREADS", threads(n).to_string()),
        ("VEC", vec.to_string()),
    ];
    all.extend(defines);
    let weights = if weight_rows == 1 { String::new() } else { format!("x{weight_rows}") };
    let source = Source::new(format!("{name}-{}-{n}{weights}", p.dtype), text, all);
    let stage = Stage {
        source,
        entry,
        when: When::Always,
        grid: [Extent::per(p.m, 1, p.groups as u32), Extent::fixed(1), Extent::fixed(1)],
        block: threads(n) as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost: Cost {
            fixed_bytes: (p.weight_len * p.weight.size()) as u64,
            row_bytes: (p.h * bytes_per_element) as u64,
            row_flops: 4 * p.h as u64,
        },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(h: usize, dtype: DType) -> NormProblem {
        NormProblem::rows(Symbol::Tokens, h, dtype, 1e-5)
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
        let vec = |l: &Launches| l.stages[0].source.defines.iter().find(|d| d.0 == "VEC").unwrap().1.clone();
        assert_eq!(vec(&plain), "8");
        assert_eq!(vec(&launches(&problem(612, DType::F32)).unwrap()), "4");
    }

    #[test]
    fn groups_have_blocks_of_their_own() {
        let p = NormProblem { groups: 32, weight_len: 128, weight: DType::F32, ..problem(4096, DType::BF16) };
        let stage = &launches(&p).unwrap().stages[0];
        assert_eq!((stage.block, &stage.grid[0]), (32, &Extent::per(Symbol::Tokens, 1, 32)));
        assert_eq!((stage.cost.fixed_bytes, stage.cost.row_bytes), (512, 4 * 4096));
        let own = launches(&NormProblem { weight_len: 4096, ..p }).unwrap();
        assert_eq!(own.stages[0].source.name, "rms_norm-bf16-128x32");
        assert!(launches(&NormProblem { weight_len: 256, ..p }).is_err());
        assert!(add_launches(&p).is_err());
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        assert!(launches(&problem(0, DType::F32)).is_err());
        assert!(launches(&problem(64, DType::I32)).is_err());
        assert!(launches(&NormProblem { weight: DType::F16, ..problem(64, DType::BF16) }).is_err());
        let e = add_launches(&problem(16385, DType::F32)).unwrap_err().to_string();
        assert_eq!(e, "add_rms_norm: unsupported: rows of 16385 elements; device norms hold up to 16384");
    }
}
