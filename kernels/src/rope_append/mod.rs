//! From merged QKV projections: norms and rotary embedding of q and k, q rounded out, k and v rounded into the paged cache;
//! and the rotation and the append by themselves.
//!
//! Norms, where there are any, come first and are those of `rms_norm`, unrounded, over each head or over all heads.
//! Half rotation: with `h = rotary_dim / 2`, `y[i] = x[i] * cos[i] - x[i + h] * sin[i]` and
//! `y[i + h] = x[i + h] * cos[i] + x[i] * sin[i]`, unfused f32; elements past `rotary_dim` pass. One rounding each. The
//! same bits on every ISA.

use std::ops::Range;

use crate::convert::Element;
use crate::error::{KernelError, at_least, at_most, product, span};
use crate::paged::{Batch, KvCache, Sequence};
use crate::rms_norm::inverse_rms;
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
mod parts;
pub mod reference;
#[cfg(test)]
mod tests;

pub use parts::{KvAppend, KvAppendArgs, Rope, RopeArgs};

/// What query and key are normalised over before they rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// Each head by itself; weights `[head_dim]`.
    Head,
    /// All heads of a row; weights `[heads * head_dim]` and `[kv_heads * head_dim]`.
    Row,
}

impl NormOver {
    /// The word for it in plans.
    pub const fn name(self) -> &'static str {
        match self {
            NormOver::Head => "head",
            NormOver::Row => "row",
        }
    }
}

/// Norms of query and key.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// What is normalised together.
    pub over: NormOver,
    /// f32, see [`NormOver`].
    pub q: Src<'a>,
    /// f32, see [`NormOver`].
    pub k: Src<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Operands of a [`RopeAppend`].
pub struct RopeAppendArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// f32 `[t, (heads + 2 * kv_heads) * head_dim]`, columns q, k, v; row r at `r * qkv_stride`.
    pub qkv: Src<'a>,
    /// Elements between rows of qkv.
    pub qkv_stride: usize,
    /// Rotary position of each row, at least `batch.rows()` long.
    pub positions: &'a [u32],
    /// Norms of q and k.
    pub norm: Option<QkNorm<'a>>,
    /// f32 `[max_pos, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines. Empty where nothing rotates.
    pub table: Src<'a>,
    /// Rows of the table.
    pub max_pos: usize,
    /// Leading elements of a head that rotate; even, at most head_dim, 0 for none.
    pub rotary_dim: usize,
    /// Query heads.
    pub heads: usize,
    /// `[t, heads * head_dim]`.
    pub q_out: Dst<'a>,
    /// One layer of the cache; names kv_heads and head_dim.
    pub cache: KvCache<'a>,
    /// Which sequence and position each row is; the slot is `kv_len - q_len + (row - q_start)`.
    pub batch: Batch<'a>,
}

/// A checked rope and append; a unit is a row of the step.
pub struct RopeAppend<'a> {
    args: RopeAppendArgs<'a>,
    cols: usize,
}

