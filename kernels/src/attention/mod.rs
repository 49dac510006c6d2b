//! Causal grouped-query attention over the paged cache, for ragged batches of prefill chunks, decodes, verifications.
//!
//! Query row of position `i` sees positions `0..=i` of its sequence, of a window only the last `window` of them. Order:
//! leaves of 128 absolute positions, whatever the window; in a leaf, scores are dots over ascending d (the chain of a GEMM
//! tile), times `scale`, then capped; the leaf's maximum; `exp(s - max)` unrounded; their sum by the 16-lane tree over the
//! position in the leaf; `o += p_j * v_j` from zero in ascending j. Leaves are folded left by `numerics::fold_leaf`, from
//! the first that the row sees; a sink is one more leaf, folded last, of maximum `sinks[head]`, sum 1 and no value;
//! `o / sum` is rounded once. Masked positions add nothing, and leaves before all windows are not read.
//! K and q both bf16 use `vdpbf16ps` on AVX-512; all other combinations widen to f32.
//!
//! One unit is a tile of query rows times all query heads of one key-value head, so K and V are read once per tile.

use std::ops::Range;

use lathe_numerics::ATTENTION_LEAF;
use lathe_numerics::contract::{LeafState, PANEL, TREE_LANES, fold_leaf, tree16};

use crate::convert::Element;
use crate::error::{KernelError, at_least, at_most, product};
use crate::gemm::tile::{self, Ahead, Kind, MAX_PANELS, MAX_ROWS, TileArgs, WIDE_ROWS};
use crate::paged::{Batch, KvCache, Sequence};
use crate::view::{float, same, with_float};
use crate::{Dst, Isa, IsaPath, Kernel, Src, lanes};

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fma;
pub mod reference;
mod scalar;
#[cfg(test)]
mod tests;

