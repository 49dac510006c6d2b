//! What every lane computes on its own: one table, a line per operation.

use std::hint::black_box;

use super::float::{self, BF16, BF16x2, F16, F16x2};
use super::registers::{Bits, Lane, Out, Reg, Registers, Rows};
use crate::monitor::LANES;

/// Lanes that are computed side by side. The number of chunks is hidden from the compiler: it would unroll all of them,
/// and the table would be hundreds of kilobytes of code.
const CHUNK: usize = 8;

#[inline(always)]
fn map1<A: Lane, D: Lane>(rows: &Rows, out: &mut Out, s: [Reg; 3], f: impl Fn(A) -> D) -> bool {
    let a = A::Raw::read(rows, s[0]).as_chunks::<CHUNK>().0;
    let r = D::Raw::out(out).as_chunks_mut::<CHUNK>().0;
    for n in 0..black_box(LANES / CHUNK) {
        let mut t = [D::Raw::default(); CHUNK];
        for i in 0..CHUNK {
            t[i] = f(A::of(a[n][i])).raw();
        }
        r[n] = t;
    }
    D::Raw::WIDE
}

#[inline(always)]
fn map2<A: Lane, B: Lane, D: Lane>(rows: &Rows, out: &mut Out, s: [Reg; 3], f: impl Fn(A, B) -> D) -> bool {
    let a = A::Raw::read(rows, s[0]).as_chunks::<CHUNK>().0;
    let b = B::Raw::read(rows, s[1]).as_chunks::<CHUNK>().0;
    let r = D::Raw::out(out).as_chunks_mut::<CHUNK>().0;
    for n in 0..black_box(LANES / CHUNK) {
        let mut t = [D::Raw::default(); CHUNK];
        for i in 0..CHUNK {
            t[i] = f(A::of(a[n][i]), B::of(b[n][i])).raw();
        }
        r[n] = t;
    }
    D::Raw::WIDE
}

#[inline(always)]
fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    rows: &Rows,
    out: &mut Out,
    s: [Reg; 3],
    f: impl Fn(A, B, C) -> D,
) -> bool {
    let a = A::Raw::read(rows, s[0]).as_chunks::<CHUNK>().0;
    let b = B::Raw::read(rows, s[1]).as_chunks::<CHUNK>().0;
    let c = C::Raw::read(rows, s[2]).as_chunks::<CHUNK>().0;
    let r = D::Raw::out(out).as_chunks_mut::<CHUNK>().0;
    for n in 0..black_box(LANES / CHUNK) {
        let mut t = [D::Raw::default(); CHUNK];
        for i in 0..CHUNK {
            t[i] = f(A::of(a[n][i]), B::of(b[n][i]), C::of(c[n][i])).raw();
        }
        r[n] = t;
    }
    D::Raw::WIDE
}

macro_rules! lanes {
    ($r:ident $s:ident; $a:ident: $ta:ty => $o:ty; $e:expr) => {
        map1(&$r.rows, &mut $r.out, $s, |$a: $ta| -> $o { $e })
    };
    ($r:ident $s:ident; $a:ident: $ta:ty, $b:ident: $tb:ty => $o:ty; $e:expr) => {
        map2(&$r.rows, &mut $r.out, $s, |$a: $ta, $b: $tb| -> $o { $e })
    };
    ($r:ident $s:ident; $a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty => $o:ty; $e:expr) => {
        map3(&$r.rows, &mut $r.out, $s, |$a: $ta, $b: $tb, $c: $tc| -> $o { $e })
    };
}

macro_rules! table {
    ($($name:ident ($($arg:ident: $ty:ty),+) -> $out:ty { $e:expr })*) => {
        /// An operation on the lanes of one to three registers; the names are PTX's, types last.
        #[allow(missing_docs, reason = "the table says it")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Alu { $($name),* }

        /// `d = op(s)` in the lanes of `mask`.
        #[inline(always)]
        fn apply_any(op: Alu, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
            let wide = match op {
                $(Alu::$name => lanes!(regs s; $($arg: $ty),+ => $out; $e),)*
            };
            regs.take(d, wide, mask);
        }
    };
}

