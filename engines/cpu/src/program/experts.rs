//! Launches of a mixture of experts.

use lathe_numerics::{DType, Gating};
use lathe_plan::schema::{Expr, Launch, Layout, Operand, Place};

use super::{Binder, Region, Result, WeightRef};

/// A router's choice.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TopKCall {
    /// `f32[m, experts]`.
    pub logits: Region,
    /// `i32[m, k]`.
    pub ids: Region,
    pub weights: Region,
    /// Normalised over all logits instead of the chosen ones.
    pub over_all: bool,
    /// What the same launch does afterwards.
    pub grouping: GroupChoicesCall,
}

/// A router's choices by expert.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct GroupChoicesCall {
    /// `i32[m, k]`, as is `order`.
    pub ids: Region,
    pub order: Region,
    pub experts: usize,
    /// Byte offset of `i32[experts + 1]`.
    pub starts: usize,
}

/// Every expert's projection of the rows that chose it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ExpertGemmCall {
    pub x: Region,
    /// `i32[m, choices]`.
    pub order: Region,
    /// Byte offset of `i32[experts + 1]`.
    pub starts: usize,
    pub experts: usize,
    pub weight: WeightRef,
    pub bias: Option<WeightRef>,
    pub out: Region,
    pub gating: Option<Gating>,
}

impl ExpertGemmCall {
    /// Choices of a row that share one row of x.
    pub fn share(&self) -> usize {
        if self.x.cols == self.weight.k { self.order.cols } else { 1 }
    }
}

/// The weighted sum of experts.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct CombineCall {
    pub y: Region,
    pub weights: Region,
    /// The shared expert and its gate.
    pub shared: Option<(Region, Region)>,
    pub out: Region,
}

impl Binder<'_> {
    /// Byte offset of the whole of a buffer `i32[len, 1]`.
    fn starts(&self, operand: &Operand, len: usize) -> Result<usize> {
        let Place::Buffer(index) = operand.place else { return self.refuse("operand is no buffer") };
        let Some(buffer) = self.program.buffers.get(index as usize) else {
            return self.refuse("operand names a buffer that does not exist");
        };
        self.require(
            *operand == Operand::buffer(index, buffer)
                && operand.dtype == DType::I32
                && operand.rows == Expr::constant(len as u64)
                && operand.cols == 1,
            &format!("operand is not i32[{len}, 1]"),
        )?;
        Ok(buffer.offset as usize)
    }

    /// The launch before this one that has written a buffer, and as which output.
    fn writer(&self, operand: &Operand) -> Option<(&Launch, usize)> {
        self.program.launches[..self.at].iter().rev().find_map(|launch| {
            let at = launch.outputs.iter().position(|o| o.place == operand.place)?;
            Some((launch, at))
        })
    }

    pub(super) fn top_k(&self) -> Result<TopKCall> {
        self.arity(1..=1, 4, &["k", "over"])?;
        let (logits, k) = (self.input(0)?, self.int("k")?);
        let [ids, weights, order] = [self.output(0)?, self.output(1)?, self.output(2)?];
        self.same_rows(&[logits, ids, weights, order])?;
        self.require(logits.dtype == DType::F32 && k <= logits.cols, "logits are not f32[m, experts]")?;
        self.require(
            [ids, weights, order].iter().all(|r| r.cols == k)
                && [ids, order].iter().all(|r| r.dtype == DType::I32)
                && weights.dtype == DType::F32,
            "ids, weights and order do not match k",
        )?;
        let starts = self.starts(&self.launch.outputs[3], logits.cols + 1)?;
        let over_all = match self.name("over")? {
            "all" => true,
            "chosen" => false,
            other => return self.refuse(format!("over {other} is unknown")),
        };
        let grouping = GroupChoicesCall { ids, order, experts: logits.cols, starts };
        Ok(TopKCall { logits, ids, weights, over_all, grouping })
    }

    pub(super) fn expert_gemm(&self) -> Result<ExpertGemmCall> {
        self.arity(4..=5, 1, &["act", "cols", "epilogue", "experts"])?;
        let (x, order, out) = (self.input(0)?, self.input(1)?, self.output(0)?);
        self.same_rows(&[x, order, out])?;
        let (experts, choices) = (self.int("experts")?, order.cols);
        self.require(order.dtype == DType::I32, "order is not i32")?;
        let starts = self.starts(&self.launch.inputs[2], experts + 1)?;
        let grouped = |at: usize, output: usize| {
            let operand = &self.launch.inputs[at];
            self.writer(operand).filter(|(launch, at)| launch.kernel == "top_k" && *at == output)
        };
        let one_choice = match (grouped(1, 2), grouped(2, 3)) {
            (Some((order, _)), Some((starts, _))) => std::ptr::eq(order, starts),
            _ => false,
        };
        self.require(one_choice, "order and starts are not of one top_k")?;
        let weight = self.weight(3, &[Layout::Panel16])?;
        self.require(
            (x.cols == weight.k || Some(x.cols) == choices.checked_mul(weight.k)) && x.dtype == weight.dtype,
            "weight does not match the input",
        )?;
        let rows = weight.n / experts;
        self.require(
            weight.n.is_multiple_of(experts) && rows.is_multiple_of(16),
            "weight is no whole experts of a multiple of 16 rows",
        )?;
        let (gating, cols) = match self.name("epilogue")? {
            "store" => (None, rows),
            "glu" => {
                let cols = self.int("cols")?;
                self.require(rows == 32 * cols.div_ceil(16), "cols do not match the interleaved weight")?;
                match self.name("act")?.parse() {
                    Ok(gating) => (Some(gating), cols),
                    Err(why) => return self.refuse(why),
                }
            }
            other => return self.refuse(format!("epilogue {other} is unknown")),
        };
        self.require(
            Some(out.cols) == choices.checked_mul(cols) && out.dtype.is_float(),
            "output does not match the weight",
        )?;
        let bias = match self.launch.inputs.len() {
            5 => Some(self.vector(4, DType::F32, weight.n)?),
            _ => None,
        };
        Ok(ExpertGemmCall { x, order, starts, experts, weight, bias, out, gating })
    }

    pub(super) fn combine(&self) -> Result<CombineCall> {
        self.arity(2..=4, 1, &[])?;
        let (y, weights, out) = (self.input(0)?, self.input(1)?, self.output(0)?);
        self.same_rows(&[y, weights, out])?;
        self.require(
            Some(y.cols) == out.cols.checked_mul(weights.cols)
                && weights.dtype == DType::F32
                && y.dtype.is_float()
                && out.dtype.is_float(),
            "operands do not match",
        )?;
        let shared = match self.launch.inputs.len() {
            2 => None,
            4 => {
                let (shared, gate) = (self.input(2)?, self.input(3)?);
                self.same_rows(&[y, shared, gate])?;
                self.require(
                    shared.cols == out.cols
                        && gate.cols == 1
                        && [shared, gate].iter().all(|r| r.dtype == DType::F32),
                    "shared expert or its gate do not match",
                )?;
                Some((shared, gate))
            }
            _ => return self.refuse("a shared expert has no gate"),
        };
        Ok(CombineCall { y, weights, shared, out })
    }
}
