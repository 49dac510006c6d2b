//! Launches that work row by row or element by element: norms and elementwise functions.

use lathe_kernels::elementwise::{Binary, Unary};
use lathe_numerics::DType;
use lathe_plan::schema::{Layout, Place};

use super::{Binder, Call, Region, Result, Rows, WeightRef};

/// Columns of an activation matrix in the arena.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Byte offset of the first element in the arena.
    pub offset: usize,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: Rows,
    /// Columns.
    pub cols: usize,
    /// Elements between rows.
    pub stride: usize,
}

/// A norm's weights, eps and groups.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[cols]`, or `[cols / groups]` for all groups.
    pub weight: WeightRef,
    /// Added under the root.
    pub eps: f32,
    /// Parts of a row that are normalised apart.
    pub groups: usize,
}

impl Binder<'_> {
    /// A part of a buffer's columns.
    fn view(&self, i: usize) -> Result<View> {
        let operand = &self.launch.inputs[i];
        let Place::Buffer(index) = operand.place else { return self.refuse("operand is no buffer") };
        let Some(buffer) = self.program.buffers.get(index as usize) else {
            return self.refuse("operand names a buffer that does not exist");
        };
        let end = operand.col_offset.checked_add(operand.cols);
        self.require(
            operand.cols > 0
                && operand.row_stride == buffer.cols
                && end.is_some_and(|end| end <= buffer.cols)
                && buffer.cols <= 1 << 31
                && buffer.dtype == operand.dtype
                && buffer.rows == operand.rows,
            "operand is no part of its buffer's columns",
        )?;
        Ok(View {
            offset: buffer.offset as usize + operand.col_offset as usize * operand.dtype.size(),
            dtype: operand.dtype,
            rows: self.rows(&operand.rows)?,
            cols: operand.cols as usize,
            stride: operand.row_stride as usize,
        })
    }

    pub(super) fn unary(&self) -> Result<Call> {
        self.arity(1..=1, 1, &["fn", "param"])?;
        let (x, out) = (self.view(0)?, self.output(0)?);
        self.require(x.rows == out.rows && x.cols == out.cols, "shapes differ")?;
        self.require(x.dtype.is_float() && out.dtype.is_float(), "operands are no floats")?;
        let param = self.launch.param("param").map(|_| self.float("param")).transpose()?;
        let Some(function) = self.name("fn").ok().and_then(|name| Unary::of(name, param)) else {
            return self.refuse("parameters fn and param name no function");
        };
        Ok(Call::Unary { function, x, out })
    }

    pub(super) fn binary(&self) -> Result<Call> {
        self.arity(2..=2, 1, &["fn"])?;
        let (a, b, out) = (self.input(0)?, self.input(1)?, self.output(0)?);
        self.same_rows(&[a, b, out])?;
        self.require(a.cols == out.cols && b.cols == out.cols, "columns differ")?;
        let all = [a.dtype, b.dtype, out.dtype];
        self.require(all.iter().all(|t| t.is_float()), "operands are no floats")?;
        let Some(function) = Binary::of(self.name("fn")?) else {
            return self.refuse("parameter fn names no function");
        };
        Ok(Call::Binary { function, a, b, out })
    }

    pub(super) fn rms_norm(&self) -> Result<Call> {
        self.arity(2..=2, 1, &["eps", "groups"])?;
        let (x, out) = (self.input(0)?, self.output(0)?);
        Ok(Call::RmsNorm { x, norm: self.norm(x, out)?, out })
    }

    pub(super) fn layer_norm(&self) -> Result<Call> {
        self.arity(2..=3, 1, &["eps", "groups"])?;
        let (x, out) = (self.input(0)?, self.output(0)?);
        let norm = self.norm(x, out)?;
        let bias = match self.launch.inputs.len() {
            3 => Some(self.vector(2, norm.weight.dtype, norm.weight.n)?),
            _ => None,
        };
        Ok(Call::LayerNorm { x, norm, bias, out })
    }

    fn norm(&self, x: Region, out: Region) -> Result<Norm> {
        self.same_rows(&[x, out])?;
        self.require(x.cols == out.cols && x.dtype == out.dtype && x.dtype.is_float(), "shapes differ")?;
        let groups = self.launch.param("groups").map_or(Ok(1), |_| self.int("groups"))?;
        self.require(x.cols.is_multiple_of(groups), "columns are no multiple of groups")?;
        let weight = self.norm_weight(1, x.dtype)?;
        self.require(
            weight.n == x.cols || weight.n == x.cols / groups,
            "the norm's weight is as long as neither a row nor a group",
        )?;
        Ok(Norm { weight, eps: self.float("eps")?, groups })
    }

    /// A vector of the activations' type or f32.
    pub(super) fn norm_weight(&self, i: usize, dtype: DType) -> Result<WeightRef> {
        let weight = self.weight(i, &[Layout::RowMajor])?;
        self.require(
            weight.k == 1 && (weight.dtype == dtype || weight.dtype == DType::F32),
            &format!("input {i} is no vector of {dtype} or f32"),
        )?;
        Ok(weight)
    }
}