table! {
    MovB32(a: u32) -> u32 { a }
    MovB64(a: u64) -> u64 { a }
    // Halves and pairs.
    LowB32(a: u32) -> u32 { a & 0xffff }
    HighB32(a: u32) -> u32 { a >> 16 }
    LowB64(a: u64) -> u32 { a as u32 }
    HighB64(a: u64) -> u32 { (a >> 32) as u32 }
    Pack16(a: u32, b: u32) -> u32 { (a & 0xffff) | b << 16 }
    Pack32(a: u32, b: u32) -> u64 { u64::from(a) | u64::from(b) << 32 }
    // Integers.
    AddB16(a: u16, b: u16) -> u16 { a.wrapping_add(b) }
    AddB32(a: u32, b: u32) -> u32 { a.wrapping_add(b) }
    AddB64(a: u64, b: u64) -> u64 { a.wrapping_add(b) }
    AddSatS32(a: i32, b: i32) -> i32 { a.saturating_add(b) }
    SubB16(a: u16, b: u16) -> u16 { a.wrapping_sub(b) }
    SubB32(a: u32, b: u32) -> u32 { a.wrapping_sub(b) }
    SubB64(a: u64, b: u64) -> u64 { a.wrapping_sub(b) }
    SubSatS32(a: i32, b: i32) -> i32 { a.saturating_sub(b) }
    MulB16(a: u16, b: u16) -> u16 { a.wrapping_mul(b) }
    MulB32(a: u32, b: u32) -> u32 { a.wrapping_mul(b) }
    MulB64(a: u64, b: u64) -> u64 { a.wrapping_mul(b) }
    MulHiU16(a: u16, b: u16) -> u16 { ((u32::from(a) * u32::from(b)) >> 16) as u16 }
    MulHiS16(a: i16, b: i16) -> i16 { ((i32::from(a) * i32::from(b)) >> 16) as i16 }
    MulHiU32(a: u32, b: u32) -> u32 { ((u64::from(a) * u64::from(b)) >> 32) as u32 }
    MulHiS32(a: i32, b: i32) -> i32 { ((i64::from(a) * i64::from(b)) >> 32) as i32 }
    MulHiU64(a: u64, b: u64) -> u64 { ((u128::from(a) * u128::from(b)) >> 64) as u64 }
    MulHiS64(a: i64, b: i64) -> i64 { ((i128::from(a) * i128::from(b)) >> 64) as i64 }
    MulWideU16(a: u16, b: u16) -> u32 { u32::from(a) * u32::from(b) }
    MulWideS16(a: i16, b: i16) -> i32 { i32::from(a) * i32::from(b) }
    MulWideU32(a: u32, b: u32) -> u64 { u64::from(a) * u64::from(b) }
    MulWideS32(a: i32, b: i32) -> i64 { i64::from(a) * i64::from(b) }
    MadB16(a: u16, b: u16, c: u16) -> u16 { a.wrapping_mul(b).wrapping_add(c) }
    MadB32(a: u32, b: u32, c: u32) -> u32 { a.wrapping_mul(b).wrapping_add(c) }
    MadB64(a: u64, b: u64, c: u64) -> u64 { a.wrapping_mul(b).wrapping_add(c) }
    MadHiU32(a: u32, b: u32, c: u32) -> u32 { (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c) }
    MadHiS32(a: i32, b: i32, c: i32) -> i32 { (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c) }
    MadWideU16(a: u16, b: u16, c: u32) -> u32 { (u32::from(a) * u32::from(b)).wrapping_add(c) }
    MadWideS16(a: i16, b: i16, c: i32) -> i32 { (i32::from(a) * i32::from(b)).wrapping_add(c) }
    MadWideU32(a: u32, b: u32, c: u64) -> u64 { (u64::from(a) * u64::from(b)).wrapping_add(c) }
    MadWideS32(a: i32, b: i32, c: i64) -> i64 { (i64::from(a) * i64::from(b)).wrapping_add(c) }
    Mul24U32(a: u32, b: u32) -> u32 { (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff) }
    Mul24S32(a: i32, b: i32) -> i32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) }
    // Division by zero: what the device's own sequences give.
    DivU16(a: u16, b: u16) -> u16 { a.checked_div(b).unwrap_or(u16::MAX) }
    DivS16(a: i16, b: i16) -> i16 { if b == 0 { -1 } else { a.wrapping_div(b) } }
    DivU32(a: u32, b: u32) -> u32 { a.checked_div(b).unwrap_or(u32::MAX) }
    DivS32(a: i32, b: i32) -> i32 { if b == 0 { -1 } else { a.wrapping_div(b) } }
    DivU64(a: u64, b: u64) -> u64 { a.checked_div(b).unwrap_or(u64::MAX) }
    DivS64(a: i64, b: i64) -> i64 { if b == 0 { -1 } else { a.wrapping_div(b) } }
    RemU16(a: u16, b: u16) -> u16 { a.checked_rem(b).unwrap_or(a) }
    RemS16(a: i16, b: i16) -> i16 { if b == 0 { a } else { a.wrapping_rem(b) } }
    RemU32(a: u32, b: u32) -> u32 { a.checked_rem(b).unwrap_or(a) }
    RemS32(a: i32, b: i32) -> i32 { if b == 0 { a } else { a.wrapping_rem(b) } }
    RemU64(a: u64, b: u64) -> u64 { a.checked_rem(b).unwrap_or(a) }
    RemS64(a: i64, b: i64) -> i64 { if b == 0 { a } else { a.wrapping_rem(b) } }
    MinU16(a: u16, b: u16) -> u16 { a.min(b) }
    MinS16(a: i16, b: i16) -> i16 { a.min(b) }
    MinU32(a: u32, b: u32) -> u32 { a.min(b) }
    MinS32(a: i32, b: i32) -> i32 { a.min(b) }
    MinU64(a: u64, b: u64) -> u64 { a.min(b) }
    MinS64(a: i64, b: i64) -> i64 { a.min(b) }
    MaxU16(a: u16, b: u16) -> u16 { a.max(b) }
    MaxS16(a: i16, b: i16) -> i16 { a.max(b) }
    MaxU32(a: u32, b: u32) -> u32 { a.max(b) }
    MaxS32(a: i32, b: i32) -> i32 { a.max(b) }
    MaxU64(a: u64, b: u64) -> u64 { a.max(b) }
    MaxS64(a: i64, b: i64) -> i64 { a.max(b) }
    AbsS16(a: i16) -> i16 { a.wrapping_abs() }
    AbsS32(a: i32) -> i32 { a.wrapping_abs() }
    AbsS64(a: i64) -> i64 { a.wrapping_abs() }
    NegS16(a: i16) -> i16 { a.wrapping_neg() }
    NegS32(a: i32) -> i32 { a.wrapping_neg() }
    NegS64(a: i64) -> i64 { a.wrapping_neg() }
    SadS32(a: i32, b: i32, c: u32) -> u32 { a.abs_diff(b).wrapping_add(c) }
    SadU32(a: u32, b: u32, c: u32) -> u32 { a.abs_diff(b).wrapping_add(c) }
    Dp4aU32U32(a: u32, b: u32, c: u32) -> u32 { dot(a, b, c, false, false) }
    Dp4aU32S32(a: u32, b: u32, c: u32) -> u32 { dot(a, b, c, false, true) }
    Dp4aS32U32(a: u32, b: u32, c: u32) -> u32 { dot(a, b, c, true, false) }
    Dp4aS32S32(a: u32, b: u32, c: u32) -> u32 { dot(a, b, c, true, true) }
    // Bits.
    AndB32(a: u32, b: u32) -> u32 { a & b }
    AndB64(a: u64, b: u64) -> u64 { a & b }
    OrB32(a: u32, b: u32) -> u32 { a | b }
    OrB64(a: u64, b: u64) -> u64 { a | b }
    XorB32(a: u32, b: u32) -> u32 { a ^ b }
    XorB64(a: u64, b: u64) -> u64 { a ^ b }
    NotB16(a: u16) -> u16 { !a }
    NotB32(a: u32) -> u32 { !a }
    NotB64(a: u64) -> u64 { !a }
    CnotB16(a: u16) -> u16 { u16::from(a == 0) }
    CnotB32(a: u32) -> u32 { u32::from(a == 0) }
    CnotB64(a: u64) -> u64 { u64::from(a == 0) }
    ShlB16(a: u16, n: u32) -> u16 { if n < 16 { a << (n & 15) } else { 0 } }
    ShlB32(a: u32, n: u32) -> u32 { if n < 32 { a << (n & 31) } else { 0 } }
    ShlB64(a: u64, n: u32) -> u64 { if n < 64 { a << (n & 63) } else { 0 } }
    ShrU16(a: u16, n: u32) -> u16 { if n < 16 { a >> (n & 15) } else { 0 } }
    ShrU32(a: u32, n: u32) -> u32 { if n < 32 { a >> (n & 31) } else { 0 } }
    ShrU64(a: u64, n: u32) -> u64 { if n < 64 { a >> (n & 63) } else { 0 } }
    ShrS16(a: i16, n: u32) -> i16 { a >> n.min(15) }
    ShrS32(a: i32, n: u32) -> i32 { a >> n.min(31) }
    ShrS64(a: i64, n: u32) -> i64 { a >> n.min(63) }
    ShfLClamp(a: u32, b: u32, n: u32) -> u32 { ((u64::from(b) << 32 | u64::from(a)) << n.min(32) >> 32) as u32 }
    ShfLWrap(a: u32, b: u32, n: u32) -> u32 { ((u64::from(b) << 32 | u64::from(a)) << (n & 31) >> 32) as u32 }
    ShfRClamp(a: u32, b: u32, n: u32) -> u32 { ((u64::from(b) << 32 | u64::from(a)) >> n.min(32)) as u32 }
    ShfRWrap(a: u32, b: u32, n: u32) -> u32 { ((u64::from(b) << 32 | u64::from(a)) >> (n & 31)) as u32 }
    BfeU32(a: u32, at: u32, len: u32) -> u32 { bfe(u64::from(a), at, len, 32) as u32 }
    BfeS32(a: i32, at: u32, len: u32) -> u32 { bfe_signed(i64::from(a), at, len, 32) as u32 }
    BfeU64(a: u64, at: u32, len: u32) -> u64 { bfe(a, at, len, 64) }
    BfeS64(a: i64, at: u32, len: u32) -> u64 { bfe_signed(a, at, len, 64) as u64 }
    BfindU32(a: u32) -> u32 { 31u32.wrapping_sub(a.leading_zeros()) }
    BfindS32(a: i32) -> u32 { 31u32.wrapping_sub((a ^ a >> 31).leading_zeros()) }
    BfindU64(a: u64) -> u32 { 63u32.wrapping_sub(a.leading_zeros()) }
    BfindS64(a: i64) -> u32 { 63u32.wrapping_sub((a ^ a >> 63).leading_zeros()) }
    BfindShiftU32(a: u32) -> u32 { shift_to_top(a) }
    BfindShiftS32(a: i32) -> u32 { shift_to_top((a ^ a >> 31) as u32) }
    ClzB32(a: u32) -> u32 { a.leading_zeros() }
    ClzB64(a: u64) -> u32 { a.leading_zeros() }
    PopcB32(a: u32) -> u32 { a.count_ones() }
    PopcB64(a: u64) -> u32 { a.count_ones() }
    BrevB32(a: u32) -> u32 { a.reverse_bits() }
    BrevB64(a: u64) -> u64 { a.reverse_bits() }
    BmskClamp(a: u32, b: u32) -> u32 { bmsk(a.min(32), b.min(32)) }
    BmskWrap(a: u32, b: u32) -> u32 { bmsk(a & 31, b & 31) }
    Prmt(a: u32, b: u32, c: u32) -> u32 { permute(a, b, c) }
    PrmtF4e(a: u32, b: u32, c: u32) -> u32 { permute(a, b, [0x3210, 0x4321, 0x5432, 0x6543][(c & 3) as usize]) }
    PrmtB4e(a: u32, b: u32, c: u32) -> u32 { permute(a, b, [0x5670, 0x6701, 0x7012, 0x0123][(c & 3) as usize]) }
    PrmtRc8(a: u32, b: u32, c: u32) -> u32 { permute(a, b, (c & 3) * 0x1111) }
    PrmtEcl(a: u32, b: u32, c: u32) -> u32 { permute(a, b, [0x3210, 0x3211, 0x3222, 0x3333][(c & 3) as usize]) }
    PrmtEcr(a: u32, b: u32, c: u32) -> u32 { permute(a, b, [0x0000, 0x1110, 0x2210, 0x3210][(c & 3) as usize]) }
    PrmtRc16(a: u32, b: u32, c: u32) -> u32 { permute(a, b, [0x1010, 0x3232][(c & 1) as usize]) }
    // Single precision.
    AddF32(a: f32, b: f32) -> f32 { a + b }
    SubF32(a: f32, b: f32) -> f32 { a - b }
    MulF32(a: f32, b: f32) -> f32 { a * b }
    FmaF32(a: f32, b: f32, c: f32) -> f32 { a.mul_add(b, c) }
    DivF32(a: f32, b: f32) -> f32 { a / b }
    MinF32(a: f32, b: f32) -> f32 { float::min(a, b) }
    MaxF32(a: f32, b: f32) -> f32 { float::max(a, b) }
    MinNanF32(a: f32, b: f32) -> f32 { float::min_nan(a, b) }
    MaxNanF32(a: f32, b: f32) -> f32 { float::max_nan(a, b) }
    AbsF32(a: u32) -> u32 { a & 0x7fff_ffff }
    NegF32(a: u32) -> u32 { a ^ 0x8000_0000 }
    CopysignF32(a: u32, b: u32) -> u32 { (b & 0x7fff_ffff) | (a & 0x8000_0000) }
    FlushF32(a: f32) -> f32 { float::flush(a) }
    SatF32(a: f32) -> f32 { float::saturate(a) }
    Ex2F32(a: f32) -> f32 { float::exp2(a) }
    Ex2FtzF32(a: f32) -> f32 { float::flush(float::exp2(float::flush(a))) }
    Lg2F32(a: f32) -> f32 { slow::log2f(a) }
    RcpF32(a: f32) -> f32 { 1.0 / a }
    SqrtF32(a: f32) -> f32 { a.sqrt() }
    RsqrtF32(a: f32) -> f32 { (1.0 / f64::from(a).sqrt()) as f32 }
    SinF32(a: f32) -> f32 { slow::sinf(a) }
    CosF32(a: f32) -> f32 { slow::cosf(a) }
    TanhF32(a: f32) -> f32 { slow::tanhf(a) }
    RoundEvenF32(a: f32) -> f32 { a.round_ties_even() }
    TruncF32(a: f32) -> f32 { a.trunc() }
    FloorF32(a: f32) -> f32 { a.floor() }
    CeilF32(a: f32) -> f32 { a.ceil() }
    // Double precision.
    AddF64(a: f64, b: f64) -> f64 { a + b }
    SubF64(a: f64, b: f64) -> f64 { a - b }
    MulF64(a: f64, b: f64) -> f64 { a * b }
    FmaF64(a: f64, b: f64, c: f64) -> f64 { a.mul_add(b, c) }
    DivF64(a: f64, b: f64) -> f64 { a / b }
    MinF64(a: f64, b: f64) -> f64 { float::min64(a, b) }
    MaxF64(a: f64, b: f64) -> f64 { float::max64(a, b) }
    AbsF64(a: f64) -> f64 { a.abs() }
    NegF64(a: f64) -> f64 { -a }
    RcpF64(a: f64) -> f64 { 1.0 / a }
    SqrtF64(a: f64) -> f64 { a.sqrt() }
    RsqrtF64(a: f64) -> f64 { 1.0 / a.sqrt() }
    RoundEvenF64(a: f64) -> f64 { a.round_ties_even() }
    TruncF64(a: f64) -> f64 { a.trunc() }
    FloorF64(a: f64) -> f64 { a.floor() }
    CeilF64(a: f64) -> f64 { a.ceil() }
    // 16-bit floats, one and two to a register.
    AddF16(a: F16, b: F16) -> F16 { F16(a.0 + b.0) }
    SubF16(a: F16, b: F16) -> F16 { F16(a.0 - b.0) }
    MulF16(a: F16, b: F16) -> F16 { F16(a.0 * b.0) }
    FmaF16(a: F16, b: F16, c: F16) -> F16 { F16(float::fma16(a.0, b.0, c.0)) }
    MinF16(a: F16, b: F16) -> F16 { F16(float::min(a.0, b.0)) }
    MaxF16(a: F16, b: F16) -> F16 { F16(float::max(a.0, b.0)) }
    Ex2F16(a: F16) -> F16 { F16(float::exp2(a.0)) }
    TanhF16(a: F16) -> F16 { F16(slow::tanhf(a.0)) }
    AddBF16(a: BF16, b: BF16) -> BF16 { BF16(a.0 + b.0) }
    SubBF16(a: BF16, b: BF16) -> BF16 { BF16(a.0 - b.0) }
    MulBF16(a: BF16, b: BF16) -> BF16 { BF16(a.0 * b.0) }
    FmaBF16(a: BF16, b: BF16, c: BF16) -> BF16 { BF16(float::fma16(a.0, b.0, c.0)) }
    MinBF16(a: BF16, b: BF16) -> BF16 { BF16(float::min(a.0, b.0)) }
    MaxBF16(a: BF16, b: BF16) -> BF16 { BF16(float::max(a.0, b.0)) }
    Ex2BF16(a: BF16) -> BF16 { BF16(float::flush(float::exp2(float::flush(a.0)))) }
    TanhBF16(a: BF16) -> BF16 { BF16(slow::tanhf(a.0)) }
    AddF16x2(a: F16x2, b: F16x2) -> F16x2 { a.zip(b, |a, b| a + b) }
    SubF16x2(a: F16x2, b: F16x2) -> F16x2 { a.zip(b, |a, b| a - b) }
    MulF16x2(a: F16x2, b: F16x2) -> F16x2 { a.zip(b, |a, b| a * b) }
    FmaF16x2(a: F16x2, b: F16x2, c: F16x2) -> F16x2 { a.fma(b, c) }
    MinF16x2(a: F16x2, b: F16x2) -> F16x2 { a.zip(b, float::min) }
    MaxF16x2(a: F16x2, b: F16x2) -> F16x2 { a.zip(b, float::max) }
    Ex2F16x2(a: F16x2) -> F16x2 { a.map(float::exp2) }
    TanhF16x2(a: F16x2) -> F16x2 { a.map(slow::tanhf) }
    AddBF16x2(a: BF16x2, b: BF16x2) -> BF16x2 { a.zip(b, |a, b| a + b) }
    SubBF16x2(a: BF16x2, b: BF16x2) -> BF16x2 { a.zip(b, |a, b| a - b) }
    MulBF16x2(a: BF16x2, b: BF16x2) -> BF16x2 { a.zip(b, |a, b| a * b) }
    FmaBF16x2(a: BF16x2, b: BF16x2, c: BF16x2) -> BF16x2 { a.fma(b, c) }
    MinBF16x2(a: BF16x2, b: BF16x2) -> BF16x2 { a.zip(b, float::min) }
    MaxBF16x2(a: BF16x2, b: BF16x2) -> BF16x2 { a.zip(b, float::max) }
    Ex2BF16x2(a: BF16x2) -> BF16x2 { a.map(|x| float::flush(float::exp2(float::flush(x)))) }
    TanhBF16x2(a: BF16x2) -> BF16x2 { a.map(slow::tanhf) }
    AbsB16(a: u32) -> u32 { a & 0x7fff }
    NegB16(a: u32) -> u32 { a ^ 0x8000 }
    AbsB16x2(a: u32) -> u32 { a & 0x7fff_7fff }
    NegB16x2(a: u32) -> u32 { a ^ 0x8000_8000 }
    // Conversions.
    U8ToB32(a: u8) -> u32 { u32::from(a) }
    S8ToB32(a: i8) -> i32 { i32::from(a) }
    S8ToB16(a: i8) -> i16 { i16::from(a) }
    U16ToB32(a: u16) -> u32 { u32::from(a) }
    S16ToB32(a: i16) -> i32 { i32::from(a) }
    U8ToB64(a: u8) -> u64 { u64::from(a) }
    S8ToB64(a: i8) -> i64 { i64::from(a) }
    U16ToB64(a: u16) -> u64 { u64::from(a) }
    S16ToB64(a: i16) -> i64 { i64::from(a) }
    U32ToB64(a: u32) -> u64 { u64::from(a) }
    S32ToB64(a: i32) -> i64 { i64::from(a) }
    B64ToB8(a: u64) -> u8 { a as u8 }
    B64ToB16(a: u64) -> u16 { a as u16 }
    U64ToSatU8(a: u64) -> u8 { a.min(0xff) as u8 }
    S64ToSatU8(a: i64) -> u8 { a.clamp(0, 0xff) as u8 }
    S64ToSatS8(a: i64) -> i8 { a.clamp(-0x80, 0x7f) as i8 }
    U64ToSatS8(a: u64) -> i8 { a.min(0x7f) as i8 }
    U64ToSatU16(a: u64) -> u16 { a.min(0xffff) as u16 }
    S64ToSatU16(a: i64) -> u16 { a.clamp(0, 0xffff) as u16 }
    S64ToSatS16(a: i64) -> i16 { a.clamp(-0x8000, 0x7fff) as i16 }
    U64ToSatS16(a: u64) -> i16 { a.min(0x7fff) as i16 }
    U64ToSatU32(a: u64) -> u32 { a.min(0xffff_ffff) as u32 }
    S64ToSatU32(a: i64) -> u32 { a.clamp(0, 0xffff_ffff) as u32 }
    S64ToSatS32(a: i64) -> i32 { a.clamp(-0x8000_0000, 0x7fff_ffff) as i32 }
    U64ToSatS32(a: u64) -> i32 { a.min(0x7fff_ffff) as i32 }
    U64ToSatS64(a: u64) -> u64 { a.min(i64::MAX as u64) }
    S64ToSatU64(a: i64) -> i64 { a.max(0) }
    U32ToF32(a: u32) -> f32 { a as f32 }
    S32ToF32(a: i32) -> f32 { a as f32 }
    U64ToF32(a: u64) -> f32 { a as f32 }
    S64ToF32(a: i64) -> f32 { a as f32 }
    U64ToF64(a: u64) -> f64 { a as f64 }
    S64ToF64(a: i64) -> f64 { a as f64 }
    F32ToU32(a: f32) -> u32 { a as u32 }
    F32ToS32(a: f32) -> i32 { a as i32 }
    F64ToU8(a: f64) -> u8 { a as u8 }
    F64ToS8(a: f64) -> i8 { a as i8 }
    F64ToU16(a: f64) -> u16 { a as u16 }
    F64ToS16(a: f64) -> i16 { a as i16 }
    F64ToU32(a: f64) -> u32 { a as u32 }
    F64ToS32(a: f64) -> i32 { a as i32 }
    F64ToU64(a: f64) -> u64 { if a.is_nan() { 1 << 63 } else { a as u64 } }
    F64ToS64(a: f64) -> i64 { if a.is_nan() { i64::MIN } else { a as i64 } }
    F32ToF64(a: f32) -> f64 { f64::from(a) }
    F64ToF32(a: f64) -> f32 { a as f32 }
    F64ToF32Odd(a: f64) -> f32 { float::f64_to_f32_odd(a) }
    F16ToF32(a: F16) -> f32 { a.0 }
    BF16ToF32(a: BF16) -> f32 { a.0 }
    F32ToF16(a: f32) -> u32 { u32::from(float::f32_to_f16(a)) }
    F32ToF16Rz(a: f32) -> u32 { u32::from(float::f32_to_f16_rz(a)) }
    F32ToBF16(a: f32) -> u32 { u32::from(float::f32_to_bf16(a)) }
    F32ToBF16Rz(a: f32) -> u32 { u32::from(float::f32_to_bf16_rz(a)) }
    // The first source goes to the upper half, as PTX has it.
    F32ToF16x2(a: f32, b: f32) -> F16x2 { F16x2(b, a) }
    F32ToBF16x2(a: f32, b: f32) -> BF16x2 { BF16x2(b, a) }
    Relu16x2(a: u32) -> u32 { relu16(a & 0xffff) | relu16(a >> 16) << 16 }
    Relu16(a: u32) -> u32 { relu16(a) }
}

