//! Conversions: rounding, saturation, widths.

use crate::case::*;

const NAN: u64 = 0x7fc0_0000;
const INF: u64 = 0x7f80_0000;
const NINF: u64 = 0xff80_0000;
const MIN: u64 = 0x8000_0000;
const MAX: u64 = 0x7fff_ffff;
const ALL: u64 = 0xffff_ffff;

fn neg(x: i32) -> u64 {
    u64::from(x as u32)
}

#[test]
fn floats_to_integers_round_and_saturate() {
    let t = [F32];
    check(
        "cvt.rni.s32.f32",
        B32,
        &t,
        &[[f(0.5), 0], [f(1.5), 2], [f(2.5), 2], [f(-0.5), 0], [f(-1.5), neg(-2)]],
    );
    check("cvt.rzi.s32.f32", B32, &t, &[[f(1.9), 1], [f(-1.9), neg(-1)]]);
    check("cvt.rmi.s32.f32", B32, &t, &[[f(1.9), 1], [f(-1.1), neg(-2)]]);
    check("cvt.rpi.s32.f32", B32, &t, &[[f(1.1), 2], [f(-1.9), neg(-1)]]);
    check("cvt.rzi.s32.f32", B32, &t, &[[f(3e9), MAX], [f(-3e9), MIN], [INF, MAX], [NINF, MIN], [NAN, 0]]);
    check("cvt.rzi.u32.f32", B32, &t, &[[f(3e9), 3_000_000_000], [f(5e9), ALL], [f(-1.0), 0], [NAN, 0]]);
    check(
        "cvt.rzi.s64.f32",
        B64,
        &t,
        &[[f(-3e9), (-3_000_000_000i64) as u64], [INF, i64::MAX as u64], [NAN, 1 << 63]],
    );
    check("cvt.rzi.u64.f32", B64, &t, &[[f(5e9), 5_000_000_000], [f(-1.0), 0]]);
    check("cvt.rzi.s32.f64", B32, &[F64], &[[g(-1.9), neg(-1)], [g(1e10), MAX]]);
}

#[test]
fn integers_to_floats_round() {
    check(
        "cvt.rn.f32.s32",
        F32,
        &[B32],
        &[[16_777_217, f(16_777_216.0)], [16_777_219, f(16_777_220.0)], [neg(-7), f(-7.0)]],
    );
    check("cvt.rn.f32.u32", F32, &[B32], &[[ALL, f(4_294_967_296.0)], [neg(-7), f(4_294_967_289.0)]]);
    check(
        "cvt.rn.f32.u64",
        F32,
        &[B64],
        &[[!0, f(18_446_744_073_709_551_616.0)], [(1 << 40) + 1, f(2f32.powi(40))]],
    );
    check("cvt.rn.f32.s64", F32, &[B64], &[[!0, f(-1.0)]]);
    check("cvt.rn.f64.s32", F64, &[B32], &[[neg(-7), g(-7.0)]]);
    check("cvt.rn.f32.u16", F32, &[B16], &[[0xffff, f(65535.0)]]);
    check("cvt.rn.f32.s16", F32, &[B16], &[[0xffff, f(-1.0)]]);
}

#[test]
fn floats_to_integral_floats() {
    check("cvt.rni.f32.f32", F32, &[F32], &[[f(2.5), f(2.0)], [f(3.5), f(4.0)], [f(-0.25), MIN]]);
    check("cvt.rzi.f32.f32", F32, &[F32], &[[f(-2.75), f(-2.0)]]);
    check("cvt.rmi.f32.f32", F32, &[F32], &[[f(-2.25), f(-3.0)]]);
    check("cvt.rpi.f32.f32", F32, &[F32], &[[f(2.25), f(3.0)]]);
    check("cvt.sat.f32.f32", F32, &[F32], &[[f(2.25), f(1.0)], [f(-2.25), 0], [NAN, 0], [f(0.25), f(0.25)]]);
    check("cvt.f64.f32", F64, &[F32], &[[f(0.1), g(f64::from(0.1f32))]]);
    check("cvt.rn.f32.f64", F32, &[F64], &[[g(0.1), f(0.1)], [g(1e300), INF]]);
}

