//! `y[m, n] = x[m, k] * W[n, k]^T (+ bias)` for any m, with W packed in panels of 16 features.
//!
//! Needs: x and W of one dtype in {bf16, f16, f32}; W packed by [`pack_panel`]. Accumulates in f32.
//! Order: K is cut into `numerics::gemm_slices(stored rows, k)` slices; each starts at zero and adds in ascending k; slices are
//! folded left; then bias; then the epilogue rounds once. Row count, units and threads do not enter.
//! Differs by ISA: scalar multiplies and adds; AVX2 and NEON fuse; AVX-512 fuses (f16, f32) or uses `vdpbf16ps`, which adds two
//! products per step and flushes subnormals (bf16).

use std::ops::Range;

use lathe_numerics::Activation;
use lathe_numerics::contract::{PANEL, gemm_slices};

use crate::convert::Element;
use crate::error::{KernelError, at_least, product, span};
use crate::lanes::with_activation;
use crate::view::{float, same, with_float};
use crate::{Dst, IsaPath, Kernel, Src, lanes};

#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cases;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fma;
mod pack;
pub mod reference;
mod scalar;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tile;

pub(crate) use pack::packed_index;
pub use pack::{pack_panel, packed_len, padded_k, panel_bytes};
use tile::{Ahead, Kind, MAX_PANELS, MAX_ROWS, TileArgs, WIDE_ROWS};

/// What becomes of an accumulated row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out[m, n]` = the sum, rounded to the output dtype.
    Store,
    /// `out[m, n] = act(sum)` in f32, rounded once.
    Act(Activation),
    /// `out[m, cols] = act(gate) * up` in f32, rounded once. Weight rows are interleaved by 16: gate rows 0..16,
    /// up rows 0..16, gate rows 16..32, ...; each half is padded with zero rows to a multiple of 16. `n = 2 * cols`.
    Glu(Activation),
    /// As `Glu`, joined by `numerics::Gating::ClampedSwiglu`.
    ClampedSwiglu,
}

impl Epilogue {
    /// Columns of the output for a weight of `n` logical features.
    pub const fn columns(self, n: usize) -> usize {
        match self {
            Epilogue::Store | Epilogue::Act(_) => n,
            Epilogue::Glu(_) | Epilogue::ClampedSwiglu => n / 2,
        }
    }

    /// True if the weight's rows are gate and up in turns.
    pub const fn is_gated(self) -> bool {
        matches!(self, Epilogue::Glu(_) | Epilogue::ClampedSwiglu)
    }
}

/// Operands of a [`Gemm`].
#[derive(Clone, Copy)]
pub struct GemmArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `[m, k]`, row r at `r * x_stride`.
    pub x: Src<'a>,
    /// Elements between rows of x.
    pub x_stride: usize,
    /// Rows.
    pub m: usize,
    /// Logical features of the weight (`2 * cols` for `Glu`); its stored rows fix the K slices.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Packed weight, x's dtype, [`packed_len`] elements (`Glu`: of its padded rows, see [`stored_rows`]).
    pub weight: Src<'a>,
    /// f32, in stored row order: [`stored_rows`] long.
    pub bias: Option<&'a [f32]>,
    /// f32, bf16 or f16; row r at `r * out_stride`.
    pub out: Dst<'a>,
    /// Elements between rows of out.
    pub out_stride: usize,
    /// What is stored.
    pub epilogue: Epilogue,
}

/// Rows that a packed weight of `n` logical features holds, before padding to whole panels.
pub const fn stored_rows(n: usize, epilogue: Epilogue) -> usize {
    match epilogue {
        Epilogue::Store | Epilogue::Act(_) => n,
        Epilogue::Glu(_) | Epilogue::ClampedSwiglu => 2 * (n / 2).next_multiple_of(PANEL),
    }
}

/// Refuses gate and up of an odd number of features.
fn even(n: usize, epilogue: Epilogue) -> Result<(), KernelError> {
    if epilogue.is_gated() && n % 2 == 1 {
        let what = format!("glu of {n} features; gate and up need an even number");
        return Err(KernelError::Unsupported { kernel: "gemm", what });
    }
    Ok(())
}

/// A checked GEMM.
pub struct Gemm<'a> {
    args: GemmArgs<'a>,
    kind: Kind,
    shape: Shape,
    scattered: Option<Scattered<'a>>,
}

/// Rows that do not stand one after another: row `i` of the problem is row `at[i]` of out, and row `at[i] / share` of x.
#[derive(Clone, Copy)]
pub(crate) struct Scattered<'a> {
    /// One per row, not negative.
    pub at: &'a [i32],
    /// Rows of out in a row that have one row of x.
    pub share: usize,
}

