//! Launches that rotate queries and keys and append to the cache.

use lathe_kernels::rope_append::NormOver;
use lathe_numerics::DType;
use lathe_plan::schema::{Input, Layout, Param};

use super::{Binder, Call, Result, Rows, WeightRef};

/// Norms of query and key.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    /// What is normalised together.
    pub over: NormOver,
    /// Weights of the query's norm, f32.
    pub q: WeightRef,
    /// Weights of the key's norm, f32.
    pub k: WeightRef,
    /// Added to the mean square.
    pub eps: f32,
}

impl Binder<'_> {
    pub(super) fn rope_append(&self) -> Result<Call> {
        self.arity(3..=6, 1, &["eps", "head_dim", "heads", "kv_heads", "qk_norm"])?;
        let over = match self.launch.param("qk_norm") {
            None => None,
            Some(Param::Name(n)) if n == "none" => None,
            Some(Param::Name(n)) if n == NormOver::Head.name() => Some(NormOver::Head),
            Some(Param::Name(n)) if n == NormOver::Row.name() => Some(NormOver::Row),
            Some(other) => return self.refuse(format!("qk_norm {other:?} is unknown")),
        };
        let norms = if over.is_some() { 2 } else { 0 };
        let rotates = match self.launch.inputs.len() - norms {
            3 => false,
            4 => true,
            _ => return self.refuse("inputs do not match qk_norm"),
        };
        self.step_input(1, Input::Positions)?;
        let cache = 2 + usize::from(rotates);
        let (qkv, q, heads) = (self.input(0)?, self.output(0)?, self.heads(cache)?);
        let table = if rotates { Some(self.table(2, heads.head_dim)?) } else { None };
        self.require(
            qkv.dtype == DType::F32
                && q.dtype.is_float()
                && qkv.rows == Rows::Tokens
                && q.rows == Rows::Tokens
                && qkv.cols == (heads.heads + 2 * heads.kv_heads) * heads.head_dim
                && q.cols == heads.heads * heads.head_dim,
            "operands do not match the heads",
        )?;
        let norm = match over {
            None => None,
            Some(over) => {
                let (q_len, k_len) = match over {
                    NormOver::Head => (heads.head_dim, heads.head_dim),
                    NormOver::Row => (q.cols, heads.kv_heads * heads.head_dim),
                };
                let q = self.vector(cache + 1, DType::F32, q_len)?;
                let k = self.vector(cache + 2, DType::F32, k_len)?;
                Some(QkNorm { over, q, k, eps: self.float("eps")? })
            }
        };
        Ok(Call::RopeAppend { qkv, table, norm, q, heads })
    }

    pub(super) fn rope(&self) -> Result<Call> {
        self.arity(3..=3, 1, &["head_dim", "heads"])?;
        self.step_input(1, Input::Positions)?;
        let (x, out) = (self.input(0)?, self.output(0)?);
        let (heads, head_dim) = (self.int("heads")?, self.int("head_dim")?);
        let table = self.table(2, head_dim)?;
        self.require(
            x.rows == Rows::Tokens
                && out.rows == Rows::Tokens
                && x.dtype.is_float()
                && out.dtype.is_float()
                && heads.checked_mul(head_dim) == Some(x.cols)
                && out.cols == x.cols,
            "operands do not match the heads",
        )?;
        Ok(Call::Rope { x, table, out, heads, head_dim })
    }

    pub(super) fn kv_append(&self) -> Result<Call> {
        self.arity(3..=3, 0, &["head_dim", "kv_heads"])?;
        let (k, v) = (self.input(0)?, self.input(1)?);
        let kv_heads = self.int("kv_heads")?;
        let heads = self.cached_heads(2, kv_heads, kv_heads, self.int("head_dim")?)?;
        self.require(
            [k, v]
                .iter()
                .all(|x| x.rows == Rows::Tokens && x.dtype.is_float() && x.cols == kv_heads * heads.head_dim),
            "operands do not match the heads",
        )?;
        Ok(Call::KvAppend { k, v, heads })
    }

    /// Cosines and sines of every position, for heads of `head_dim`.
    fn table(&self, i: usize, head_dim: usize) -> Result<WeightRef> {
        let table = self.weight(i, &[Layout::RowMajor])?;
        self.require(
            table.dtype == DType::F32
                && table.n >= self.max_seq_len
                && table.k.is_multiple_of(2)
                && table.k <= head_dim,
            "table does not cover max_seq_len positions or head_dim",
        )?;
        Ok(table)
    }
}
