//! The paged KV cache: in-block layout (one for every ISA), checked views of cache and batch.
//!
//! One layer of a block of `B` positions is K then V. K is tiles of 16 positions packed like a GEMM weight panel:
//! 2-byte bf16 `[kv_head][B/16][head_dim/2][16][2]`, f16 and f32 `[kv_head][B/16][head_dim][16]`.
//! V is `[kv_head][B][head_dim]`.

use std::marker::PhantomData;

use lathe_numerics::contract::PANEL;
use lathe_numerics::window::{NO_BLOCK, first_block};
use lathe_numerics::{ATTENTION_LEAF, DType};

use crate::error::{KernelError, at_least, at_most, product};
use crate::view::float;

const NAME: &str = "paged";

/// Shape of one layer of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    block: usize,
}

impl KvLayout {
    /// `block` positions of `kv_heads * head_dim` elements of `dtype`, for K and V.
    ///
    /// # Errors
    /// `Unsupported` unless dtype is a float, head_dim even and not zero, and block one of 16, 32, 64, 128.
    pub fn new(dtype: DType, kv_heads: usize, head_dim: usize, block: usize) -> Result<Self, KernelError> {
        float(NAME, dtype)?;
        let fail = |what| Err(KernelError::Unsupported { kernel: NAME, what });
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return fail(format!("head_dim {head_dim}; it must be even"));
        }
        if !block.is_multiple_of(PANEL) || block == 0 || !ATTENTION_LEAF.is_multiple_of(block) {
            return fail(format!("block of {block} positions; known are 16, 32, 64, 128"));
        }
        at_least(NAME, "kv_heads", 1, kv_heads)?;
        product(NAME, "block bytes", &[2, kv_heads, head_dim, block, dtype.size()])?;
        Ok(KvLayout { dtype, kv_heads, head_dim, block })
    }

    /// Bytes of one layer of one block, K and V.
    pub const fn block_bytes(&self) -> usize {
        2 * self.kv_heads * self.head_dim * self.block * self.dtype.size()
    }

    /// Element type.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Key-value heads.
    pub const fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements per head.
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions per block.
    pub const fn block(&self) -> usize {
        self.block
    }

    /// Element index, in one layer of a block, of K at (`kv_head`, position `at` of the block, `d`).
    pub const fn k_index(&self, kv_head: usize, at: usize, d: usize) -> usize {
        let tile = (kv_head * (self.block / PANEL) + at / PANEL) * PANEL * self.head_dim;
        match self.dtype {
            DType::BF16 => tile + (d / 2) * (2 * PANEL) + (at % PANEL) * 2 + d % 2,
            _ => tile + d * PANEL + at % PANEL,
        }
    }

    /// Element index, in one layer of a block, of V at (`kv_head`, position `at` of the block, `d`).
    pub const fn v_index(&self, kv_head: usize, at: usize, d: usize) -> usize {
        self.kv_heads * self.head_dim * self.block + (kv_head * self.block + at) * self.head_dim + d
    }
}

/// One layer of the whole cache: block `b` starts `offset + b * stride` bytes into the memory.
#[derive(Clone, Copy)]
pub struct KvCache<'a> {
    layout: KvLayout,
    base: *mut u8,
    stride: usize,
    n_blocks: usize,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: accesses go through `Kernel::run`, whose callers promise disjoint writes.
unsafe impl Send for KvCache<'_> {}
// SAFETY: as above.
unsafe impl Sync for KvCache<'_> {}

impl<'a> KvCache<'a> {
    /// A view of `memory`. For speed, `memory` starts on a cache line and `offset` and `stride` are multiples of 64.
    ///
    /// # Errors
    /// `Shape` when the last block ends past `memory` or blocks overlap; `Unsupported` for misaligned elements.
    pub fn new(
        layout: KvLayout,
        memory: &'a mut [u8],
        offset: usize,
        stride: usize,
        n_blocks: usize,
    ) -> Result<Self, KernelError> {
        // SAFETY: the slice is exclusively borrowed for 'a.
        unsafe { Self::raw(layout, memory.as_mut_ptr(), memory.len(), offset, stride, n_blocks) }
    }