/// How rows, panels and K are cut; a function of the problem's shape.
#[derive(Clone, Copy, Debug)]
struct Shape {
    panels: usize,
    slices: usize,
    slice_k: usize,
    row_blocks: usize,
    block_rows: usize,
    group: usize,
    groups: usize,
}

/// Rows whose packed x is kept while the weights stream past.
const BLOCK_ROWS: usize = 132;
/// Words of packed x per thread: beyond it fewer rows are kept, as they would fall out of the second-level cache.
const BLOCK_WORDS: usize = 512 * 1024;
/// Depth of one tile call: x of a tile stays in the first-level cache, two panels and the next two in the second.
const BLOCK_K: usize = 1024;
/// Panels per unit: 64 features for few rows, so that many threads find work; 128 features else.
const GROUP_FEW: usize = 4;
const GROUP_MANY: usize = 8;

impl Shape {
    fn of(kind: Kind, m: usize, stored_rows: usize, k: usize) -> Self {
        let max_rows = rows_per_block(kind, m.max(1), k);
        let row_blocks = m.div_ceil(max_rows);
        let group = if m <= MAX_ROWS { GROUP_FEW } else { GROUP_MANY };
        let panels = stored_rows.div_ceil(PANEL);
        let slices = gemm_slices(stored_rows, k);
        Shape {
            panels,
            slices,
            slice_k: k / slices,
            row_blocks,
            block_rows: if row_blocks == 0 { 0 } else { m.div_ceil(row_blocks) },
            group,
            groups: panels.div_ceil(group),
        }
    }
}

fn rows_per_block(kind: Kind, m: usize, k: usize) -> usize {
    let fits = BLOCK_WORDS / kind.row_words(k).max(1) / MAX_ROWS * MAX_ROWS;
    fits.clamp(MAX_ROWS, BLOCK_ROWS).min(m)
}

fn scratch_words(kind: Kind, m: usize, k: usize) -> usize {
    let rows = rows_per_block(kind, m, k);
    rows * kind.row_words(k) + 2 * rows * MAX_PANELS * PANEL
}

/// Upper bound of [`Kernel::scratch_len`] over all `m <= max_m`.
pub fn max_scratch_len(path: IsaPath, dtype: lathe_numerics::DType, max_m: usize, k: usize) -> usize {
    scratch_words(Kind::of(path, dtype, dtype), max_m, k)
}

/// Upper bound of [`max_scratch_len`] over every path, those that this machine lacks included: a plan is made for all.
pub fn scratch_bound(max_m: usize, k: usize) -> usize {
    let kinds = [Kind::Bf16Pairs, Kind::Bf16Wide, Kind::F16, Kind::F32];
    kinds.into_iter().map(|kind| scratch_words(kind, max_m, k)).max().unwrap_or(0)
}

