//! From merged QKV projections: rotary embedding of q and k, q rounded out, k and v rounded into the paged cache.
//!
//! Half rotation: with `h = rotary_dim / 2`, `y[i] = x[i] * cos[i] - x[i + h] * sin[i]` and
//! `y[i + h] = x[i + h] * cos[i] + x[i] * sin[i]`, unfused f32; elements past `rotary_dim` pass. One rounding each. The
//! same bits on every ISA.

use std::ops::Range;

use crate::convert::Element;
use crate::error::{KernelError, at_least, at_most, product, span};
use crate::paged::{Batch, KvCache};
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

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
    /// f32 `[max_pos, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines.
    pub table: Src<'a>,
    /// Rows of the table.
    pub max_pos: usize,
    /// Leading elements of a head that rotate; even, at most head_dim.
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
        same(NAME, "table dtype", lathe_numerics::DType::F32, a.table.dtype())?;
        float(NAME, a.q_out.dtype())?;
        at_least(NAME, "heads", 1, a.heads)?;
        at_most(NAME, "rotary_dim", l.head_dim(), a.rotary_dim)?;
        if a.rotary_dim % 2 == 1 {
            let what = format!("rotary_dim {}; it must be even", a.rotary_dim);
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        a.batch.check(&a.cache)?;
        let rows = a.batch.rows();
        let q = product(NAME, "heads", &[a.heads, l.head_dim()])?;
        let cols = q + 2 * l.kv_heads() * l.head_dim();
        at_least(NAME, "qkv elements", span(NAME, "qkv stride", rows, cols, a.qkv_stride)?, a.qkv.len())?;
        at_least(NAME, "q elements", span(NAME, "heads", rows, q, q)?, a.q_out.len())?;
        at_least(NAME, "positions", rows, a.positions.len())?;
        let need = product(NAME, "table", &[a.max_pos, a.rotary_dim])?;
        at_least(NAME, "table elements", need, a.table.len())?;
        for p in &a.positions[..rows] {
            at_least(NAME, "max_pos", 1, a.max_pos)?;
            at_most(NAME, "position", a.max_pos - 1, *p as usize)?;
        }
        Ok(RopeAppend { args: a, cols })
    }

    /// # Safety
    /// The caller owns the row's outputs.
    #[inline(always)]
    unsafe fn row<Q: Element, C: Element>(&self, row: usize) {
        let a = &self.args;
        let l = a.cache.layout();
        let Some(seq) = a.batch.find(row) else { return };
        let (hd, half) = (l.head_dim(), a.rotary_dim / 2);
        // SAFETY: rows and positions were checked when built.
        let (qkv, table, q_out) = unsafe {
            (
                a.qkv.slice::<f32>(row * a.qkv_stride, self.cols),
                a.table.slice::<f32>(a.positions[row] as usize * a.rotary_dim, a.rotary_dim),
                a.q_out.slice::<Q>(row * a.heads * hd, a.heads * hd),
            )
        };
        let (cos, sin) = table.split_at(half);
        let (q, kv) = qkv.split_at(a.heads * hd);
        for (x, y) in q.chunks_exact(hd).zip(q_out.chunks_exact_mut(hd)) {
            let (x0, x1) = (&x[..half], &x[half..2 * half]);
            let (y0, y1) = y.split_at_mut(half);
            for i in 0..half {
                y0[i] = Q::from_f32(x0[i] * cos[i] - x1[i] * sin[i]);
                y1[i] = Q::from_f32(x1[i] * cos[i] + x0[i] * sin[i]);
            }
            for i in 2 * half..hd {
                y1[i - half] = Q::from_f32(x[i]);
            }
        }
        let position = seq.kv_len - seq.q_len + (row - seq.q_start);
        let (block, at) = (a.batch.block_of(seq, position), position % l.block());
        let (k, v) = kv.split_at(l.kv_heads() * hd);
        for (h, (k, v)) in k.chunks_exact(hd).zip(v.chunks_exact(hd)).enumerate() {
            let put = |d: usize, y: f32| {
                // SAFETY: indices of the layout are within a block, block ids were checked; the row owns its slot.
                unsafe { *a.cache.at(block, l.k_index(h, at, d)).cast::<C>() = C::from_f32(y) };
            };
            for i in 0..half {
                put(i, k[i] * cos[i] - k[i + half] * sin[i]);
                put(i + half, k[i + half] * cos[i] + k[i] * sin[i]);
            }
            for i in 2 * half..hd {
                put(i, k[i]);
            }
            // SAFETY: as above; the head_dim elements of one position of V are contiguous.
            let v_out = unsafe {
                std::slice::from_raw_parts_mut(a.cache.at(block, l.v_index(h, at, 0)).cast::<C>(), hd)
            };
            for (o, v) in v_out.iter_mut().zip(v) {
                *o = C::from_f32(*v);
            }
        }
    }
}

impl Kernel for RopeAppend<'_> {
    fn units(&self) -> usize {
        self.args.batch.rows()
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        assert!(units.end <= self.units());
        let a = &self.args;
        with_float!(a.q_out.dtype(), Q => with_float!(a.cache.layout().dtype(), C => a.path.run(#[inline(always)] || for row in units {
            // SAFETY: the unit owns the row's query and slot.
            unsafe { self.row::<Q, C>(row) };
        })));
    }
}