    /// As [`KvCache::new`], from a raw pointer.
    ///
    /// # Safety
    /// `memory` is readable and writable for `len` initialised bytes during `'a`; while a kernel that uses this view
    /// runs, only kernels on the same view touch them, under the rules of [`crate::Kernel::run`].
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub unsafe fn raw(
        layout: KvLayout,
        memory: *mut u8,
        len: usize,
        offset: usize,
        stride: usize,
        n_blocks: usize,
    ) -> Result<Self, KernelError> {
        if n_blocks > 0 {
            at_least(NAME, "block stride", layout.block_bytes(), stride)?;
            let starts = product(NAME, "cache bytes", &[n_blocks - 1, stride])?;
            let end = starts.checked_add(offset).and_then(|e| e.checked_add(layout.block_bytes()));
            at_least(NAME, "cache bytes", end.unwrap_or(usize::MAX), len)?;
        }
        let base = memory.wrapping_add(offset);
        let size = layout.dtype.size();
        if !(base as usize).is_multiple_of(size) || !stride.is_multiple_of(size) {
            let what = format!("cache start or stride is no multiple of {size} bytes");
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        Ok(KvCache { layout, base, stride, n_blocks, life: PhantomData })
    }

    /// Shape of a block.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Blocks in the cache.
    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// # Safety
    /// `block < n_blocks`, `index` is within a block's layer.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, block: u32, index: usize) -> *mut u8 {
        debug_assert!((block as usize) < self.n_blocks);
        // SAFETY: the end of the last block was checked to lie within the memory.
        unsafe { self.base.add(block as usize * self.stride + index * self.layout.dtype.size()) }
    }
}

/// One sequence's part of a ragged batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// First row of the step.
    pub q_start: usize,
    /// Rows of the step; their positions are `kv_len - q_len .. kv_len`.
    pub q_len: usize,
    /// Positions in the cache after this step's append.
    pub kv_len: usize,
    /// Start of the sequence's block ids in the flat table.
    pub blocks_start: usize,
}

/// A checked ragged batch: built once per step, used by every layer.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    seqs: &'a [Sequence],
    blocks: &'a [u32],
    block: usize,
    n_blocks: usize,
    window: Option<u32>,
    rows: usize,
}

impl<'a> Batch<'a> {
    /// Sequences in ascending row order; `blocks` is the flat table of block ids, `ceil(kv_len / block)` per
    /// sequence from its `blocks_start`.
    ///
    /// # Errors
    /// `Shape` when rows overlap or descend, `q_len > kv_len`, the table is too short or an id is no block.
    pub fn new(
        seqs: &'a [Sequence],
        blocks: &'a [u32],
        block: usize,
        n_blocks: usize,
    ) -> Result<Self, KernelError> {
        Self::windowed(seqs, blocks, block, n_blocks, None)
    }

