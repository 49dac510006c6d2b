//! Calls of a mixture of experts.

use lathe_kernels::combine::{Combine, CombineArgs};
use lathe_kernels::expert_gemm::{Epilogue, ExpertGemm, ExpertGemmArgs, gated};
use lathe_kernels::top_k::{GroupChoices, GroupChoicesArgs, Over, TopK, TopKArgs};
use lathe_kernels::{Dst, KernelError, Src};
use lathe_numerics::DType;

use super::{Machine, StepData, f32_slice};
use crate::program::{CombineCall, ExpertGemmCall, GroupChoicesCall, TopKCall};

impl Machine<'_> {
    /// `len` integers of the arena, at the offset of a buffer that holds them.
    fn ints(&self, offset: usize, len: usize) -> Result<&[i32], KernelError> {
        // SAFETY: as in `src`: the verifier has placed the buffer within the arena, and nobody writes it now.
        let bytes = unsafe { std::slice::from_raw_parts(self.arena.ptr().add(offset), len * 4) };
        // SAFETY: every bit pattern is an i32; `align_to` finds the aligned middle.
        let (head, middle, _) = unsafe { bytes.align_to::<i32>() };
        let misplaced =
            KernelError::Shape { kernel: "top_k", what: "integers", bound: len, got: middle.len() };
        if head.is_empty() && middle.len() == len { Ok(middle) } else { Err(misplaced) }
    }

    fn starts(&self, offset: usize, len: usize) -> Result<Dst<'_>, KernelError> {
        // SAFETY: as in `dst`.
        unsafe { Dst::raw(DType::I32, self.arena.ptr().add(offset), len * 4) }
    }

    pub(super) fn top_k(&self, step: &StepData<'_>, call: &TopKCall) -> Result<TopK<'_>, KernelError> {
        let rows = self.rows(step, call.logits.rows);
        TopK::new(TopKArgs {
            path: self.path,
            logits: self.src(call.logits, rows)?,
            rows,
            n: call.logits.cols,
            k: call.ids.cols,
            over: if call.over_all { Over::All } else { Over::Chosen },
            ids: self.dst(call.ids, rows)?,
            weights: self.dst(call.weights, rows)?,
        })
    }

    pub(super) fn group_choices(
        &self,
        step: &StepData<'_>,
        call: GroupChoicesCall,
    ) -> Result<GroupChoices<'_>, KernelError> {
        let rows = self.rows(step, call.ids.rows);
        GroupChoices::new(GroupChoicesArgs {
            ids: self.ints(call.ids.offset, rows * call.ids.cols)?,
            experts: call.experts,
            order: self.dst(call.order, rows)?,
            starts: self.starts(call.starts, call.experts + 1)?,
        })
    }

    pub(super) fn expert_gemm(
        &self,
        step: &StepData<'_>,
        call: &ExpertGemmCall,
    ) -> Result<ExpertGemm<'_>, KernelError> {
        let rows = self.rows(step, call.x.rows);
        let choices = rows * call.order.cols;
        let (epilogue, n) = match call.gating {
            None => (Epilogue::Store, call.weight.n / call.experts),
            Some(gating) => (gated(gating), 2 * call.out.cols / call.order.cols),
        };
        let bias = match call.bias {
            Some(b) => Some(f32_slice(self.plan.weight_bytes(b.index), b.n)?),
            None => None,
        };
        let args = ExpertGemmArgs {
            path: self.path,
            x: self.src(call.x, rows)?,
            share: call.share(),
            order: self.ints(call.order.offset, choices)?,
            starts: self.ints(call.starts, call.experts + 1)?,
            n,
            k: call.weight.k,
            weight: self.weight(call.weight)?,
            bias,
            out: self.dst(call.out, rows)?,
            epilogue,
        };
        // SAFETY: the grouping was written by `top_k` in this step (binding has checked it), which names every choice once.
        unsafe { ExpertGemm::new(args) }
    }

    pub(super) fn combine(
        &self,
        step: &StepData<'_>,
        call: &CombineCall,
    ) -> Result<Combine<'_>, KernelError> {
        let rows = self.rows(step, call.y.rows);
        let shared = |(shared, gate)| -> Result<(Src<'_>, Src<'_>), KernelError> {
            Ok((self.src(shared, rows)?, self.src(gate, rows)?))
        };
        Combine::new(CombineArgs {
            path: self.path,
            y: self.src(call.y, rows)?,
            weights: self.src(call.weights, rows)?,
            shared: call.shared.map(shared).transpose()?,
            out: self.dst(call.out, rows)?,
            rows,
            choices: call.weights.cols,
            cols: call.out.cols,
        })
    }
}