/// What gains nothing from vectors stays out of line, or the table would be compiled for minutes.
mod slow {
    macro_rules! out_of_line {
        ($($name:ident)*) => {$(
            #[inline(never)]
            pub(super) fn $name(x: f32) -> f32 {
                libm::$name(x)
            }
        )*};
    }
    out_of_line!(log2f sinf cosf tanhf);
}

/// Negative numbers to zero; the formats agree on the sign bit. NaN stays (it is made positive before).
#[inline(always)]
fn relu16(bits: u32) -> u32 {
    if bits & 0x8000 != 0 { 0 } else { bits }
}

#[inline(always)]
fn shift_to_top(a: u32) -> u32 {
    if a == 0 { u32::MAX } else { a.leading_zeros() }
}

#[inline(never)]
fn dot(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let part = |x: u32, i: u32, signed: bool| {
        let byte = (x >> (8 * i)) as u8;
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    (0..4).fold(c, |sum, i| sum.wrapping_add((part(a, i, a_signed) * part(b, i, b_signed)) as u32))
}

#[inline(always)]
fn bfe(a: u64, at: u32, len: u32, bits: u32) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    let shifted = if at < bits { a >> at } else { 0 };
    if len >= 64 { shifted } else { shifted & ((1u64 << len) - 1) }
}

