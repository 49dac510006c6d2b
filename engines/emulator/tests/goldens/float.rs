//! Floating point.

use crate::case::*;

const NAN: u64 = 0x7fff_ffff; // what operations answer
const QUIET: u64 = 0x7fc0_1234;
const INF: u64 = 0x7f80_0000;
const NINF: u64 = 0xff80_0000;
const NZERO: u64 = 0x8000_0000;
const TINY: u64 = 1; // least subnormal
const SUB: u64 = 0x0040_0000; // 2^-127

#[test]
fn sums_and_products_round_once() {
    let ulp = f32::EPSILON;
    let t = [F32; 2];
    check(
        "add.f32",
        F32,
        &t,
        &[
            [f(1.0), f(ulp / 2.0), f(1.0)],
            [f(1.0 + ulp), f(ulp / 2.0), f(1.0 + 2.0 * ulp)],
            [f(1.5), f(-1.5), 0],
        ],
    );
    check(
        "add.rn.f32",
        F32,
        &t,
        &[
            [INF, f(1.0), INF],
            [INF, NINF, ANY_NAN],
            [f(f32::MAX), f(f32::MAX), INF],
            [SUB, SUB, f(2f32.powi(-126))],
        ],
    );
    check("sub.f32", F32, &t, &[[f(1.0), f(2.5), f(-1.5)], [NZERO, 0, NZERO], [0, 0, 0]]);
    check(
        "mul.f32",
        F32,
        &t,
        &[[f(3.0), f(-0.5), f(-1.5)], [0, INF, ANY_NAN], [TINY, f(0.5), 0], [TINY, f(1.5), 2]],
    );
    check(
        "fma.rn.f32",
        F32,
        &[F32; 3],
        &[
            [f(1.0 + 2f32.powi(-12)), f(1.0 + 2f32.powi(-12)), f(-1.0 - 2f32.powi(-11)), f(2f32.powi(-24))],
            [INF, 0, f(1.0), ANY_NAN],
        ],
    );
    check("add.f64", F64, &[F64; 2], &[[g(1.0), g(1e-16), g(1.0)], [g(0.1), g(0.2), g(0.1 + 0.2)]]);
    check("fma.rn.f64", F64, &[F64; 3], &[[g(3.0), g(0.5), g(1.0), g(2.5)]]);
    check("mul.f64", F64, &[F64; 2], &[[g(3.0), g(0.5), g(1.5)]]);
}

#[test]
fn flush_and_saturation() {
    let t = [F32; 2];
    check(
        "add.ftz.f32",
        F32,
        &t,
        &[[SUB, SUB, 0], [NZERO | SUB, NZERO, NZERO], [f(2f32.powi(-126)), NZERO | SUB, f(2f32.powi(-126))]],
    );
    check(
        "mul.ftz.f32",
        F32,
        &t,
        &[[f(2f32.powi(-126)), f(0.5), 0], [f(-(2f32.powi(-126))), f(0.5), NZERO], [SUB, f(4.0), 0]],
    );
    check(
        "fma.rn.ftz.f32",
        F32,
        &[F32; 3],
        &[[SUB, f(8.0), f(1.0), f(1.0)], [f(1.0), f(2f32.powi(-126)), NZERO | SUB, f(2f32.powi(-126))]],
    );
    check(
        "add.sat.f32",
        F32,
        &t,
        &[[f(0.75), f(0.5), f(1.0)], [f(-1.0), f(0.5), 0], [QUIET, f(0.5), 0], [f(0.25), f(0.5), f(0.75)]],
    );
    check("abs.f32", F32, &[F32], &[[f(-2.5), f(2.5)], [NZERO, 0], [NINF, INF]]);
    check("neg.f32", F32, &[F32], &[[f(-2.5), f(2.5)], [0, NZERO]]);
    check("abs.ftz.f32", F32, &[F32], &[[NZERO | SUB, 0]]);
}