#[test]
fn half_precision() {
    let rows = [
        [f(1.0), 0x3c00],
        [f(65519.0), 0x7bff],
        [f(65520.0), 0x7c00],
        [f(-2f32.powi(-24)), 0x8001],
        [f(2f32.powi(-25)), 0],
        [f(1.5 * 2f32.powi(-25)), 1],
        [f(1.0 + 2f32.powi(-11)), 0x3c00],
        [f(1.0 + 3.0 * 2f32.powi(-11)), 0x3c02],
        [NAN, 0x7fff],
    ];
    check("cvt.rn.f16.f32", B16, &[F32], &rows);
    check("cvt.rz.f16.f32", B16, &[F32], &[[f(65535.0), 0x7bff], [f(1.0 + 1.9 * 2f32.powi(-11)), 0x3c00]]);
    check(
        "cvt.f32.f16",
        F32,
        &[B16],
        &[[0x3c00, f(1.0)], [1, f(2f32.powi(-24))], [0x7c00, INF], [0x8000, MIN], [0x7bff, f(65504.0)]],
    );
}

#[test]
fn brain_floats() {
    let rows = [
        [0x3f80_8000, 0x3f80],
        [0x3f81_8000, 0x3f82],
        [0x3f80_8001, 0x3f81],
        [f(f32::MAX), 0x7f80],
        [0x8000_0001, 0x8000],
        [0x0000_c000, 1],
        [0xffc0_0001, 0x7fff],
        [NINF, 0xff80],
    ];
    check("cvt.rn.bf16.f32", B16, &[F32], &rows);
    check("cvt.rz.bf16.f32", B16, &[F32], &[[0x3f80_ffff, 0x3f80], [0xbf80_ffff, 0xbf80]]);
    check("cvt.rn.bf16x2.f32", B32, &[F32; 2], &[[f(1.0), f(2.0), 0x3f80_4000], [f(-0.5), NAN, 0xbf00_7fff]]);
    check(
        "cvt.rn.f16x2.f32",
        B32,
        &[F32; 2],
        &[[f(1.0), f(2.0), 0x3c00_4000], [f(1e9), f(-1e9), 0x7c00_fc00]],
    );
    check("cvt.rn.relu.bf16x2.f32", B32, &[F32; 2], &[[f(-1.0), f(2.0), 0x0000_4000]]);
    check("cvt.f32.bf16", F32, &[B16], &[[0x3f80, f(1.0)], [0xff80, NINF], [1, 0x1_0000]]);
}

#[test]
fn integers_change_width() {
    check("cvt.s64.s32", B64, &[B32], &[[neg(-7), (-7i64) as u64]]);
    check("cvt.u64.u32", B64, &[B32], &[[neg(-7), neg(-7)]]);
    check("cvt.s32.s16", B32, &[B16], &[[0xfff9, neg(-7)]]);
    check("cvt.u32.u16", B32, &[B16], &[[0xfff9, 0xfff9]]);
    check("cvt.u32.u64", B32, &[B64], &[[(1 << 40) + 5, 5]]);
    check("cvt.u16.u32", B16, &[B32], &[[0x1_0005, 5]]);
    check("cvt.s32.s8", B32, &[B32], &[[0x1f9, neg(-7)], [0x17f, 0x7f]]);
    check("cvt.u32.u8", B32, &[B32], &[[0x1f9, 0xf9]]);
    check("cvt.s16.s8", B16, &[B16], &[[0x1f9, 0xfff9]]);
    check("cvt.s64.s16", B64, &[B16], &[[0x8000, (-32768i64) as u64]]);
    check("cvt.sat.u8.s32", B32, &[B32], &[[300, 255], [neg(-5), 0], [77, 77]]);
    check("cvt.sat.s8.s32", B32, &[B32], &[[300, 127], [neg(-300), neg(-128)]]);
    check("cvt.sat.s32.s64", B32, &[B64], &[[1 << 40, MAX], [(-(1i64 << 40)) as u64, MIN], [5, 5]]);
}