#[inline(always)]
fn bfe_signed(a: i64, at: u32, len: u32, bits: u32) -> i64 {
    let (at, len) = (at & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    // Past the top the sign bit of the source goes on.
    let shifted = a >> at.min(bits - 1);
    let keep = len.min(64);
    shifted << (64 - keep) >> (64 - keep)
}

#[inline(always)]
fn bmsk(at: u32, len: u32) -> u32 {
    let ones = if len >= 32 { u32::MAX } else { (1 << len) - 1 };
    if at >= 32 { 0 } else { ones << at }
}

#[inline(never)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut r = 0;
    for i in 0..4 {
        let s = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (s & 7))) as u32 & 0xff;
        let sign = if byte & 0x80 != 0 { 0xff } else { 0 };
        r |= (if s & 8 != 0 { sign } else { byte }) << (8 * i);
    }
    r
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Also true for NaN, as the four below.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Both are numbers.
    Num,
    Nan,
}

/// What compared registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum CmpType {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    BF16,
    F32,
    F64,
}

#[inline(always)]
fn lanes_where<A: Lane>(rows: &Rows, a: Reg, b: Reg, f: impl Fn(A, A) -> bool) -> u32 {
    let (a, b) = (A::Raw::read(rows, a).as_chunks::<CHUNK>().0, A::Raw::read(rows, b).as_chunks::<CHUNK>().0);
    let mut lanes = 0;
    for c in 0..black_box(LANES / CHUNK) {
        let mut hits = 0u32;
        for i in 0..CHUNK {
            hits |= u32::from(f(A::of(a[c][i]), A::of(b[c][i]))) << i;
        }
        lanes |= hits << (CHUNK * c);
    }
    lanes
}