#[test]
fn extremes_prefer_numbers() {
    let t = [F32; 2];
    check(
        "min.f32",
        F32,
        &t,
        &[
            [QUIET, f(1.0), f(1.0)],
            [f(1.0), QUIET, f(1.0)],
            [QUIET, QUIET, NAN],
            [NZERO, 0, NZERO],
            [0, NZERO, NZERO],
            [f(2.0), NINF, NINF],
        ],
    );
    check(
        "max.f32",
        F32,
        &t,
        &[
            [QUIET, f(1.0), f(1.0)],
            [f(1.0), QUIET, f(1.0)],
            [QUIET, QUIET, NAN],
            [NZERO, 0, 0],
            [0, NZERO, 0],
            [f(2.0), NINF, f(2.0)],
        ],
    );
    check("min.NaN.f32", F32, &t, &[[QUIET, f(1.0), NAN], [f(1.0), f(2.0), f(1.0)]]);
    check("max.NaN.f32", F32, &t, &[[f(1.0), QUIET, NAN], [f(1.0), f(2.0), f(2.0)]]);
}

#[test]
fn comparisons_are_ordered_or_not() {
    let with = |op: &str, less: u64, equal: u64, greater: u64, nan: u64| {
        let rows = [
            [f(1.0), f(2.0), less],
            [f(2.0), f(2.0), equal],
            [0, NZERO, equal],
            [INF, f(2.0), greater],
            [QUIET, f(2.0), nan],
            [f(2.0), QUIET, nan],
            [QUIET, QUIET, nan],
        ];
        check(&format!("setp.{op}.f32"), Pred, &[F32; 2], &rows);
    };
    with("eq", 0, 1, 0, 0);
    with("ne", 1, 0, 1, 0);
    with("lt", 1, 0, 0, 0);
    with("le", 1, 1, 0, 0);
    with("gt", 0, 0, 1, 0);
    with("ge", 0, 1, 1, 0);
    with("equ", 0, 1, 0, 1);
    with("neu", 1, 0, 1, 1);
    with("ltu", 1, 0, 0, 1);
    with("leu", 1, 1, 0, 1);
    with("gtu", 0, 0, 1, 1);
    with("geu", 0, 1, 1, 1);
    with("num", 1, 1, 1, 0);
    with("nan", 0, 0, 0, 1);
    check("setp.eq.ftz.f32", Pred, &[F32; 2], &[[SUB, 0, 1], [SUB, f(1.0), 0]]);
    check("setp.lt.f64", Pred, &[F64; 2], &[[g(1.0), g(2.0), 1], [g(f64::NAN), g(2.0), 0]]);
    check(
        "slct.f32.f32",
        F32,
        &[F32; 3],
        &[
            [f(5.0), f(6.0), NZERO, f(5.0)],
            [f(5.0), f(6.0), f(-1.0), f(6.0)],
            [f(5.0), f(6.0), QUIET, f(6.0)],
        ],
    );
}

#[test]
fn quotients_and_roots_are_ieee() {
    let t = [F32; 2];
    check(
        "div.rn.f32",
        F32,
        &t,
        &[
            [f(1.0), f(3.0), f(1.0 / 3.0)],
            [f(1.0), 0, INF],
            [f(-1.0), 0, NINF],
            [0, 0, ANY_NAN],
            [f(1.0), INF, 0],
        ],
    );
    check("rcp.rn.f32", F32, &[F32], &[[f(3.0), f(1.0 / 3.0)], [NZERO, NINF], [f(2f32.powi(127)), SUB]]);
    check(
        "sqrt.rn.f32",
        F32,
        &[F32],
        &[[f(2.0), f(2f32.sqrt())], [f(9.0), f(3.0)], [NZERO, NZERO], [f(-1.0), ANY_NAN]],
    );
    check("div.rn.f64", F64, &[F64; 2], &[[g(1.0), g(3.0), g(1.0 / 3.0)]]);
}

