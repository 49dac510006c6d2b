//! Conversions between f32 and the 2-byte types without branches, so that loops over them vectorise on any ISA.

use half::{bf16, f16};
use lathe_numerics::DType;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A float element type of tensors.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Its tag.
    const DTYPE: DType;
    /// Exact widening.
    fn to_f32(self) -> f32;
    /// One rounding to nearest even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16_bits_to_f32(self.to_bits())
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_bits(f32_to_bf16_bits(x))
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16_bits_to_f32(self.to_bits())
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_bits(f32_to_f16_bits(x))
    }
}

/// Exact widening of bfloat16 bits.
#[inline(always)]
pub fn bf16_bits_to_f32(b: u16) -> f32 {
    f32::from_bits(u32::from(b) << 16)
}

/// Nearest even; NaN stays a (quiet) NaN.
#[inline(always)]
pub fn f32_to_bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if x.is_nan() { nan } else { rounded }) as u16
}

/// Exact widening of IEEE half bits: rebias the exponent by an add, renormalise subnormals by a subtraction.
#[inline(always)]
pub fn f16_bits_to_f32(h: u16) -> f32 {
    const EXP: u32 = 0x7c00 << 13;
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff) << 13;
    let exp = magnitude & EXP;
    let normal = magnitude + ((127 - 15) << 23);
    let special = normal + ((128 - 16) << 23);
    let subnormal = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let bits = if exp == EXP { special } else { normal };
    let bits = if exp == 0 { subnormal } else { bits };
    f32::from_bits(bits | sign)
}

/// Nearest even; overflow to infinity; NaN stays a quiet NaN.
#[inline(always)]
pub fn f32_to_f16_bits(x: f32) -> u16 {
    const F16_OVERFLOW: u32 = (127 + 16) << 23;
    const SMALLEST_NORMAL: u32 = 113 << 23;
    const MAGIC: u32 = ((127 - 15) + (23 - 10) + 1) << 23;
    let sign = x.to_bits() & 0x8000_0000;
    let f = x.to_bits() ^ sign;
    let nan = 0x7e00 | ((f >> 13) & 0x3ff);
    let big = if f > 0x7f80_0000 { nan } else { 0x7c00 };
    let small = (f32::from_bits(f) + f32::from_bits(MAGIC)).to_bits().wrapping_sub(MAGIC);
    let odd = (f >> 13) & 1;
    let normal = f.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
    let o = if f < SMALLEST_NORMAL { small } else { normal };
    let o = if f >= F16_OVERFLOW { big } else { o };
    (o | (sign >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_all_bits() {
        for b in 0..=u16::MAX {
            let (want, got) = (f16::from_bits(b).to_f32(), f16_bits_to_f32(b));
            assert!(want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()), "f16 {b:#x}");
            let (want, got) = (bf16::from_bits(b).to_f32(), bf16_bits_to_f32(b));
            assert!(want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()), "bf16 {b:#x}");
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        // Every half value, its neighbours in f32 and the midpoints around it.
        let check = |x: f32| {
            let (want, got) = (f16::from_f32_const(x), f16::from_bits(f32_to_f16_bits(x)));
            assert!(want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()), "f16 of {x:e}");
            let (want, got) = (bf16::from_f32_const(x), bf16::from_bits(f32_to_bf16_bits(x)));
            assert!(want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()), "bf16 of {x:e}");
        };
        for b in 0..=u16::MAX {
            for base in [f16::from_bits(b).to_f32().to_bits(), u32::from(b) << 16] {
                for d in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, u32::MAX] {
                    check(f32::from_bits(base.wrapping_add(d)));
                }
            }
        }
    }
}