/// Lanes in which `a == b`, `a < b`, `a <= b`, and in which both are numbers; everything else follows from these.
#[inline(always)]
fn compare_as<A: Lane, V: PartialOrd>(cmp: Cmp, regs: &Rows, a: Reg, b: Reg, v: impl Fn(A) -> V) -> u32 {
    let numbers = |regs: &Rows| lanes_where(regs, a, b, |x: A, y: A| v(x).partial_cmp(&v(y)).is_some());
    let (a, b, cmp) = match cmp {
        Cmp::Gt => (b, a, Cmp::Lt),
        Cmp::Ge => (b, a, Cmp::Le),
        Cmp::Gtu => (b, a, Cmp::Ltu),
        Cmp::Geu => (b, a, Cmp::Leu),
        other => (a, b, other),
    };
    match cmp {
        Cmp::Eq | Cmp::Ne | Cmp::Equ | Cmp::Neu => {
            let equal = lanes_where(regs, a, b, |x: A, y: A| v(x) == v(y));
            match cmp {
                Cmp::Eq => equal,
                Cmp::Neu => !equal,
                Cmp::Ne => !equal & numbers(regs),
                _ => equal | !numbers(regs),
            }
        }
        Cmp::Lt => lanes_where(regs, a, b, |x: A, y: A| v(x) < v(y)),
        Cmp::Le => lanes_where(regs, a, b, |x: A, y: A| v(x) <= v(y)),
        Cmp::Ltu => !lanes_where(regs, b, a, |x: A, y: A| v(x) <= v(y)),
        Cmp::Leu => !lanes_where(regs, b, a, |x: A, y: A| v(x) < v(y)),
        Cmp::Nan => !numbers(regs),
        _ => numbers(regs),
    }
}

