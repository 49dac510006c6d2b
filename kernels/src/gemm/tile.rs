//! Micro-kernels: R packed rows x P panels over a run of k, f32 accumulators. Every shape of one kind runs the same
//! chain per element: ascending k, one step at a time.

use lathe_numerics::DType;

use crate::{Isa, IsaPath};

/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 12;
/// Most panels of a tile.
pub(crate) const MAX_PANELS: usize = 4;
/// Rows up to which a tile may have `MAX_PANELS` panels; above, 2.
pub(crate) const WIDE_ROWS: usize = 6;

/// Words of packed x that stand together per row: a cache line.
pub(crate) const LINE: usize = 16;

/// Operand types of a tile. `steps` counts pairs of k for bf16 panels and single k otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// x as bf16 pairs, panel bf16 pairs, `vdpbf16ps`.
    Bf16Pairs,
    /// x as f32, panel bf16 pairs.
    Bf16Wide,
    /// x as f32, panel f16.
    F16,
    /// x as f32, panel f32.
    F32,
}

impl Kind {
    /// The kind for operands of these types on this path.
    pub(crate) fn of(path: IsaPath, x: DType, w: DType) -> Self {
        match (w, x, path.isa()) {
            (DType::BF16, DType::BF16, Isa::Avx512) => Kind::Bf16Pairs,
            (DType::BF16, ..) => Kind::Bf16Wide,
            (DType::F16, ..) => Kind::F16,
            _ => Kind::F32,
        }
    }

    /// k per step.
    pub(crate) fn k_per_step(self) -> usize {
        match self {
            Kind::Bf16Pairs | Kind::Bf16Wide => 2,
            Kind::F16 | Kind::F32 => 1,
        }
    }

    /// f32-sized words of packed x per row and step.
    pub(crate) fn x_words(self) -> usize {
        match self {
            Kind::Bf16Wide => 2,
            _ => 1,
        }
    }

    /// Words of a packed row of depth `k`, whole cache lines.
    pub(crate) fn row_words(self, k: usize) -> usize {
        (k.div_ceil(self.k_per_step()) * self.x_words()).next_multiple_of(LINE)
    }

    /// Bytes of a panel per step.
    pub(crate) fn w_bytes(self) -> usize {
        match self {
            Kind::F16 => 32,
            _ => 64,
        }
    }
}

/// A tile call: `x` is `[words / 16][rows][16]` words, `x_words` per step in ascending order; `w[p]` is panel p at its first
/// step. Sums begin with those at `from`, `[rows][panels][16]` f32, else with zero, and go to `to`, added to what is there
/// when `add`; rows are `to_stride` apart there.
pub(crate) struct TileArgs {
    pub x: *const f32,
    pub w: [*const u8; MAX_PANELS],
    pub steps: usize,
    pub from: Option<*const f32>,
    pub to: *mut f32,
    pub to_stride: usize,
    pub add: bool,
    pub ahead: Option<Ahead>,
}

/// What is read next, a hint: at each step a tile asks memory for a line of each of these streams, which replace
/// `w` in a later call.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// Where this tile begins in the stream of each panel; need not be readable.
    pub at: [*const u8; MAX_PANELS],
    /// Bytes from step to step: less than a line where several tiles share the work.
    pub stride: usize,
}

/// Runs one tile.
///
/// # Safety
/// `1 <= rows <= MAX_ROWS`, `1 <= panels <= MAX_PANELS` (2 above `WIDE_ROWS` rows), and the pointers of `args` cover
/// what its docs say. `path` is proof of its instructions.
pub(crate) unsafe fn run(path: IsaPath, kind: Kind, rows: usize, panels: usize, args: &TileArgs) {
    match path.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on.
        Isa::Avx512 => unsafe { super::avx512::run(kind, rows, panels, args) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on.
        Isa::Avx2 => unsafe { super::fma::run::<crate::avx2::Registers>(kind, rows, panels, args) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: passed on.
        Isa::Neon => unsafe { super::fma::run::<crate::neon::Registers>(kind, rows, panels, args) },
        // SAFETY: passed on.
        _ => unsafe { super::scalar::run(kind, rows, panels, args) },
    }
}

/// Packs `rows` rows of x (`x[r * stride + c]`, `c < k`) to the form that tiles of `kind` read: `[row_words / 16][rows][16]`
/// words, the rest of the last line zero. Lines of one step stand together: rows a power of two apart would share few
/// cache sets.
///
/// # Safety
/// The rows are readable; `out` holds `row_words(k) * rows` words.
#[inline(always)]
pub(crate) unsafe fn pack_x<T: crate::Element>(
    kind: Kind,
    x: *const T,
    stride: usize,
    rows: usize,
    k: usize,
    out: *mut f32,
) {
    for r in 0..rows {
        // SAFETY: row r of x and of the packed tile.
        unsafe { pack_row(kind, std::slice::from_raw_parts(x.add(r * stride), k), r, rows, out) };
    }
}

/// Row `r` of `rows` of a packed tile.
///
/// # Safety
/// `out` holds `row_words(k) * rows` words; `kind` is `Bf16Pairs` only for bf16.
#[inline(always)]
pub(crate) unsafe fn pack_row<T: crate::Element>(kind: Kind, x: &[T], r: usize, rows: usize, out: *mut f32) {
    // SAFETY: line b of row r; the kind says how many elements fill a line.
    unsafe {
        if kind == Kind::Bf16Pairs {
            let x = std::slice::from_raw_parts(x.as_ptr().cast::<u16>(), x.len());
            let (lines, tail) = x.as_chunks::<{ 2 * LINE }>();
            let out = out.cast::<[u16; 2 * LINE]>();
            for (b, line) in lines.iter().enumerate() {
                *out.add(b * rows + r) = *line;
            }
            if !tail.is_empty() {
                let mut line = [0; 2 * LINE];
                line[..tail.len()].copy_from_slice(tail);
                *out.add(lines.len() * rows + r) = line;
            }
        } else {
            let (lines, tail) = x.as_chunks::<LINE>();
            let out = out.cast::<[f32; LINE]>();
            for (b, line) in lines.iter().enumerate() {
                // A loop: `map` would be a call, compiled for every machine.
                let to = &mut *out.add(b * rows + r);
                for l in 0..LINE {
                    to[l] = line[l].to_f32();
                }
            }
            if !tail.is_empty() {
                let mut line = [0.0; LINE];
                line.iter_mut().zip(tail).for_each(|(l, v)| *l = v.to_f32());
                *out.add(lines.len() * rows + r) = line;
            }
        }
    }
}
