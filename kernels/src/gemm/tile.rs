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

    /// Bytes of a panel per step.
    pub(crate) fn w_bytes(self) -> usize {
        match self {
            Kind::F16 => 32,
            _ => 64,
        }
    }
}

/// A tile call: `x` is `[steps][x_words][rows]` words, `w[p]` is panel p at its first step, `acc` is
/// `[rows][panels][16]` f32, read first when `resume`, always written.
pub(crate) struct TileArgs {
    pub x: *const f32,
    pub w: [*const u8; MAX_PANELS],
    pub steps: usize,
    pub acc: *mut f32,
    pub resume: bool,
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
        // SAFETY: passed on.
        _ => unsafe { super::scalar::run(kind, rows, panels, args) },
    }
}

/// Packs `rows` rows of x (`x[r * stride + c]`, `c < k`) to the form that tiles of `kind` read: `[steps][words][rows]`.
/// An odd last k of a pair is zero. `T` is the element type of x.
///
/// # Safety
/// The rows are readable; `out` holds `steps * words * rows` words.
#[inline(always)]
pub(crate) unsafe fn pack_x<T: crate::Element>(
    kind: Kind,
    x: *const T,
    stride: usize,
    rows: usize,
    k: usize,
    out: *mut f32,
) {
    // 16 words (a cache line of pairs) at a time per row: rows a power of two apart share few cache sets.
    const BLOCK: usize = 32;
    let full = k - k % BLOCK;
    for c0 in (0..full).step_by(BLOCK) {
        for r in 0..rows {
            // SAFETY: c0 + BLOCK <= k.
            unsafe {
                let src = x.add(r * stride + c0);
                if kind == Kind::Bf16Pairs {
                    let dst = out.cast::<u32>().add((c0 / 2) * rows + r);
                    let src = src.cast::<u32>();
                    for j in 0..BLOCK / 2 {
                        *dst.add(j * rows) = src.add(j).read_unaligned();
                    }
                } else {
                    let dst = out.add(c0 * rows + r);
                    for j in 0..BLOCK {
                        *dst.add(j * rows) = (*src.add(j)).to_f32();
                    }
                }
            }
        }
    }
    let end = k.next_multiple_of(kind.k_per_step());
    for c in full..end {
        for r in 0..rows {
            // SAFETY: reads stay below k; writes below the padded k.
            unsafe {
                if kind == Kind::Bf16Pairs {
                    let v = if c < k { *x.add(r * stride + c).cast::<u16>() } else { 0 };
                    *out.cast::<u16>().add(((c / 2) * rows + r) * 2 + c % 2) = v;
                } else {
                    *out.add(c * rows + r) = if c < k { (*x.add(r * stride + c)).to_f32() } else { 0.0 };
                }
            }
        }
    }
}