    /// As [`Batch::new`], for rows that see the last `window` positions alone, their own included: entries of blocks of
    /// which a sequence's rows see nothing may be `NO_BLOCK`. Kernels must not look these up.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn windowed(
        seqs: &'a [Sequence],
        blocks: &'a [u32],
        block: usize,
        n_blocks: usize,
        window: Option<u32>,
    ) -> Result<Self, KernelError> {
        at_least(NAME, "block", 1, block)?;
        at_most(NAME, "block", ATTENTION_LEAF, block)?;
        let mut rows = 0;
        for s in seqs {
            at_least(NAME, "q_start", rows, s.q_start)?;
            at_most(NAME, "q_len", s.kv_len, s.q_len)?;
            rows = s.q_start.saturating_add(s.q_len);
            at_most(NAME, "rows", u32::MAX as usize, rows)?;
            at_most(NAME, "kv_len", u32::MAX as usize, s.kv_len)?;
            let end = s.blocks_start.saturating_add(s.kv_len.div_ceil(block));
            at_least(NAME, "block table", end, blocks.len())?;
            let seen = first_block((s.kv_len - s.q_len) as u32, window, block as u32) as usize;
            for (i, id) in blocks[s.blocks_start..end].iter().enumerate() {
                if *id != NO_BLOCK || i >= seen {
                    at_most(NAME, "block id", n_blocks.saturating_sub(1), *id as usize)?;
                    at_least(NAME, "blocks", 1, n_blocks)?;
                }
            }
        }
        Ok(Batch { seqs, blocks, block, n_blocks, window, rows })
    }

    /// Positions that a row sees of which the block table is whole; `None` is all.
    pub fn window(&self) -> Option<u32> {
        self.window
    }

    /// The sequences.
    pub fn sequences(&self) -> &'a [Sequence] {
        self.seqs
    }

    /// One past the last row of any sequence.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Refuses a cache of another block size or with fewer blocks than the ids were checked against.
    pub(crate) fn check(&self, cache: &KvCache) -> Result<(), KernelError> {
        at_least(NAME, "blocks of the cache", self.n_blocks, cache.n_blocks())?;
        if self.block != cache.layout.block {
            let what = format!("batch with blocks of {}, cache of {}", self.block, cache.layout.block);
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        Ok(())
    }

    /// Block id of `position` of a sequence: below `kv_len`, and within the window of one of its rows.
    #[inline(always)]
    pub(crate) fn block_of(&self, s: &Sequence, position: usize) -> u32 {
        self.blocks[s.blocks_start + position / self.block]
    }

    /// The sequence that holds `row`.
    pub(crate) fn find(&self, row: usize) -> Option<&'a Sequence> {
        let i = self.seqs.partition_point(|s| s.q_start + s.q_len <= row);
        self.seqs.get(i).filter(|s| s.q_start <= row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_has_its_own_place() {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let l = KvLayout::new(dtype, 3, 10, 32).unwrap();
            let mut seen = vec![0u8; l.block_bytes() / dtype.size()];
            for h in 0..3 {
                for p in 0..32 {
                    for d in 0..10 {
                        seen[l.k_index(h, p, d)] += 1;
                        seen[l.v_index(h, p, d)] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|s| *s == 1));
        }
    }

    #[test]
    fn layouts_and_caches_are_checked() {
        assert!(KvLayout::new(DType::BF16, 1, 7, 32).is_err());
        assert!(KvLayout::new(DType::BF16, 1, 8, 24).is_err());
        assert!(KvLayout::new(DType::BF16, usize::MAX / 4, 8, 32).is_err());
        assert!(KvLayout::new(DType::I32, 1, 8, 32).is_err());
        let l = KvLayout::new(DType::F32, 1, 2, 16).unwrap();
        let mut mem = vec![0f32; 64 * 3];
        let len = mem.len() * 4;
        // SAFETY: exactly the vector's bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mem.as_mut_ptr().cast::<u8>(), len) };
        assert!(KvCache::new(l, bytes, 0, 256, 3).is_ok());
        assert!(KvCache::new(l, bytes, 4, 256, 3).is_err());
        assert!(KvCache::new(l, bytes, 0, 255, 3).is_err());
        assert!(KvCache::new(l, bytes, 0, 257, 2).is_err());
        assert!(KvCache::new(l, bytes, usize::MAX, 256, 2).is_err());
        assert!(KvCache::new(l, bytes, 0, usize::MAX / 2, 2).is_err());
    }

    #[test]
    fn batches_are_checked() {
        let ok = Sequence { q_start: 0, q_len: 2, kv_len: 33, blocks_start: 0 };
        assert!(Batch::new(&[ok], &[0, 4], 32, 5).is_ok());
        assert!(Batch::new(&[ok], &[0], 32, 5).is_err());
        assert!(Batch::new(&[ok], &[0, 5], 32, 5).is_err());
        assert!(Batch::new(&[ok, ok], &[0, 4], 32, 5).is_err());
        assert!(Batch::new(&[Sequence { q_len: 34, ..ok }], &[0, 4], 32, 5).is_err());
        assert!(Batch::new(&[Sequence { blocks_start: usize::MAX, ..ok }], &[0, 4], 32, 5).is_err());
        assert!(Batch::new(&[Sequence { kv_len: usize::MAX, ..ok }], &[0, 4], 32, 5).is_err());
        assert!(Batch::new(&[Sequence { q_start: usize::MAX, ..ok }], &[0, 4], 32, 5).is_err());
        assert!(Batch::new(&[ok], &[0, 0], 32, 0).is_err());
    }

    #[test]
    fn what_no_row_sees_needs_no_block() {
        // Rows at positions 64 and 65, of which the first sees 62 with a window of 3.
        let seq = Sequence { q_start: 0, q_len: 2, kv_len: 66, blocks_start: 0 };
        let windowed = |ids: [u32; 3], window| Batch::windowed(&[seq], &ids, 32, 5, window).is_ok();
        assert!(windowed([NO_BLOCK, 1, 4], Some(3)) && windowed([3, 1, 4], Some(3)));
        assert!(windowed([NO_BLOCK, NO_BLOCK, 4], Some(1)));
        assert!(!windowed([NO_BLOCK, NO_BLOCK, 4], Some(2)) && !windowed([0, 1, NO_BLOCK], Some(1)));
        assert!(!windowed([5, 1, 4], Some(3)) && !windowed([NO_BLOCK, 1, 4], None));
    }
}