impl<'a> Gemm<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` when a buffer is too short, a stride too small or a size zero or odd where it may not be; `Unsupported`
    /// for dtypes.
    pub fn new(args: GemmArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "gemm";
        let GemmArgs { m, n, k, .. } = args;
        float(NAME, args.x.dtype())?;
        float(NAME, args.out.dtype())?;
        same(NAME, "weight dtype", args.x.dtype(), args.weight.dtype())?;
        at_least(NAME, "n", 1, n)?;
        at_least(NAME, "k", 1, k)?;
        product(NAME, "n", &[n, 64])?;
        even(n, args.epilogue)?;
        let cols = args.epilogue.columns(n);
        let rows = stored_rows(n, args.epilogue);
        at_least(NAME, "x elements", span(NAME, "x stride", m, k, args.x_stride)?, args.x.len())?;
        at_least(NAME, "out elements", span(NAME, "out stride", m, cols, args.out_stride)?, args.out.len())?;
        at_least(NAME, "weight elements", packed_len(args.x.dtype(), rows, k)?, args.weight.len())?;
        if let Some(bias) = args.bias {
            at_least(NAME, "bias elements", rows, bias.len())?;
        }
        let kind = Kind::of(args.path, args.x.dtype(), args.weight.dtype());
        let shape = Shape::of(kind, m, rows, k);
        Ok(Gemm { args, kind, shape, scattered: None })
    }

    /// The same product with all of K in one sum, which gives other bits: for measuring what the contract's slices cost.
    #[doc(hidden)]
    pub fn in_one_sum(mut self) -> Self {
        (self.shape.slices, self.shape.slice_k) = (1, self.args.k);
        self
    }

    /// The same GEMM of other rows with a weight of the same shape.
    ///
    /// # Safety
    /// Rows of x and out that `rows` names exist, no row of out stands twice, and `weight` is as long as the checked one.
    pub(crate) unsafe fn of_rows(
        &self,
        rows: Scattered<'a>,
        weight: Src<'a>,
        bias: Option<&'a [f32]>,
    ) -> Self {
        let args = GemmArgs { m: rows.at.len(), weight, bias, ..self.args };
        let shape = Shape::of(self.kind, args.m, stored_rows(args.n, args.epilogue), args.k);
        Gemm { args, kind: self.kind, shape, scattered: Some(rows) }
    }

    /// Scratch of this GEMM with `m` rows.
    pub(crate) fn scratch_len_of(&self, m: usize) -> usize {
        scratch_words(self.kind, m, self.args.k)
    }

    /// Packs the rows of one row block, tile after tile.
    ///
    /// # Safety
    /// `out` holds `rows * row_words` words.
    unsafe fn pack_rows(&self, first: usize, rows: usize, out: *mut f32) {
        let words = self.kind.row_words(self.args.k);
        let a = &self.args;
        with_float!(a.x.dtype(), T => a.path.run(#[inline(always)] || {
            for (r0, n) in tiles(rows) {
                // SAFETY: the tile's first packed row.
                let out = unsafe { out.add(r0 * words) };
                // SAFETY: rows first..first + rows are within x, checked when built.
                unsafe {
                    match self.scattered {
                        None => {
                            let x = a.x.ptr::<T>().add((first + r0) * a.x_stride);
                            tile::pack_x(self.kind, x, a.x_stride, n, a.k, out);
                        }
                        Some(Scattered { at, share }) => {
                            for (r, at) in at[first + r0..][..n].iter().enumerate() {
                                let x = a.x.slice::<T>(*at as usize / share * a.x_stride, a.k);
                                tile::pack_row(self.kind, x, r, n, out);
                            }
                        }
                    }
                }
            }
        }));
    }

    /// Sums of `rows` packed rows and `np` panels from `p` into `total`: `[rows][np * 16]`.
    ///
    /// # Safety
    /// `x` was filled by `pack_rows`; `part` and `total` hold `rows * np * 16` words each.
    unsafe fn accumulate(
        &self,
        rows: usize,
        p: usize,
        np: usize,
        x: *const f32,
        part: *mut f32,
        total: *mut f32,
    ) {
        let Shape { slices, slice_k, .. } = self.shape;
        let (a, kind) = (&self.args, self.kind);
        let words = kind.row_words(a.k);
        let panel = panel_bytes(a.x.dtype(), a.k);
        for slice in 0..slices {
            for k0 in (0..slice_k).step_by(BLOCK_K) {
                let depth = BLOCK_K.min(slice_k - k0);
                let last = k0 + depth == slice_k;
                let step0 = (slice * slice_k + k0) / kind.k_per_step();
                let mut w = [a.weight.byte_ptr(); MAX_PANELS];
                for (i, w) in w.iter_mut().take(np).enumerate() {
                    // SAFETY: panel p + i exists and step0 is within it.
                    *w = unsafe { w.add((p + i) * panel + step0 * kind.w_bytes()) };
                }
                // What is read next: the depth after this one, else the next panels.
                let (p, step) = match step0 + depth.div_ceil(kind.k_per_step()) {
                    step if slice * slice_k + k0 + depth < a.k => (p, step),
                    _ => (p + np, 0),
                };
                let next = |i| a.weight.byte_ptr().wrapping_add((p + i) * panel + step * kind.w_bytes());
                let count = rows.div_ceil(MAX_ROWS);
                let stride = kind.w_bytes().div_ceil(count);
                for (t, (r0, n)) in tiles(rows).enumerate() {
                    let steps = depth.div_ceil(kind.k_per_step());
                    let from = |i| next(i).wrapping_add(t * steps * stride);
                    let ahead = (count > 1).then(|| Ahead { at: [0, 1, 2, 3].map(from), stride });
                    // SAFETY: offsets within the packed rows and the accumulator.
                    unsafe {
                        let args = TileArgs {
                            x: x.add(r0 * words + step0 * kind.x_words() * n),
                            w,
                            steps,
                            from: (k0 > 0).then_some(part.add(r0 * np * PANEL).cast_const()),
                            to: if last { total } else { part }.add(r0 * np * PANEL),
                            to_stride: np * PANEL,
                            add: last && slice > 0,
                            ahead,
                        };
                        tile::run(a.path, kind, n, np, &args);
                    }
                }
            }
        }
    }

    /// Rounds and stores what panels of gate and up in turns, from `p`, join to.
    ///
    /// # Safety
    /// `row` is where a row of the output begins; nobody else touches these elements.
    #[inline(always)]
    unsafe fn join<T: Element>(&self, row: usize, p: usize, sums: &[f32], join: impl Fn(f32, f32) -> f32) {
        let a = &self.args;
        for (i, pair) in sums.chunks_exact(2 * PANEL).enumerate() {
            let (gate, up) = pair.split_at(PANEL);
            let col = (p / 2 + i) * PANEL;
            // SAFETY: columns below n / 2 of a checked row; the caller owns them.
            let out = unsafe { a.out.slice::<T>(row + col, PANEL.min(a.n / 2 - col)) };
            for (o, (g, u)) in out.iter_mut().zip(gate.iter().zip(up)) {
                *o = T::from_f32(join(*g, *u));
            }
        }
    }

    /// Rounds and stores the sums of `np` panels from `p` for rows `first..first + rows`.
    ///
    /// # Safety
    /// `sums` holds `rows * np * 16` words; nobody else touches these output elements.
    #[inline(always)]
    unsafe fn store<T: Element>(&self, first: usize, rows: usize, p: usize, np: usize, sums: *mut f32) {
        let a = &self.args;
        for r in 0..rows {
            // SAFETY: row r of the sums.
            let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(r * np * PANEL), np * PANEL) };
            if let Some(bias) = a.bias {
                let bias = &bias[p * PANEL..];
                sums.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
            }
            let at = self.scattered.map_or(first + r, |rows| rows.at[first + r] as usize);
            let row = at * a.out_stride;
            match a.epilogue {
                Epilogue::Store => {
                    let len = (np * PANEL).min(a.n - p * PANEL);
                    // SAFETY: columns below n of a checked row; the caller owns them.
                    let out = unsafe { a.out.slice::<T>(row + p * PANEL, len) };
                    out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = T::from_f32(*s));
                }
                Epilogue::Act(act) => {
                    let len = (np * PANEL).min(a.n - p * PANEL);
                    // SAFETY: as above.
                    let out = unsafe { a.out.slice::<T>(row + p * PANEL, len) };
                    with_activation!(act, f => {
                        out.iter_mut().zip(&*sums).for_each(|(o, s)| *o = T::from_f32(f(*s)));
                    });
                }
                Epilogue::Glu(act) => with_activation!(act, f => {
                    // SAFETY: as above, columns below n / 2.
                    unsafe { self.join::<T>(row, p, sums, |gate, up| f(gate) * up) }
                }),
                // SAFETY: as above.
                Epilogue::ClampedSwiglu => unsafe { self.join::<T>(row, p, sums, lanes::clamped_swiglu) },
            }
        }
    }
}