/// Lanes in which the comparison holds.
#[inline(always)]
fn compare_any(cmp: Cmp, of: CmpType, regs: &Registers, a: Reg, b: Reg) -> u32 {
    let regs = &regs.rows;
    match of {
        CmpType::U16 | CmpType::U32 => compare_as(cmp, regs, a, b, |x: u32| x),
        CmpType::S16 => compare_as(cmp, regs, a, b, |x: i16| x),
        CmpType::S32 => compare_as(cmp, regs, a, b, |x: i32| x),
        CmpType::U64 => compare_as(cmp, regs, a, b, |x: u64| x),
        CmpType::S64 => compare_as(cmp, regs, a, b, |x: i64| x),
        CmpType::F16 => compare_as(cmp, regs, a, b, |x: F16| x.0),
        CmpType::BF16 => compare_as(cmp, regs, a, b, |x: BF16| x.0),
        CmpType::F32 => compare_as(cmp, regs, a, b, |x: f32| x),
        CmpType::F64 => compare_as(cmp, regs, a, b, |x: f64| x),
    }
}

/// `d` is `a` where the predicate holds, else `b`.
#[inline(always)]
fn select_any(wide: bool, regs: &mut Registers, d: Reg, a: Reg, b: Reg, pred: u32, mask: u32) {
    #[inline(always)]
    fn pick<T: Bits>(rows: &Rows, out: &mut Out, a: Reg, b: Reg, pred: u32) {
        let (a, b) = (T::read(rows, a), T::read(rows, b));
        let r = T::out(out);
        for l in 0..LANES {
            r[l] = if pred >> l & 1 == 1 { a[l] } else { b[l] };
        }
    }
    if wide {
        pick::<u64>(&regs.rows, &mut regs.out, a, b, pred);
    } else {
        pick::<u32>(&regs.rows, &mut regs.out, a, b, pred);
    }
    regs.take(d, wide, mask);
}