impl<'a> RopeAppend<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers and positions outside the table, `Unsupported` for dtypes.
    pub fn new(a: RopeAppendArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "rope_append";
        let l = a.cache.layout();
        same(NAME, "qkv dtype", lathe_numerics::DType::F32, a.qkv.dtype())?;
        float(NAME, a.q_out.dtype())?;
        at_least(NAME, "heads", 1, a.heads)?;
        a.batch.check(&a.cache)?;
        let rows = a.batch.rows();
        let q = product(NAME, "heads", &[a.heads, l.head_dim()])?;
        let cols = q + 2 * l.kv_heads() * l.head_dim();
        at_least(NAME, "qkv elements", span(NAME, "qkv stride", rows, cols, a.qkv_stride)?, a.qkv.len())?;
        at_least(NAME, "q elements", span(NAME, "heads", rows, q, q)?, a.q_out.len())?;
        check_rotation(NAME, l.head_dim(), a.rotary_dim, a.table, a.max_pos, a.positions, rows)?;
        if let Some(norm) = a.norm {
            let kv = l.kv_heads() * l.head_dim();
            let (q_len, k_len) = match norm.over {
                NormOver::Head => (l.head_dim(), l.head_dim()),
                NormOver::Row => (q, kv),
            };
            same(NAME, "q_norm dtype", lathe_numerics::DType::F32, norm.q.dtype())?;
            same(NAME, "k_norm dtype", lathe_numerics::DType::F32, norm.k.dtype())?;
            at_least(NAME, "q_norm elements", q_len, norm.q.len())?;
            at_least(NAME, "k_norm elements", k_len, norm.k.len())?;
        }
        Ok(RopeAppend { args: a, cols })
    }

    /// # Safety
    /// The caller owns the row's outputs.
    #[inline(always)]
    unsafe fn row<Q: Element, C: Element>(&self, row: usize, scratch: &mut [f32]) {
        let a = &self.args;
        let l = a.cache.layout();
        let Some(seq) = a.batch.find(row) else { return };
        let (hd, half) = (l.head_dim(), a.rotary_dim / 2);
        // SAFETY: rows and positions were checked when built.
        let (qkv, turns, q_out) = unsafe {
            (
                a.qkv.slice::<f32>(row * a.qkv_stride, self.cols),
                turns(a.table, a.rotary_dim, a.positions, row),
                a.q_out.slice::<Q>(row * a.heads * hd, a.heads * hd),
            )
        };
        let (q, kv) = qkv.split_at(a.heads * hd);
        let (k, v) = kv.split_at(l.kv_heads() * hd);
        let (q_norm, k_norm) = match &a.norm {
            None => (None, None),
            // SAFETY: the weights' lengths were checked when built.
            Some(n) => unsafe { (Some(Normed::new(n, n.q, q, hd)), Some(Normed::new(n, n.k, k, hd))) },
        };
        for (h, (x, y)) in q.chunks_exact(hd).zip(q_out.chunks_exact_mut(hd)).enumerate() {
            rotate(normed(&q_norm, h, x, scratch), half, turns, y);
        }
        let (block, at) = slot(&a.batch, seq, row, l.block());
        for (h, (k, v)) in k.chunks_exact(hd).zip(v.chunks_exact(hd)).enumerate() {
            let k = normed(&k_norm, h, k, scratch);
            let put = |d: usize, y: f32| {
                // SAFETY: indices of the layout are within a block, block ids were checked; the row owns its slot.
                unsafe { *a.cache.at(block, l.k_index(h, at, d)).cast::<C>() = C::from_f32(y) };
            };
            let (cos, sin) = turns.split_at(half);
            for i in 0..half {
                put(i, k[i] * cos[i] - k[i + half] * sin[i]);
                put(i + half, k[i + half] * cos[i] + k[i] * sin[i]);
            }
            for i in 2 * half..hd {
                put(i, k[i]);
            }
            // SAFETY: as above.
            unsafe { put_value::<f32, C>(&a.cache, block, h, at, v) };
        }
    }
}

impl Kernel for RopeAppend<'_> {
    fn units(&self) -> usize {
        self.args.batch.rows()
    }

    fn scratch_len(&self) -> usize {
        if self.args.norm.is_some() { max_scratch_len(self.args.cache.layout().head_dim()) } else { 0 }
    }

    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]) {
        assert!(units.end <= self.units() && scratch.len() >= self.scratch_len());
        let a = &self.args;
        with_float!(a.q_out.dtype(), Q => with_float!(a.cache.layout().dtype(), C => a.path.run(#[inline(always)] || for row in units {
            // SAFETY: the unit owns the row's query and slot.
            unsafe { self.row::<Q, C>(row, scratch) };
        })));
    }
}

/// Scratch of a [`RopeAppend`] with norms: one head.
pub const fn max_scratch_len(head_dim: usize) -> usize {
    head_dim
}

/// The norm of a row's queries or keys.
struct Normed<'a> {
    weight: &'a [f32],
    eps: f32,
    /// What all heads are multiplied by, if they are normalised together.
    row: Option<f32>,
}

impl<'a> Normed<'a> {
    /// # Safety
    /// `weight` is f32 and as long as `norm.over` says for `x`.
    #[inline(always)]
    unsafe fn new(norm: &QkNorm<'a>, weight: Src<'a>, x: &[f32], head_dim: usize) -> Self {
        let (len, row) = match norm.over {
            NormOver::Head => (head_dim, None),
            NormOver::Row => (x.len(), Some(inverse_rms(x, norm.eps))),
        };
        // SAFETY: the caller's promise.
        Normed { weight: unsafe { weight.slice::<f32>(0, len) }, eps: norm.eps, row }
    }
}