/// Operands of an [`Attention`].
pub struct AttentionArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[t, heads * head_dim]`, rows contiguous.
    pub q: Src<'a>,
    /// Query heads, a multiple of the cache's kv_heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Positions that a row sees, its own included; all where absent.
    pub window: Option<u32>,
    /// Bound that scaled scores are squashed into (`numerics::activation::softcap`); none where absent.
    pub softcap: Option<f32>,
    /// `[heads]`, the scores of attention sinks.
    pub sinks: Option<&'a [f32]>,
    /// One layer of the cache, the step's keys and values already appended.
    pub cache: KvCache<'a>,
    /// The ragged batch.
    pub batch: Batch<'a>,
    /// `[t, heads * head_dim]`, q's dtype, rows contiguous.
    pub out: Dst<'a>,
}

/// A checked attention.
pub struct Attention<'a> {
    args: AttentionArgs<'a>,
    kind: Kind,
    group: usize,
    tile: usize,
    units: usize,
}

/// Query rows x heads of a tile: enough to reuse K and V from the first-level cache.
const TILE_ROWS: usize = 48;
/// Panels of 16 positions in a leaf.
const LEAF_PANELS: usize = ATTENTION_LEAF / PANEL;

/// Query rows per unit for `group` query heads per key-value head.
const fn tile_queries(group: usize) -> usize {
    let rows = TILE_ROWS / group;
    if rows == 0 { 1 } else { rows }
}

/// Length of the scratch slice for `group` query heads per key-value head.
const fn scratch_words(group: usize, head_dim: usize) -> usize {
    let rows = tile_queries(group) * group;
    let padded = head_dim.next_multiple_of(PANEL);
    rows * (ATTENTION_LEAF + 3 * padded + 2)
}

/// [`Kernel::scratch_len`] of any attention with these heads.
pub fn max_scratch_len(heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    scratch_words((heads / kv_heads.max(1)).max(1), head_dim)
}

impl<'a> Attention<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers, other than one sink per head and a window of 0, `Unsupported` for dtypes, for heads that
    /// are no multiple of kv_heads and for a cap that is not above 0.
    pub fn new(a: AttentionArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "attention";
        let l = a.cache.layout();
        float(NAME, a.q.dtype())?;
        same(NAME, "out dtype", a.q.dtype(), a.out.dtype())?;
        if a.heads == 0 || !a.heads.is_multiple_of(l.kv_heads()) {
            let what = format!("{} heads on {} kv_heads; they must divide", a.heads, l.kv_heads());
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        at_least(NAME, "window", 1, a.window.map_or(1, |w| w as usize))?;
        if let Some(cap) = a.softcap.filter(|cap| cap.is_nan() || *cap <= 0.0) {
            let what = format!("a soft cap of {cap}; it must be above 0");
            return Err(KernelError::Unsupported { kernel: NAME, what });
        }
        if let Some(sinks) = a.sinks {
            at_least(NAME, "sinks", a.heads, sinks.len())?;
            at_most(NAME, "sinks", a.heads, sinks.len())?;
        }
        a.batch.check(&a.cache)?;
        if let Some(kept) = a.batch.window() {
            at_most(NAME, "window", kept as usize, a.window.map_or(usize::MAX, |w| w as usize))?;
        }
        let n = product(NAME, "q", &[a.batch.rows(), a.heads, l.head_dim()])?;
        at_least(NAME, "q elements", n, a.q.len())?;
        at_least(NAME, "out elements", n, a.out.len())?;
        let group = a.heads / l.kv_heads();
        let tile = tile_queries(group);
        let units = a.batch.sequences().iter().map(|s| s.q_len.div_ceil(tile) * l.kv_heads()).sum();
        let kind = Kind::of(a.path, a.q.dtype(), l.dtype());
        Ok(Attention { args: a, kind, group, tile, units })
    }

    /// One tile of query rows under one key-value head; `next` is what is read after it.
    ///
    /// # Safety
    /// The caller owns the tile's output; `s` is as split by `Scratch::split`.
    unsafe fn tile(
        &self,
        seq: &Sequence,
        kv_head: usize,
        first: usize,
        next: Option<Panels>,
        s: &mut Scratch,
    ) {
        let a = &self.args;
        let hd = a.cache.layout().head_dim();
        let queries = self.tile.min(seq.q_len - first);
        let rows = queries * self.group;
        let seen = self.seen(seq, first);
        with_float!(a.q.dtype(), T => a.path.run(#[inline(always)] || for (r0, n) in sub_tiles(rows) {
            // SAFETY: the tile's query rows were checked when built.
            unsafe { self.pack_q::<T>(seq.q_start + first, kv_head, r0, n, s.q.as_mut_ptr()) };
        }));
        let (first_seen, end) = (seen.first(0), seen.end(rows - 1));
        let leaves = first_seen / ATTENTION_LEAF..end.div_ceil(ATTENTION_LEAF);
        for leaf in leaves.clone() {
            let start = leaf * ATTENTION_LEAF;
            let within = |start: usize| start.max(first_seen)..end.min(start + ATTENTION_LEAF);
            let (k, v) = self.panels(seq, kv_head, within(start));
            s.ahead = match leaf + 1 < leaves.end {
                true => Some(self.panels(seq, kv_head, within(start + ATTENTION_LEAF))),
                false => next,
            };
            for (r0, n) in sub_tiles(rows) {
                let see = seen.rows(r0..r0 + n, start);
                if see.is_empty() {
                    continue;
                }
                // SAFETY: k and v hold the panels of the leaf that rows of the tile see; r0..r0 + n are among these.
                unsafe { self.leaf(&k, &v, start, r0, n, see, seen, s) };
                s.ahead = None;
            }
        }
        with_float!(a.q.dtype(), T => a.path.run(#[inline(always)] || for r in 0..rows {
            let row = seq.q_start + first + r / self.group;
            let head = kv_head * self.group + r % self.group;
            // SAFETY: checked when built; the unit owns these elements.
            let out = unsafe { a.out.slice::<T>((row * a.heads + head) * hd, hd) };
            let total = &mut s.total[r * s.padded..(r + 1) * s.padded];
            let mut state = LeafState { max: s.state[r * 2], sum: s.state[r * 2 + 1] };
            if let Some(sinks) = a.sinks {
                let (after, fa, fb) = fold_leaf(state, LeafState { max: sinks[head], sum: 1.0 });
                total.iter_mut().for_each(|t| *t = *t * fa + 0.0 * fb);
                state = after;
            }
            for (o, t) in out.iter_mut().zip(&*total) {
                *o = <T as Element>::from_f32(t / state.sum);
            }
        }));
    }

    /// Which positions the tile whose first query row is `first` sees.
    fn seen(&self, seq: &Sequence, first: usize) -> Seen {
        let window = self.args.window.map_or(usize::MAX, |w| w as usize);
        Seen { base: seq.kv_len - seq.q_len + first + 1, group: self.group, window }
    }

    /// K and V of positions of one leaf; what comes before them is not looked up, as its blocks need not exist.
    fn panels(&self, seq: &Sequence, kv_head: usize, positions: Range<usize>) -> Panels {
        let l = self.args.cache.layout();
        let at = |position: usize| {
            let (block, at) = (self.args.batch.block_of(seq, position), position % l.block());
            // SAFETY: block ids were checked; indices of the layout are within a block.
            unsafe {
                let k = self.args.cache.at(block, l.k_index(kv_head, at, 0));
                (k.cast_const(), self.args.cache.at(block, l.v_index(kv_head, at, 0)).cast_const())
            }
        };
        let start = positions.start / PANEL * PANEL;
        let (k, v) = at(start);
        let mut panels = ([k; LEAF_PANELS], [v; LEAF_PANELS]);
        for position in (start..positions.end).step_by(PANEL).skip(1) {
            let p = position % ATTENTION_LEAF / PANEL;
            (panels.0[p], panels.1[p]) = at(position);
        }
        panels
    }

    /// Packs query rows `r0..r0 + n` of a tile as GEMM rows of depth head_dim.
    ///
    /// # Safety
    /// The rows exist; `out` holds the tile's packed queries.
    #[inline(always)]
    unsafe fn pack_q<T: Element>(&self, row0: usize, kv_head: usize, r0: usize, n: usize, out: *mut f32) {
        let a = &self.args;
        let hd = a.cache.layout().head_dim();
        for r in 0..n {
            let row = row0 + (r0 + r) / self.group;
            let head = kv_head * self.group + (r0 + r) % self.group;
            // SAFETY: element (row, head, 0) starts head_dim elements within q; the packed row is within out.
            unsafe {
                let x = a.q.slice::<T>((row * a.heads + head) * hd, hd);
                tile::pack_row(self.kind, x, r, n, out.add(r0 * self.kind.row_words(hd)));
            }
        }
    }

    /// Rows `r0..r0 + n`, of which those of `see` see something, over one leaf: scores, weights, weighted values, fold.
    ///
    /// # Safety
    /// `k` and `v` point at the leaf's panels of which `seen` says that some row sees something.
    unsafe fn leaf(
        &self,
        k: &[*const u8; LEAF_PANELS],
        v: &[*const u8; LEAF_PANELS],
        start: usize,
        r0: usize,
        n: usize,
        see: Range<usize>,
        seen: Seen,
        s: &mut Scratch,
    ) {
        let in_leaf = |r: usize| seen.in_leaf(r, start);
        let (low, high) = (in_leaf(see.start), in_leaf(see.end - 1));
        let a = &self.args;
        let hd = a.cache.layout().head_dim();
        let words = self.kind.row_words(hd);
        let widest = if n <= WIDE_ROWS { MAX_PANELS } else { 2 };
        let panels = high.end.div_ceil(PANEL);
        let mut p = low.start / PANEL;
        while p < panels {
            let np = widest.min(panels - p);
            let mut w = [k[p]; MAX_PANELS];
            w[..np].copy_from_slice(&k[p..p + np]);
            // SAFETY: packed rows r0.. hold `words` each; every K panel holds head_dim elements of 16 positions.
            unsafe {
                let args = TileArgs {
                    x: s.q.as_ptr().add(r0 * words),
                    w,
                    steps: hd / self.kind.k_per_step(),
                    from: None,
                    to: s.scores.as_mut_ptr().add(r0 * ATTENTION_LEAF + p * PANEL),
                    to_stride: ATTENTION_LEAF,
                    add: false,
                    ahead: s.ahead.map(|(k, _)| {
                        let mut at = [k[p]; MAX_PANELS];
                        at[..np].copy_from_slice(&k[p..p + np]);
                        Ahead { at, stride: 64 }
                    }),
                };
                tile::run(a.path, self.kind, n, np, &args);
            }
            p += np;
        }
        let (r0, n) = (see.start, see.len());
        let mut states = [LeafState { max: 0.0, sum: 0.0 }; MAX_ROWS];
        for r in 0..n {
            let row = &mut s.scores[(r0 + r) * ATTENTION_LEAF..(r0 + r + 1) * ATTENTION_LEAF];
            let range = in_leaf(r0 + r);
            states[r] = match a.softcap {
                None => a.path.run(
                    #[inline(always)]
                    || weigh(row, range, |s| s * a.scale),
                ),
                Some(cap) => a.path.run(
                    #[inline(always)]
                    || weigh(row, range, |s| lanes::softcap(s * a.scale, cap)),
                ),
            };
        }
        // Each row's own first positions, those that all rows see together, each row's own rest: a product with a
        // masked value would carry its NaN.
        let common = high.start..low.end.max(high.start);
        let own_start = low.start < high.start;
        if own_start {
            for r in r0..r0 + n {
                let own = in_leaf(r);
                // SAFETY: rows and positions as above.
                unsafe { self.values(v, r, 1, own.start, own.end.min(common.start), false, s) };
            }
        }
        // SAFETY: as above.
        unsafe { self.values(v, r0, n, common.start, common.end, own_start, s) };
        for r in r0..r0 + n {
            let own = in_leaf(r);
            if own.end > common.end {
                // SAFETY: as above.
                unsafe { self.values(v, r, 1, own.start.max(common.end), own.end, true, s) };
            }
        }
        let (total, acc, padded) = (&mut *s.total, &*s.acc, s.padded);
        a.path.run(
            #[inline(always)]
            || {
                let state = &mut s.state[r0 * 2..(r0 + n) * 2];
                // Rows that see the leaf before come first; for the others this one is the first.
                let folds = (r0..r0 + n).take_while(|r| seen.first(*r) < start).count();
                let (before, first) = state.split_at_mut(folds * 2);
                let (fa, fb) = fold_leaves(before, &states[..folds]);
                for (s, l) in first.as_chunks_mut::<2>().0.iter_mut().zip(&states[folds..n]) {
                    *s = [l.max, l.sum];
                }
                for r in 0..n {
                    let row = (r0 + r) * padded..(r0 + r + 1) * padded;
                    let (total, acc) = (&mut total[row.clone()], &acc[row]);
                    if r >= folds {
                        total.copy_from_slice(acc);
                        continue;
                    }
                    for (t, o) in total.iter_mut().zip(acc) {
                        *t = *t * fa[r] + *o * fb[r];
                    }
                }
            },
        );
    }

    /// `acc[r] (+)= sum of p[r][j] * v[j]` for positions `from..to` of the leaf, `n` rows from `r0`.
    ///
    /// # Safety
    /// As `leaf`; `to` is at most the positions the panels hold.
    unsafe fn values(
        &self,
        v: &[*const u8; LEAF_PANELS],
        r0: usize,
        n: usize,
        from: usize,
        to: usize,
        resume: bool,
        s: &mut Scratch,
    ) {
        let l = self.args.cache.layout();
        let widest = if n <= WIDE_ROWS { MAX_PANELS } else { 2 };
        let chunks = l.head_dim().div_ceil(PANEL);
        let mut c = 0;
        while c < chunks {
            let nc = widest.min(chunks - c);
            // SAFETY: row r0 of scores and accumulators; chunk c of each value row.
            let args = unsafe {
                ValueArgs {
                    p: s.scores.as_ptr().add(r0 * ATTENTION_LEAF),
                    v,
                    ahead: s.ahead.as_ref().map(|a| &a.1),
                    row_len: l.head_dim(),
                    col: c * PANEL,
                    last: PANEL.min(l.head_dim() - (c + nc - 1) * PANEL),
                    from,
                    to,
                    acc: s.acc.as_mut_ptr().add(r0 * s.padded + c * PANEL),
                    acc_stride: s.padded,
                    resume,
                }
            };
            match self.args.path.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: passed on; the path proves the features.
                Isa::Avx512 => unsafe { avx512::values(l.dtype(), n, nc, &args) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { fma::values::<crate::avx2::Registers>(l.dtype(), n, nc, &args) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: passed on.
                Isa::Neon => unsafe { fma::values::<crate::neon::Registers>(l.dtype(), n, nc, &args) },
                // SAFETY: passed on.
                _ => unsafe { scalar::values(l.dtype(), n, nc, &args) },
            }
            c += nc;
        }
    }
}

/// K and V of a leaf, by panels; the first one again where there are no more.
type Panels = ([*const u8; LEAF_PANELS], [*const u8; LEAF_PANELS]);

/// A product of weights `[rows][128]` with value rows: `v[j / 16]` points at 16 rows of `row_len` elements; columns
/// `col..` in chunks of 16, `last` columns in the last chunk. `acc` rows are `acc_stride` apart and padded to 16.
/// Meanwhile memory may be asked for `ahead`: blocks are scattered, which the hardware does not foresee.
struct ValueArgs<'a> {
    p: *const f32,
    v: &'a [*const u8; LEAF_PANELS],
    ahead: Option<&'a [*const u8; LEAF_PANELS]>,
    row_len: usize,
    col: usize,
    last: usize,
    from: usize,
    to: usize,
    acc: *mut f32,
    acc_stride: usize,
    resume: bool,
}

/// Row tiles of at most 12, of 6 when that suffices for all.
fn sub_tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(MAX_ROWS).max(1);
    let (base, extra) = (rows / count, rows % count);
    (0..count).map(move |t| (t * base + t.min(extra), base + usize::from(t < extra)))
}

/// Which positions the rows of a tile see. Neither bound descends with the row.
#[derive(Clone, Copy)]
struct Seen {
    /// Positions that row 0 sees without a window.
    base: usize,
    /// Rows of one position.
    group: usize,
    window: usize,
}

impl Seen {
    fn end(self, row: usize) -> usize {
        self.base + row / self.group
    }

    fn first(self, row: usize) -> usize {
        self.end(row).saturating_sub(self.window)
    }

    /// Those of `rows` that see something of the leaf at `start`: the first may not yet, the last no more.
    fn rows(self, rows: Range<usize>, start: usize) -> Range<usize> {
        let first = rows.start + rows.clone().take_while(|r| self.end(*r) <= start).count();
        let see = (first..rows.end).take_while(|r| self.first(*r) < start + ATTENTION_LEAF).count();
        first..first + see
    }

    /// Those of the leaf at `start`, counted from there.
    fn in_leaf(self, row: usize, start: usize) -> Range<usize> {
        let within = |position: usize| position.saturating_sub(start).min(ATTENTION_LEAF);
        within(self.first(row))..within(self.end(row))
    }
}

/// Dots to weights of one row over the positions of a leaf that it sees; `score` scales and caps. Lanes are positions modulo
/// 16; those of the first and last 16 that the row does not see weigh nothing.
#[inline(always)]
fn weigh(scores: &mut [f32], seen: Range<usize>, score: impl Fn(f32) -> f32) -> LeafState {
    let (first, end) = (seen.start / TREE_LANES, seen.end.div_ceil(TREE_LANES));
    let around = first * TREE_LANES..end * TREE_LANES;
    scores[around.clone()].iter_mut().for_each(|s| *s = score(*s));
    scores[around.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..around.end].fill(f32::NEG_INFINITY);
    let chunks = &mut scores.as_chunks_mut::<TREE_LANES>().0[first..end];
    // Long sequences consist of whole leaves: loops of known length.
    match <&mut [_; ATTENTION_LEAF / TREE_LANES]>::try_from(&mut *chunks) {
        Ok(leaf) => exponentials(leaf),
        Err(_) => exponentials(chunks),
    }
}

/// Scores to weights, with their maximum and sum.
#[inline(always)]
fn exponentials(chunks: &mut [[f32; TREE_LANES]]) -> LeafState {
    let mut maxima = [f32::NEG_INFINITY; TREE_LANES];
    for c in chunks.iter() {
        for l in 0..TREE_LANES {
            maxima[l] = if c[l] > maxima[l] { c[l] } else { maxima[l] };
        }
    }
    // No lane is NaN, so the order does not matter.
    let mut half = TREE_LANES / 2;
    while half > 0 {
        for l in 0..half {
            maxima[l] = if maxima[l + half] > maxima[l] { maxima[l + half] } else { maxima[l] };
        }
        half /= 2;
    }
    let max = maxima[0];
    let mut sums = [0.0f32; TREE_LANES];
    for c in chunks {
        for l in 0..TREE_LANES {
            c[l] = lanes::exp(c[l] - max);
            sums[l] += c[l];
        }
    }
    LeafState { max, sum: tree16(&sums) }
}

/// `numerics::fold_leaf`, bit for bit, for several rows side by side: `state` holds maximum and sum of each.
#[inline(always)]
fn fold_leaves(state: &mut [f32], leaves: &[LeafState]) -> ([f32; MAX_ROWS], [f32; MAX_ROWS]) {
    let (mut fa, mut fb) = ([0.0; MAX_ROWS], [0.0; MAX_ROWS]);
    let states = state.as_chunks_mut::<2>().0;
    if leaves.is_empty() {
        return (fa, fb);
    }
    for ((a, b), (s, l)) in fa.iter_mut().zip(&mut fb).zip(states.iter_mut().zip(leaves)) {
        let max = if l.max > s[0] { l.max } else { s[0] };
        (*a, *b) = (s[0] - max, l.max - max);
        s[0] = max;
    }
    fa.iter_mut().for_each(|f| *f = lanes::exp(*f));
    fb.iter_mut().for_each(|f| *f = lanes::exp(*f));
    for ((a, b), (s, l)) in fa.iter().zip(&fb).zip(states.iter_mut().zip(leaves)) {
        s[1] = s[1] * a + l.sum * b;
    }
    (fa, fb)
}

struct Scratch<'a> {
    q: &'a mut [f32],
    scores: &'a mut [f32],
    acc: &'a mut [f32],
    total: &'a mut [f32],
    state: &'a mut [f32],
    padded: usize,
    /// The leaf after this one.
    ahead: Option<Panels>,
}

impl<'a> Scratch<'a> {
    fn split(s: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let padded = head_dim.next_multiple_of(PANEL);
        let (q, s) = s.split_at_mut(rows * padded);
        let (scores, s) = s.split_at_mut(rows * ATTENTION_LEAF);
        let (acc, s) = s.split_at_mut(rows * padded);
        let (total, s) = s.split_at_mut(rows * padded);
        let (state, _) = s.split_at_mut(rows * 2);
        Scratch { q, scores, acc, total, state, padded, ahead: None }
    }
}

impl Kernel for Attention<'_> {
    fn units(&self) -> usize {
        self.units
    }

    fn scratch_len(&self) -> usize {
        scratch_words(self.group, self.args.cache.layout().head_dim())
    }

    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]) {
        assert!(units.end <= self.units && scratch.len() >= self.scratch_len());
        let l = self.args.cache.layout();
        let mut s = Scratch::split(scratch, self.tile * self.group, l.head_dim());
        // Units run sequence by sequence, then by key-value head, then by tile of rows.
        let mut base = 0;
        let mut seqs = self.args.batch.sequences().iter().peekable();
        while let Some(seq) = seqs.next() {
            let tiles = seq.q_len.div_ceil(self.tile);
            let end = base + tiles * l.kv_heads();
            for unit in units.start.max(base)..units.end.min(end) {
                let (kv_head, t) = ((unit - base) / tiles, (unit - base) % tiles);
                let first = |seq: &Sequence, kv_head, t: usize| {
                    let position = self.seen(seq, t * self.tile).first(0);
                    let leaf_end = (position / ATTENTION_LEAF + 1) * ATTENTION_LEAF;
                    self.panels(seq, kv_head, position..seq.kv_len.min(leaf_end))
                };
                let next = match (unit + 1 < end, seqs.peek().filter(|s| s.q_len > 0)) {
                    (true, _) => Some(first(seq, (unit + 1 - base) / tiles, (unit + 1 - base) % tiles)),
                    (false, Some(seq)) => Some(first(seq, 0, 0)),
                    (false, None) => None,
                };
                // SAFETY: the unit owns its rows and heads of the output.
                unsafe { self.tile(seq, kv_head, t * self.tile, next, &mut s) };
            }
            base = end;
            if base >= units.end {
                break;
            }
        }
    }
}
