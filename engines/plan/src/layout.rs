//! Stored bytes of a weight: a function of layout, element type and extents alone.

use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;

use crate::schema::Layout;

impl Layout {
    /// Bytes that a weight of `shape` (`[n]` or `[n, k]`, no extent zero) takes, padding included. `None` where the
    /// layout does not hold such a weight or the size does not fit 64 bits.
    pub fn bytes(self, dtype: DType, shape: &[u64]) -> Option<u64> {
        if shape.is_empty() || shape.len() > 2 || shape.contains(&0) {
            return None;
        }
        let size = dtype.size() as u64;
        match self {
            Layout::RowMajor => shape.iter().try_fold(size, |bytes, extent| bytes.checked_mul(*extent)),
            Layout::Panel16 => {
                let [n, k] = *shape else { return None };
                let panels = n.div_ceil(PANEL as u64);
                let depth = match dtype {
                    DType::BF16 => k.div_ceil(2).checked_mul(2)?,
                    DType::F16 | DType::F32 => k,
                    DType::I32 | DType::U32 => return None,
                };
                panels.checked_mul(depth)?.checked_mul(PANEL as u64)?.checked_mul(size)
            }
            Layout::Mma16 => {
                let ([n, k], 2) = (<[u64; 2]>::try_from(shape).ok()?, size) else { return None };
                n.div_ceil(16).checked_mul(k.div_ceil(16))?.checked_mul(16 * 16 * size)
            }
        }
    }

    /// Name as it stands in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::RowMajor => "row_major",
            Layout::Panel16 => "panel16",
            Layout::Mma16 => "mma16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        use DType::*;
        use Layout::*;
        for (layout, dtype, shape, bytes) in [
            (RowMajor, BF16, &[5u64][..], Some(10)),
            (RowMajor, F32, &[3, 5], Some(60)),
            (RowMajor, I32, &[3, 5], Some(60)),
            (Panel16, BF16, &[17, 5], Some(2 * 3 * 16 * 2 * 2)),
            (Panel16, F16, &[17, 5], Some(2 * 5 * 16 * 2)),
            (Panel16, F32, &[16, 5], Some(5 * 16 * 4)),
            (Panel16, I32, &[16, 5], None),
            (Panel16, F32, &[16], None),
            (RowMajor, F32, &[], None),
            (RowMajor, F32, &[1, 0], None),
            (RowMajor, F32, &[1, 1, 1], None),
            (RowMajor, F32, &[u64::MAX, 2], None),
            (Mma16, BF16, &[17, 33], Some(2 * 3 * 512)),
            (Mma16, F16, &[1, 1], Some(512)),
            (Mma16, F32, &[16, 16], None),
            (Mma16, BF16, &[16], None),
            (Panel16, BF16, &[u64::MAX, u64::MAX], None),
        ] {
            assert_eq!(layout.bytes(dtype, shape), bytes, "{layout:?} {dtype} {shape:?}");
        }
    }
}
