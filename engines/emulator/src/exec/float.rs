//! Floating point as the device does it: 16-bit formats, roundings, approximations.

/// A half or bfloat value, held as the f32 that it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct F16(pub f32);
/// See [`F16`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BF16(pub f32);
/// Two values of a register, lower half first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct F16x2(pub f32, pub f32);
/// Two values of a register, lower half first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BF16x2(pub f32, pub f32);

/// bf16 bits to f32.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To bf16, to nearest even; NaN becomes 0x7fff as on the device.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fff } else { rounded }
}

/// f16 bits to f32.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let h = u32::from(bits);
    let magnitude = (h & 0x7fff) << 13;
    // 2^112 moves the exponent's bias; subnormals come out normal.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = magnitude | 0x7f80_0000;
    let value = if h & 0x7c00 == 0x7c00 { special } else { scaled.to_bits() };
    f32::from_bits(value | (h & 0x8000) << 16)
}

/// To f16, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    // Below 2^-14: adding 2^-1 * 2^k with the right k lets the adder round to the subnormal grid.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000) as u16;
    let normal = (magnitude.wrapping_add(0xc800_0fff).wrapping_add(magnitude >> 13 & 1) >> 13) as u16;
    let value = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        small
    } else {
        normal
    };
    sign | value
}

/// To bf16, toward zero.
#[inline(always)]
pub fn f32_to_bf16_rz(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { (x.to_bits() >> 16) as u16 }
}

/// To f16, toward zero.
#[inline(always)]
pub fn f32_to_f16_rz(x: f32) -> u16 {
    let nearest = f32_to_f16(x);
    if x.is_infinite() || x.is_nan() {
        return nearest;
    }
    // One step back where rounding went away from zero.
    if f16_to_f32(nearest).abs() > x.abs() { nearest - 1 } else { nearest }
}

/// `a * b + c` rounded to odd in f64, so that one more rounding to 16 bits gives the exact result's rounding.
#[inline(always)]
pub fn fma_odd(a: f32, b: f32, c: f32) -> f64 {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let s = p + c;
    if !s.is_finite() {
        return s;
    }
    let bb = s - p;
    let error = (p - (s - bb)) + (c - bb);
    if error == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    let up = (error > 0.0) == (s > 0.0);
    f64::from_bits(if up { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// f64 to f32 rounded to odd.
#[inline(always)]
pub fn f64_to_f32_odd(x: f64) -> f32 {
    let y = x as f32;
    if !y.is_finite() || f64::from(y) == x || y.to_bits() & 1 == 1 {
        return y;
    }
    let up = f64::from(y).abs() < x.abs();
    f32::from_bits(if up { y.to_bits() + 1 } else { y.to_bits() - 1 })
}

/// Subnormals to zero, the sign stays.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// The smaller; a number beats NaN, -0 is smaller than +0.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() && b.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    let smaller = if a < b || (a == b && a.is_sign_negative()) { a } else { b };
    if b.is_nan() { a } else { smaller }
}

/// The larger; see [`min`].
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() && b.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    let larger = if a > b || (a == b && b.is_sign_negative()) { a } else { b };
    if b.is_nan() { a } else { larger }
}

/// The smaller; NaN wins.
#[inline(always)]
pub fn min_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { min(a, b) }
}

/// The larger; NaN wins.
#[inline(always)]
pub fn max_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::from_bits(0x7fff_ffff) } else { max(a, b) }
}

/// As [`min`], for f64.
#[inline(always)]
pub fn min64(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

/// As [`max`], for f64.
#[inline(always)]
pub fn max64(a: f64, b: f64) -> f64 {
    if a.is_nan() || b > a || (a == b && a.is_sign_negative()) { b } else { a }
}

/// Clamped to 0..=1, NaN to 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// 2^x within 2 units in the last place: a polynomial over -1/2..=1/2.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let clamped = x.clamp(-152.0, 129.0);
    // Adding 1.5 * 2^23 rounds to an integer in the low bits.
    let shifted = clamped + 12_582_912.0;
    let n = shifted.to_bits().wrapping_sub(0x4b40_0000) as i32;
    let f = clamped - (shifted - 12_582_912.0);
    let mut p = 1.525_273_4e-5_f32;
    p = p.mul_add(f, 1.540_353e-4);
    p = p.mul_add(f, 1.333_355_8e-3);
    p = p.mul_add(f, 9.618_129e-3);
    p = p.mul_add(f, 5.550_411e-2);
    p = p.mul_add(f, 2.402_265e-1);
    p = p.mul_add(f, 6.931_472e-1);
    p = p.mul_add(f, 1.0);
    // In two factors, so that both ends of the range are reached.
    let half = n >> 1;
    let a = f32::from_bits(((half + 127) as u32) << 23);
    let b = f32::from_bits(((n - half + 127) as u32) << 23);
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { p * a * b }
}

macro_rules! sixteen {
    ($one:ident, $two:ident, $from:ident, $to:ident) => {
        impl super::registers::Lane for $one {
            type Raw = u32;
            #[inline(always)]
            fn of(raw: u32) -> Self {
                $one($from(raw as u16))
            }
            #[inline(always)]
            fn raw(self) -> u32 {
                u32::from($to(self.0))
            }
        }
        impl super::registers::Lane for $two {
            type Raw = u32;
            #[inline(always)]
            fn of(raw: u32) -> Self {
                $two($from(raw as u16), $from((raw >> 16) as u16))
            }
            #[inline(always)]
            fn raw(self) -> u32 {
                u32::from($to(self.0)) | u32::from($to(self.1)) << 16
            }
        }
        impl $two {
            /// On both halves.
            #[inline(always)]
            pub fn map(self, f: impl Fn(f32) -> f32) -> Self {
                $two(f(self.0), f(self.1))
            }
            /// On both halves.
            #[inline(always)]
            pub fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
                $two(f(self.0, other.0), f(self.1, other.1))
            }
            /// `self * b + c`, rounded once.
            #[inline(always)]
            pub fn fma(self, b: Self, c: Self) -> Self {
                $two(fma16(self.0, b.0, c.0), fma16(self.1, b.1, c.1))
            }
        }
    };
}
sixteen!(F16, F16x2, f16_to_f32, f32_to_f16);
sixteen!(BF16, BF16x2, bf16_to_f32, f32_to_bf16);

/// `a * b + c`, ready for one rounding to 16 bits.
#[inline(never)]
pub fn fma16(a: f32, b: f32, c: f32) -> f32 {
    f64_to_f32_odd(fma_odd(a, b, c))
}