/// `lop3`: the bit of `table` that the bits of `s` count.
#[inline(always)]
fn lop3_any(table: u8, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
    let picks: [u32; 8] = std::array::from_fn(|i| if table >> i & 1 == 1 { u32::MAX } else { 0 });
    let wide = map3(&regs.rows, &mut regs.out, s, |a: u32, b: u32, c: u32| -> u32 {
        (!a & !b & !c & picks[0])
            | (!a & !b & c & picks[1])
            | (!a & b & !c & picks[2])
            | (!a & b & c & picks[3])
            | (a & !b & !c & picks[4])
            | (a & !b & c & picks[5])
            | (a & b & !c & picks[6])
            | (a & b & c & picks[7])
    });
    regs.take(d, wide, mask);
}

/// Lane functions compiled for one instruction set of the host; all give the same bits.
#[derive(Clone, Copy, Debug)]
pub struct HostIsa {
    /// For reports.
    pub name: &'static str,
    apply: unsafe fn(Alu, &mut Registers, Reg, [Reg; 3], u32),
    compare: unsafe fn(Cmp, CmpType, &Registers, Reg, Reg) -> u32,
    select: unsafe fn(bool, &mut Registers, Reg, Reg, Reg, u32, u32),
    lop3: unsafe fn(u8, &mut Registers, Reg, [Reg; 3], u32),
    mma: unsafe fn(&super::mma::Mma, &mut Registers),
}

