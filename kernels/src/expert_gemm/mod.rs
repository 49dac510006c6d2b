//! Many GEMMs in one: every expert's weight times the rows that chose it.
//!
//! Needs: the weights of all experts one below the other, each a whole number of panels, packed by `gemm::pack_panel`;
//! the choices of all rows grouped by expert (`top_k::GroupChoices`). Row `c` of the result belongs to choice `c`.
//! Order: that of `gemm` with one expert's weight, so K slices follow its shape alone. Which other rows chose the expert,
//! units and threads do not enter. Only weights of experts that were chosen are read, once per block of rows.

use std::ops::Range;

use lathe_numerics::Gating;
use lathe_numerics::contract::PANEL;

use crate::error::{KernelError, at_least, at_most, product, span};
use crate::gemm::{Gemm, GemmArgs, Scattered, packed_len, stored_rows};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

pub use crate::gemm::Epilogue;

const NAME: &str = "expert_gemm";

/// The epilogue that joins gate and up so.
pub fn gated(gating: Gating) -> Epilogue {
    match gating {
        Gating::Plain(act) => Epilogue::Glu(act),
        Gating::ClampedSwiglu => Epilogue::ClampedSwiglu,
    }
}

/// Operands of an [`ExpertGemm`].
pub struct ExpertGemmArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[choices / share, k]`, dense.
    pub x: Src<'a>,
    /// Choices in a row that have one row of x: the `k` of `top_k` where a token's choices share its row, else 1.
    pub share: usize,
    /// `i32[choices]`, see `top_k::GroupChoices`; every choice stands in it at most once.
    pub order: &'a [i32],
    /// `i32[experts + 1]`, likewise.
    pub starts: &'a [i32],
    /// Logical features of one expert's weight (`2 * cols` for a gated epilogue).
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Packed weights of all experts, x's dtype.
    pub weight: Src<'a>,
    /// f32, all experts' in stored row order.
    pub bias: Option<&'a [f32]>,
    /// `[choices, n]`, or `cols` of it; any float dtype, dense.
    pub out: Dst<'a>,
    /// What is stored.
    pub epilogue: Epilogue,
}

/// A checked grouped GEMM.
pub struct ExpertGemm<'a> {
    /// One expert's GEMM over as many rows as choices.
    one: Gemm<'a>,
    args: ExpertGemmArgs<'a>,
    /// Elements and rows of one expert's weight.
    expert_len: usize,
    expert_rows: usize,
    /// Choices of the expert that has most.
    most: usize,
    units: usize,
}

impl<'a> ExpertGemm<'a> {
    /// Checks operands against shapes, and the grouping.
    ///
    /// # Errors
    /// `Shape` for short buffers and choices or starts outside of their ranges; `Unsupported` for dtypes and an expert
    /// whose stored rows are no whole panels.
    ///
    /// # Safety
    /// No choice stands twice in `order`.
    pub unsafe fn new(args: ExpertGemmArgs<'a>) -> Result<Self, KernelError> {
        let (choices, rows) = (args.order.len(), stored_rows(args.n, args.epilogue));
        at_least(NAME, "share", 1, args.share)?;
        at_least(NAME, "starts", 2, args.starts.len())?;
        let experts = args.starts.len() - 1;
        if !rows.is_multiple_of(PANEL) {
            let what = format!("{rows} stored rows of an expert; they are a multiple of {PANEL}");
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        let expert_len = packed_len(args.x.dtype(), rows, args.k)?;
        let all = product(NAME, "weight elements", &[expert_len, experts])?;
        at_least(NAME, "weight elements", all, args.weight.len())?;
        if let Some(bias) = args.bias {
            at_least(NAME, "bias elements", product(NAME, "bias", &[rows, experts])?, bias.len())?;
        }
        at_least(NAME, "x elements", span(NAME, "k", choices / args.share, args.k, args.k)?, args.x.len())?;
        // The first row stands for all of them: choices are checked below.
        let one = Gemm::new(GemmArgs {
            path: args.path,
            x: args.x,
            x_stride: args.k,
            m: choices / args.share,
            n: args.n,
            k: args.k,
            weight: args.weight,
            bias: args.bias,
            out: args.out,
            out_stride: args.epilogue.columns(args.n),
            epilogue: args.epilogue,
        })?;
        let columns = args.epilogue.columns(args.n);
        at_least(NAME, "out elements", span(NAME, "columns", choices, columns, columns)?, args.out.len())?;
        let (mut end, mut most) = (0, 0);
        for pair in args.starts.windows(2) {
            let (from, to) = (pair[0] as usize, pair[1] as usize);
            at_least(NAME, "start of an expert", end, from)?;
            at_least(NAME, "end of an expert", from, to)?;
            at_most(NAME, "end of an expert", choices, to)?;
            (end, most) = (to, most.max(to - from));
        }
        let first = args.starts[0] as usize;
        for choice in &args.order[first..end] {
            at_most(
                NAME,
                "choice",
                (choices / args.share * args.share).saturating_sub(1),
                *choice as u32 as usize,
            )?;
        }
        let mut gemm = ExpertGemm { one, args, expert_len, expert_rows: rows, most, units: 0 };
        gemm.units = (0..experts).map(|e| gemm.expert(e).units()).sum();
        Ok(gemm)
    }

    /// The GEMM of one expert's choices.
    fn expert(&self, e: usize) -> Gemm<'a> {
        let a = &self.args;
        let at = &a.order[a.starts[e] as usize..a.starts[e + 1] as usize];
        let weight = a.weight.part(e * self.expert_len, self.expert_len);
        let bias = a.bias.map(|b| &b[e * self.expert_rows..(e + 1) * self.expert_rows]);
        // SAFETY: choices and lengths were checked when built; no choice stands twice, as the maker said.
        unsafe { self.one.of_rows(Scattered { at, share: a.share }, weight, bias) }
    }
}

impl Kernel for ExpertGemm<'_> {
    fn units(&self) -> usize {
        self.units
    }

    fn scratch_len(&self) -> usize {
        self.one.scratch_len_of(self.most)
    }

    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]) {
        assert!(units.end <= self.units && scratch.len() >= self.scratch_len());
        let mut first = 0;
        for e in 0..self.args.starts.len() - 1 {
            if self.args.starts[e] == self.args.starts[e + 1] {
                continue;
            }
            let gemm = self.expert(e);
            let end = first + gemm.units();
            let mine = units.start.clamp(first, end) - first..units.end.clamp(first, end) - first;
            if !mine.is_empty() {
                // SAFETY: passed on; units of different experts write different rows.
                unsafe { gemm.run(mine, scratch) };
            }
            first = end;
            if first >= units.end {
                break;
            }
        }
    }
}