/// Row tiles of a block: as few as possible, sizes differing by one at most.
fn tiles(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(MAX_ROWS).max(1);
    let (base, extra) = (rows / count, rows % count);
    (0..count).map(move |t| (t * base + t.min(extra), base + usize::from(t < extra))).filter(|t| t.1 > 0)
}

impl Kernel for Gemm<'_> {
    fn units(&self) -> usize {
        self.shape.row_blocks * self.shape.groups
    }

    fn scratch_len(&self) -> usize {
        scratch_words(self.kind, self.args.m, self.args.k)
    }

    unsafe fn run(&self, units: Range<usize>, scratch: &mut [f32]) {
        // SAFETY: passed on.
        unsafe { self.run_all(&mut std::iter::once(units), scratch) }
    }

    /// A row block is packed once for all of its units.
    unsafe fn run_all(&self, units: &mut dyn Iterator<Item = Range<usize>>, scratch: &mut [f32]) {
        assert!(scratch.len() >= self.scratch_len());
        let Shape { panels, block_rows, group, groups, .. } = self.shape;
        let (x, sums) = scratch.split_at_mut(block_rows * self.kind.row_words(self.args.k));
        let (part, total) = sums.split_at_mut(block_rows * MAX_PANELS * PANEL);
        let mut packed = usize::MAX;
        for unit in units.flatten() {
            assert!(unit < self.units());
            let (block, g) = (unit / groups, unit % groups);
            let first = block * block_rows;
            let rows = block_rows.min(self.args.m.saturating_sub(first));
            if rows == 0 {
                continue;
            }
            if packed != block {
                // SAFETY: x holds block_rows packed rows.
                unsafe { self.pack_rows(first, rows, x.as_mut_ptr()) };
                packed = block;
            }
            let widest = if rows <= WIDE_ROWS { MAX_PANELS } else { 2 };
            let end = ((g + 1) * group).min(panels);
            let mut p = g * group;
            while p < end {
                let np = widest.min(end - p);
                // SAFETY: scratch was split by these sizes; the unit owns its rows and panels.
                unsafe {
                    let sums = total.as_mut_ptr();
                    self.accumulate(rows, p, np, x.as_ptr(), part.as_mut_ptr(), sums);
                    with_float!(self.args.out.dtype(), T => self.args.path.run(#[inline(always)] || {
                        self.store::<T>(first, rows, p, np, sums);
                    }));
                }
                p += np;
            }
        }
    }
}