macro_rules! isa {
    ($module:ident, $name:literal $(, $feature:literal)?) => {
        mod $module {
            use super::*;
            $(#[target_feature(enable = $feature)])?
            unsafe fn apply(op: Alu, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
                apply_any(op, regs, d, s, mask);
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn compare(cmp: Cmp, of: CmpType, regs: &Registers, a: Reg, b: Reg) -> u32 {
                compare_any(cmp, of, regs, a, b)
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn select(wide: bool, regs: &mut Registers, d: Reg, a: Reg, b: Reg, pred: u32, mask: u32) {
                select_any(wide, regs, d, a, b, pred, mask);
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn lop3(table: u8, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
                lop3_any(table, regs, d, s, mask);
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn mma(op: &crate::exec::mma::Mma, regs: &mut Registers) {
                crate::exec::mma::run_any(op, regs);
            }
            pub(super) const ISA: HostIsa = HostIsa { name: $name, apply, compare, select, lop3, mma };
        }
    };
}
isa!(portable, "portable");
#[cfg(target_arch = "x86_64")]
isa!(avx2, "avx2", "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt");
impl HostIsa {
    /// The best that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            if avx2 {
                return avx2::ISA;
            }
        }
        portable::ISA
    }

    /// The one that needs nothing.
    pub const fn portable() -> Self {
        portable::ISA
    }

    /// `d = op(s)` in the lanes of `mask`.
    #[inline(always)]
    pub fn apply(&self, op: Alu, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
        // SAFETY: `detect` gave this set only where the machine has its features; so for all calls below.
        unsafe { (self.apply)(op, regs, d, s, mask) }
    }

    /// Lanes in which the comparison holds.
    #[inline(always)]
    pub fn compare(&self, cmp: Cmp, of: CmpType, regs: &Registers, a: Reg, b: Reg) -> u32 {
        // SAFETY: as in `apply`.
        unsafe { (self.compare)(cmp, of, regs, a, b) }
    }

    /// `d` is `a` where `pred`, else `b`.
    #[inline(always)]
    pub fn select(&self, wide: bool, regs: &mut Registers, d: Reg, a: Reg, b: Reg, pred: u32, mask: u32) {
        // SAFETY: as in `apply`.
        unsafe { (self.select)(wide, regs, d, a, b, pred, mask) }
    }

    /// `lop3`.
    #[inline(always)]
    pub fn lop3(&self, table: u8, regs: &mut Registers, d: Reg, s: [Reg; 3], mask: u32) {
        // SAFETY: as in `apply`.
        unsafe { (self.lop3)(table, regs, d, s, mask) }
    }

    /// `mma`.
    #[inline(always)]
    pub fn mma(&self, op: &super::mma::Mma, regs: &mut Registers) {
        // SAFETY: as in `apply`.
        unsafe { (self.mma)(op, regs) }
    }
}
