//! The rotation and the append by themselves, for operands that no merged projection holds.

use std::ops::Range;

use super::{check_rotation, put_value, rotate, slot, turns};
use crate::convert::Element;
use crate::error::{KernelError, at_least, product};
use crate::paged::{Batch, KvCache};
use crate::view::{float, with_float};
use crate::{Dst, IsaPath, Kernel, Src};

/// Operands of a [`Rope`].
pub struct RopeArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[rows, heads * head_dim]`.
    pub x: Src<'a>,
    /// Rotary position of each row.
    pub positions: &'a [u32],
    /// f32 `[max_pos, rotary_dim]`: `rotary_dim / 2` cosines, then as many sines.
    pub table: Src<'a>,
    /// Rows of the table.
    pub max_pos: usize,
    /// Leading elements of a head that rotate; even, at most head_dim.
    pub rotary_dim: usize,
    /// Heads.
    pub heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// `[rows, heads * head_dim]`.
    pub out: Dst<'a>,
    /// Rows.
    pub rows: usize,
}

/// A checked rotary embedding; a unit is a row.
pub struct Rope<'a>(RopeArgs<'a>);

impl<'a> Rope<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers and positions outside the table, `Unsupported` for dtypes.
    pub fn new(a: RopeArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "rope";
        float(NAME, a.x.dtype())?;
        float(NAME, a.out.dtype())?;
        at_least(NAME, "head_dim", 1, a.head_dim)?;
        check_rotation(NAME, a.head_dim, a.rotary_dim, a.table, a.max_pos, a.positions, a.rows)?;
        let len = product(NAME, "heads", &[a.rows, a.heads, a.head_dim])?;
        at_least(NAME, "x elements", len, a.x.len())?;
        at_least(NAME, "out elements", len, a.out.len())?;
        Ok(Rope(a))
    }
}

impl Kernel for Rope<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    fn scratch_len(&self) -> usize {
        super::max_scratch_len(self.0.head_dim)
    }

    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        let (hd, cols) = (a.head_dim, a.heads * a.head_dim);
        let head = &mut scratch[..hd];
        with_float!(a.x.dtype(), X => with_float!(a.out.dtype(), T => a.path.run(#[inline(always)] || for row in units {
            // SAFETY: rows and positions were checked when built; the unit owns its row of the result.
            let (x, turns, out) = unsafe {
                (
                    a.x.slice::<X>(row * cols, cols),
                    turns(a.table, a.rotary_dim, a.positions, row),
                    a.out.slice::<T>(row * cols, cols),
                )
            };
            for (x, y) in x.chunks_exact(hd).zip(out.chunks_exact_mut(hd)) {
                for (h, x) in head.iter_mut().zip(x) {
                    *h = Element::to_f32(*x);
                }
                rotate(head, a.rotary_dim / 2, turns, y);
            }
        })));
    }
}

/// Operands of a [`KvAppend`].
pub struct KvAppendArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[t, kv_heads * head_dim]`.
    pub k: Src<'a>,
    /// `[t, kv_heads * head_dim]`.
    pub v: Src<'a>,
    /// One layer of the cache; names kv_heads and head_dim.
    pub cache: KvCache<'a>,
    /// Which sequence and position each row is; the slot is `kv_len - q_len + (row - q_start)`.
    pub batch: Batch<'a>,
}

/// A checked append to the cache; a unit is a row of the step.
pub struct KvAppend<'a>(KvAppendArgs<'a>);

impl<'a> KvAppend<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: KvAppendArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "kv_append";
        float(NAME, a.k.dtype())?;
        float(NAME, a.v.dtype())?;
        a.batch.check(&a.cache)?;
        let l = a.cache.layout();
        let len = product(NAME, "rows", &[a.batch.rows(), l.kv_heads(), l.head_dim()])?;
        at_least(NAME, "k elements", len, a.k.len())?;
        at_least(NAME, "v elements", len, a.v.len())?;
        Ok(KvAppend(a))
    }

    /// # Safety
    /// The caller owns the row's slot; `X` is the type of `x`, `C` the cache's. `put` gets block, head, position in the
    /// block and the head's elements.
    #[inline(always)]
    unsafe fn heads<X: Element>(&self, x: Src<'_>, row: usize, put: impl Fn(u32, usize, usize, &[X])) {
        let a = &self.0;
        let l = a.cache.layout();
        let Some(seq) = a.batch.find(row) else { return };
        let (hd, cols) = (l.head_dim(), l.kv_heads() * l.head_dim());
        let (block, at) = slot(&a.batch, seq, row, l.block());
        // SAFETY: rows were checked when built.
        let x = unsafe { x.slice::<X>(row * cols, cols) };
        for (h, x) in x.chunks_exact(hd).enumerate() {
            put(block, h, at, x);
        }
    }
}

impl Kernel for KvAppend<'_> {
    fn units(&self) -> usize {
        self.0.batch.rows()
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        assert!(units.end <= self.units());
        let a = &self.0;
        let l = a.cache.layout();
        with_float!(l.dtype(), C => a.path.run(#[inline(always)] || for row in units {
            with_float!(a.k.dtype(), X => {
                // SAFETY: the unit owns the row's slot; indices of the layout are within a block, block ids were checked.
                unsafe {
                    self.heads::<X>(a.k, row, #[inline(always)] |block, h, at, k| {
                        for (d, k) in k.iter().enumerate() {
                            let to = a.cache.at(block, l.k_index(h, at, d)).cast::<C>();
                            *to = Element::from_f32(Element::to_f32(*k));
                        }
                    });
                }
            });
            with_float!(a.v.dtype(), X => {
                // SAFETY: as above.
                unsafe {
                    self.heads::<X>(a.v, row, #[inline(always)] |block, h, at, v| put_value::<X, C>(&a.cache, block, h, at, v));
                }
            });
        }));
    }
}