#[test]
fn approximate_functions() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let sub = f32::from_bits(SUB as u32);
    approximate(
        "ex2.approx.ftz.f32",
        2,
        &[
            (-inf, 0.0),
            (inf, inf),
            (sub, 1.0),
            (-sub, 1.0),
            (0.0, 1.0),
            (-0.0, 1.0),
            (3.0, 8.0),
            (-126.0, 2f32.powi(-126)),
            (-127.0, 0.0),
            (-200.0, 0.0),
            (128.0, inf),
            (0.5, 2f32.sqrt()),
            (nan, nan),
        ],
    );
    approximate(
        "ex2.approx.f32",
        2,
        &[(-inf, 0.0), (-127.0, 2f32.powi(-127)), (-160.0, 0.0), (1.5, 2.828_427)],
    );
    approximate(
        "lg2.approx.f32",
        2,
        &[
            (0.0, -inf),
            (-0.0, -inf),
            (-1.0, nan),
            (inf, inf),
            (1.0, 0.0),
            (8.0, 3.0),
            (0.25, -2.0),
            (nan, nan),
            (sub, -127.0),
        ],
    );
    approximate("lg2.approx.ftz.f32", 2, &[(sub, -inf), (-sub, -inf), (8.0, 3.0)]);
    approximate(
        "rcp.approx.ftz.f32",
        1,
        &[
            (0.0, inf),
            (-0.0, -inf),
            (inf, 0.0),
            (-inf, -0.0),
            (sub, inf),
            (-sub, -inf),
            (4.0, 0.25),
            (3.0, 1.0 / 3.0),
            (nan, nan),
            (2f32.powi(127), 0.0),
        ],
    );
    approximate("rcp.approx.f32", 1, &[(2f32.powi(127), 2f32.powi(-127)), (3.0, 1.0 / 3.0)]);
    approximate(
        "rsqrt.approx.f32",
        2,
        &[
            (0.0, inf),
            (-0.0, -inf),
            (inf, 0.0),
            (-1.0, nan),
            (-inf, nan),
            (4.0, 0.5),
            (2.0, 0.5f32.sqrt()),
            (nan, nan),
        ],
    );
    approximate("rsqrt.approx.ftz.f32", 2, &[(sub, inf), (-sub, -inf), (16.0, 0.25)]);
    approximate("sqrt.approx.f32", 2, &[(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-1.0, nan), (4.0, 2.0)]);
    approximate("sqrt.approx.ftz.f32", 2, &[(sub, 0.0), (-sub, -0.0), (9.0, 3.0)]);
    approximate("sin.approx.f32", 4, &[(0.0, 0.0), (-0.0, -0.0), (inf, nan), (nan, nan)]);
    approximate("cos.approx.f32", 4, &[(0.0, 1.0), (-inf, nan)]);
    approximate("tanh.approx.f32", 4, &[(0.0, 0.0), (-0.0, -0.0), (inf, 1.0), (-inf, -1.0), (nan, nan)]);
}

#[test]
fn halves_side_by_side() {
    // 1.0, 2.0, -0.5, 65504 in f16: 3c00 4000 b800 7bff; in bf16 1.0, 2.0, -0.5: 3f80 4000 bf00.
    let t = [B32; 2];
    check(
        "add.f16x2",
        B32,
        &t,
        &[[0x3c00_4000, 0x3c00_b800, 0x4000_3e00], [0x7bff_0001, 0x7bff_0001, 0x7c00_0002]],
    );
    check("mul.f16x2", B32, &t, &[[0x4000_4000, 0x4000_b800, 0x4400_bc00]]);
    check("sub.f16x2", B32, &t, &[[0x4000_3c00, 0x3c00_3c00, 0x3c00_0000]]);
    check("fma.rn.f16x2", B32, &[B32; 3], &[[0x4000_3c00, 0x4000_3c00, 0x3c00_3c00, 0x4500_4000]]);
    check("fma.rn.bf16x2", B32, &[B32; 3], &[[0x4000_3f80, 0x4000_3f80, 0x3f80_3f80, 0x40a0_4000]]);
    check("max.bf16x2", B32, &t, &[[0x3f80_bf00, 0x4000_7fc0, 0x4000_bf00], [0x0000_8000, 0x8000_0000, 0]]);
    check("min.f16x2", B32, &t, &[[0x3c00_7e00, 0x4000_b800, 0x3c00_b800]]);
    check(
        "add.f16",
        B16,
        &[B16; 2],
        &[[0x3c00, 0x4000, 0x4200], [0x6800, 0x3c00, 0x6800], [0x6801, 0x3c00, 0x6802]],
    );
    check("fma.rn.bf16", B16, &[B16; 3], &[[0x4000, 0x3f80, 0x3f80, 0x4040]]);
}