/// Head `h`, normalised in `scratch` if there is a norm.
#[inline(always)]
fn normed<'x>(norm: &Option<Normed<'_>>, h: usize, x: &'x [f32], scratch: &'x mut [f32]) -> &'x [f32] {
    let Some(norm) = norm else { return x };
    let (inv, w) = match norm.row {
        Some(inv) => (inv, &norm.weight[h * x.len()..(h + 1) * x.len()]),
        None => (inverse_rms(x, norm.eps), norm.weight),
    };
    let y = &mut scratch[..x.len()];
    for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(w)) {
        *y = (x * inv) * w;
    }
    y
}

/// Rotates one head of f32 into `y`; `turns` are `half` cosines, then as many sines.
#[inline(always)]
fn rotate<T: Element>(x: &[f32], half: usize, turns: &[f32], y: &mut [T]) {
    let (cos, sin) = turns.split_at(half);
    let (x0, x1) = (&x[..half], &x[half..2 * half]);
    let (y0, y1) = y.split_at_mut(half);
    for i in 0..half {
        y0[i] = T::from_f32(x0[i] * cos[i] - x1[i] * sin[i]);
        y1[i] = T::from_f32(x1[i] * cos[i] + x0[i] * sin[i]);
    }
    for i in 2 * half..x.len() {
        y1[i - half] = T::from_f32(x[i]);
    }
}

/// The cosines and sines of a row.
///
/// # Safety
/// `check_rotation` accepted the operands, and `row` is one of its rows.
#[inline(always)]
unsafe fn turns<'a>(table: Src<'a>, rotary_dim: usize, positions: &[u32], row: usize) -> &'a [f32] {
    if rotary_dim == 0 {
        return &[];
    }
    // SAFETY: the row's position is below the table's rows.
    unsafe { table.slice::<f32>(positions[row] as usize * rotary_dim, rotary_dim) }
}

/// Block and position in it where a row's key and value go.
#[inline(always)]
fn slot(batch: &Batch<'_>, seq: &Sequence, row: usize, block: usize) -> (u32, usize) {
    let position = seq.kv_len - seq.q_len + (row - seq.q_start);
    (batch.block_of(seq, position), position % block)
}

/// Puts a head's value into its slot.
///
/// # Safety
/// Block, head and position are the cache's, `C` is its type, and the caller owns the slot.
#[inline(always)]
unsafe fn put_value<T: Element, C: Element>(cache: &KvCache<'_>, block: u32, h: usize, at: usize, v: &[T]) {
    let l = cache.layout();
    // SAFETY: the caller's promise; the head_dim elements of one position of V are contiguous.
    let out = unsafe {
        std::slice::from_raw_parts_mut(cache.at(block, l.v_index(h, at, 0)).cast::<C>(), l.head_dim())
    };
    for (o, v) in out.iter_mut().zip(v) {
        *o = C::from_f32(v.to_f32());
    }
}

/// Checks a rotation of the first `rows` of `positions`.
fn check_rotation(
    kernel: &'static str,
    head_dim: usize,
    rotary_dim: usize,
    table: Src<'_>,
    max_pos: usize,
    positions: &[u32],
    rows: usize,
) -> Result<(), KernelError> {
    at_most(kernel, "rotary_dim", head_dim, rotary_dim)?;
    if rotary_dim == 0 {
        return Ok(());
    }
    if rotary_dim % 2 == 1 {
        let what = format!("rotary_dim {rotary_dim}; it must be even");
        return Err(KernelError::Unsupported { kernel, what });
    }
    same(kernel, "table dtype", lathe_numerics::DType::F32, table.dtype())?;
    at_least(kernel, "table elements", product(kernel, "table", &[max_pos, rotary_dim])?, table.len())?;
    at_least(kernel, "positions", rows, positions.len())?;
    for p in &positions[..rows] {
        at_least(kernel, "max_pos", 1, max_pos)?;
        at_most(kernel, "position", max_pos - 1, *p as usize)?;
    }
    Ok(())
}
