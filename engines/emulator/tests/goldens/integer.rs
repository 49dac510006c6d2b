//! Integers and bits.

use crate::case::*;

const MIN: u64 = 0x8000_0000;
const MAX: u64 = 0x7fff_ffff;
const ALL: u64 = 0xffff_ffff;
const M7: u64 = 0xffff_fff9; // -7

#[test]
fn sums_wrap_or_saturate() {
    check("add.s32", B32, &[B32; 2], &[[MAX, 1, MIN], [ALL, 1, 0], [5, M7, 0xffff_fffe]]);
    check("add.u32", B32, &[B32; 2], &[[ALL, 2, 1]]);
    check("add.sat.s32", B32, &[B32; 2], &[[MAX, 1, MAX], [MIN, ALL, MIN], [5, M7, 0xffff_fffe]]);
    check("sub.s32", B32, &[B32; 2], &[[MIN, 1, MAX], [3, 5, 0xffff_fffe]]);
    check("sub.sat.s32", B32, &[B32; 2], &[[MIN, 1, MIN], [MAX, ALL, MAX], [3, 5, 0xffff_fffe]]);
    check("add.s64", B64, &[B64; 2], &[[!0, 1, 0], [ALL, 1, 1 << 32]]);
    check("sub.u64", B64, &[B64; 2], &[[0, 1, !0], [1 << 32, 1, ALL]]);
    check("add.s16", B16, &[B16; 2], &[[0x7fff, 1, 0x8000], [0xffff, 1, 0]]);
    check("sub.u16", B16, &[B16; 2], &[[0, 1, 0xffff]]);
}

#[test]
fn products_have_low_high_and_wide_parts() {
    check("mul.lo.s32", B32, &[B32; 2], &[[M7, 3, 0xffff_ffeb], [0x10000, 0x10000, 0]]);
    check("mul.hi.s32", B32, &[B32; 2], &[[M7, 3, ALL], [MIN, MIN, 0x4000_0000], [ALL, ALL, 0]]);
    check("mul.hi.u32", B32, &[B32; 2], &[[M7, 3, 2], [ALL, ALL, 0xffff_fffe], [MIN, 2, 1]]);
    check("mul.wide.s32", B64, &[B32; 2], &[[M7, 3, (-21i64) as u64], [MIN, MIN, 1 << 62]]);
    check("mul.wide.u32", B64, &[B32; 2], &[[M7, 3, 0x2_ffff_ffeb], [ALL, ALL, 0xffff_fffe_0000_0001]]);
    check("mul.wide.s16", B32, &[B16; 2], &[[0xfff9, 3, 0xffff_ffeb], [0x8000, 0x8000, 0x4000_0000]]);
    check("mul.wide.u16", B32, &[B16; 2], &[[0xfff9, 3, 0x2_ffeb], [0xffff, 0xffff, 0xfffe_0001]]);
    check("mul.lo.u16", B16, &[B16; 2], &[[0x100, 0x100, 0], [0xffff, 3, 0xfffd]]);
    check("mul.lo.s64", B64, &[B64; 2], &[[!0, 3, (-3i64) as u64], [1 << 32, 1 << 32, 0]]);
    check("mul.hi.u64", B64, &[B64; 2], &[[!0, !0, !1], [1 << 63, 2, 1]]);
    check("mul.hi.s64", B64, &[B64; 2], &[[!0, !0, 0], [!0, 3, !0], [1 << 63, 1 << 63, 1 << 62]]);
    check("mad.lo.s32", B32, &[B32; 3], &[[M7, 3, 22, 1], [ALL, ALL, ALL, 0]]);
    check("mad.hi.u32", B32, &[B32; 3], &[[ALL, ALL, 2, 0], [MIN, 2, 5, 6]]);
    check("mad.hi.s32", B32, &[B32; 3], &[[M7, 3, 5, 4]]);
    check("mad.wide.s32", B64, &[B32, B32, B64], &[[M7, 3, 1, (-20i64) as u64]]);
    check("mad.wide.u32", B64, &[B32, B32, B64], &[[ALL, 8, 1 << 40, (1 << 40) + 8 * ALL]]);
    check("mad.wide.u16", B32, &[B16, B16, B32], &[[0xffff, 2, 1, 0x1_ffff]]);
    check("mad.lo.u64", B64, &[B64; 3], &[[!0, 2, 5, 3]]);
}

#[test]
fn quotients_truncate() {
    check("div.s32", B32, &[B32; 2], &[[M7, 2, 0xffff_fffd], [7, 0xffff_fffe, 0xffff_fffd], [M7, M7, 1]]);
    check("div.u32", B32, &[B32; 2], &[[M7, 2, 0x7fff_fffc], [7, 8, 0]]);
    check("rem.s32", B32, &[B32; 2], &[[M7, 2, ALL], [7, 0xffff_fffe, 1]]);
    check("rem.u32", B32, &[B32; 2], &[[M7, 4, 1], [7, 8, 7]]);
    check("div.s64", B64, &[B64; 2], &[[(-7i64) as u64, 2, (-3i64) as u64]]);
    check("div.u64", B64, &[B64; 2], &[[!0, 1 << 32, ALL]]);
    check("rem.u64", B64, &[B64; 2], &[[!0, 10, 5]]);
    check("rem.s64", B64, &[B64; 2], &[[(-7i64) as u64, 4, (-3i64) as u64]]);
}

#[test]
fn what_has_no_quotient_is_no_crash() {
    // The manual leaves the values open; MIN / -1 overflows.
    for op in ["div.s32", "div.u32", "rem.s32", "rem.u32"] {
        for (a, b) in [(7, 0), (0, 0), (MIN, ALL)] {
            let ptx = format!(
                "{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .b32 %a, %b;\n.reg .b64 %q;\n\
                 ld.param.u64 %q, [out];\nmov.u32 %a, {a};\nmov.u32 %b, {b};\n{op} %a, %a, %b;\n\
                 mov.u32 %a, 77;\nst.global.u32 [%q], %a;\nret;\n}}\n"
            );
            assert_eq!(run(&ptx, 1, 32, &[], 1), [77]);
        }
    }
}

#[test]
fn extremes_and_signs() {
    check("min.s32", B32, &[B32; 2], &[[M7, 3, M7], [MAX, MIN, MIN]]);
    check("min.u32", B32, &[B32; 2], &[[M7, 3, 3]]);
    check("max.s32", B32, &[B32; 2], &[[M7, 3, 3]]);
    check("max.u32", B32, &[B32; 2], &[[M7, 3, M7]]);
    check("max.s64", B64, &[B64; 2], &[[!0, 3, 3]]);
    check("min.u64", B64, &[B64; 2], &[[!0, 3, 3]]);
    check("min.s16", B16, &[B16; 2], &[[0xffff, 3, 0xffff]]);
    check("max.u16", B16, &[B16; 2], &[[0xffff, 3, 0xffff]]);
    check("abs.s32", B32, &[B32], &[[M7, 7], [MIN, MIN], [5, 5]]);
    check("neg.s32", B32, &[B32], &[[M7, 7], [MIN, MIN], [0, 0]]);
    check("abs.s64", B64, &[B64], &[[!0, 1]]);
    check("neg.s64", B64, &[B64], &[[1, !0]]);
}

#[test]
fn logic() {
    check("and.b32", B32, &[B32; 2], &[[0xff00_ff00, 0x0ff0_0ff0, 0x0f00_0f00]]);
    check("or.b32", B32, &[B32; 2], &[[0xff00_ff00, 0x0ff0_0ff0, 0xfff0_fff0]]);
    check("xor.b64", B64, &[B64; 2], &[[!0, 1 << 63, !0 >> 1]]);
    check("and.b16", B16, &[B16; 2], &[[0xff0f, 0x0ff0, 0x0f00]]);
    check("not.b32", B32, &[B32], &[[0, ALL], [0x0f, 0xffff_fff0]]);
    check("not.b64", B64, &[B64], &[[0, !0]]);
    check("and.pred", Pred, &[Pred; 2], &[[1, 1, 1], [1, 0, 0]]);
    check("or.pred", Pred, &[Pred; 2], &[[1, 0, 1], [0, 0, 0]]);
    check("xor.pred", Pred, &[Pred; 2], &[[1, 0, 1], [1, 1, 0]]);
    check("not.pred", Pred, &[Pred], &[[1, 0], [0, 1]]);
}

#[test]
fn lop3_looks_its_table_up() {
    let (a, b, c) = (0b1111_0000, 0b1100_1100, 0b1010_1010);
    // With these operands the lowest byte of the result is the table itself.
    for table in [0x80u64, 0xfe, 0x96, 0xca, 0x3c, 0x01, 0xe8, 0xf8, 0x2a, 0x00, 0xff] {
        let high = if table & 1 == 1 { 0xffff_ff00 } else { 0 };
        check(&format!("lop3.b32;{table:#x}"), B32, &[B32; 3], &[[a, b, c, high | table]]);
    }
    let rows = [[0xffff_0000, 0x1234_5678, 0x9abc_def0, 0x1234_def0]]; // a ? b : c
    check("lop3.b32;0xca", B32, &[B32; 3], &rows);
}

#[test]
fn shifts_clamp_at_the_width() {
    let rows = [[1, 31, MIN], [1, 32, 0], [1, 33, 0], [3, ALL, 0], [5, 0, 5]];
    check("shl.b32", B32, &[B32; 2], &rows);
    check("shr.u32", B32, &[B32; 2], &[[MIN, 31, 1], [MIN, 32, 0], [ALL, ALL, 0], [ALL, 4, 0x0fff_ffff]]);
    check(
        "shr.s32",
        B32,
        &[B32; 2],
        &[[MIN, 31, ALL], [MIN, 32, ALL], [MIN, ALL, ALL], [MAX, 99, 0], [M7, 1, 0xffff_fffc]],
    );
    check("shr.b32", B32, &[B32; 2], &[[MIN, 31, 1]]);
    check("shl.b64", B64, &[B64, B32], &[[1, 63, 1 << 63], [1, 64, 0], [1, 32, 1 << 32], [1, ALL, 0]]);
    check("shr.u64", B64, &[B64, B32], &[[1 << 63, 63, 1], [!0, 64, 0]]);
    check("shr.s64", B64, &[B64, B32], &[[1 << 63, 63, !0], [1 << 63, 64, !0], [1 << 62, 70, 0]]);
    check("shl.b16", B16, &[B16, B32], &[[1, 15, 0x8000], [1, 16, 0]]);
    check("shr.u16", B16, &[B16, B32], &[[0x8000, 15, 1], [0x8000, 16, 0]]);
    check("shr.s16", B16, &[B16, B32], &[[0x8000, 15, 0xffff], [0x8000, 40, 0xffff]]);
}

#[test]
fn funnel_shifts() {
    let (lo, hi) = (0x1111_2222, 0x8888_9999);
    let t = [B32; 3];
    check(
        "shf.l.clamp.b32",
        B32,
        &t,
        &[[lo, hi, 0, hi], [lo, hi, 8, 0x8899_9911], [lo, hi, 32, lo], [lo, hi, 40, lo]],
    );
    check(
        "shf.l.wrap.b32",
        B32,
        &t,
        &[[lo, hi, 0, hi], [lo, hi, 8, 0x8899_9911], [lo, hi, 32, hi], [lo, hi, 40, 0x8899_9911]],
    );
    check(
        "shf.r.clamp.b32",
        B32,
        &t,
        &[[lo, hi, 0, lo], [lo, hi, 8, 0x9911_1122], [lo, hi, 32, hi], [lo, hi, 99, hi]],
    );
    check(
        "shf.r.wrap.b32",
        B32,
        &t,
        &[[lo, hi, 0, lo], [lo, hi, 8, 0x9911_1122], [lo, hi, 32, lo], [lo, hi, 40, 0x9911_1122]],
    );
}

#[test]
fn fields() {
    let x = 0x89ab_cdef;
    let t = [B32; 3];
    check(
        "bfe.u32",
        B32,
        &t,
        &[
            [x, 8, 12, 0xbcd],
            [x, 0, 32, x],
            [x, 28, 8, 8],
            [x, 32, 4, 0],
            [x, 4, 0, 0],
            [x, 0x108, 0x10c, 0xbcd],
        ],
    );
    check(
        "bfe.s32",
        B32,
        &t,
        &[
            [x, 8, 12, 0xffff_fbcd],
            [x, 4, 4, 0xffff_fffe],
            [x, 12, 3, 0xffff_fffc], // bits 100 of 0xc
            [x, 28, 8, 0xffff_fff8],
            [x, 40, 4, ALL],
            [0x7000_0000, 40, 4, 0],
            [x, 4, 0, 0],
        ],
    );
    check("bfe.u64", B64, &[B64, B32, B32], &[[0x0123_4567_89ab_cdef, 28, 16, 0x5678], [!0, 60, 20, 15]]);
    check(
        "bfe.s64",
        B64,
        &[B64, B32, B32],
        &[[0x0123_4567_89ab_cdef, 24, 8, (-119i64) as u64], [1 << 63, 63, 1, !0]],
    );
    let t = [B32; 4];
    check(
        "bfi.b32",
        B32,
        &t,
        &[
            [0xabc, ALL, 8, 12, 0xfffa_bcff],
            [0x0, ALL, 28, 8, 0x0fff_ffff],
            [5, x, 0, 0, x],
            [5, x, 32, 4, x],
            [x, 0, 0, 32, x],
        ],
    );
    check("bfi.b64", B64, &[B64, B64, B32, B32], &[[0xab, 0, 56, 8, 0xab << 56], [!0, 0, 60, 9, 0xf << 60]]);
}

#[test]
fn counting_bits() {
    check("clz.b32", B32, &[B32], &[[0, 32], [1, 31], [MIN, 0]]);
    check("clz.b64", B32, &[B64], &[[0, 64], [1, 63], [1 << 40, 23]]);
    check("popc.b32", B32, &[B32], &[[0, 0], [ALL, 32], [0x8001, 2]]);
    check("popc.b64", B32, &[B64], &[[!0, 64], [0x8000_0000_0000_0001, 2]]);
    check("brev.b32", B32, &[B32], &[[1, MIN], [0x1234_5678, 0x1e6a_2c48]]);
    check("brev.b64", B64, &[B64], &[[1, 1 << 63], [0xf, 0xf << 60]]);
    check("bfind.u32", B32, &[B32], &[[0, ALL], [1, 0], [MIN, 31], [0x00f0_0000, 23]]);
    check("bfind.s32", B32, &[B32], &[[0, ALL], [ALL, ALL], [0xffff_fffe, 0], [MIN, 30], [5, 2]]);
    check("bfind.shiftamt.u32", B32, &[B32], &[[0, ALL], [1, 31], [MIN, 0]]);
    check("bfind.u64", B32, &[B64], &[[0, ALL], [1 << 40, 40]]);
}

#[test]
fn prmt_takes_bytes() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    let t = [B32; 3];
    check(
        "prmt.b32",
        B32,
        &t,
        &[[a, b, 0x3210, a], [a, b, 0x7654, b], [a, b, 0x5410, 0x5544_1100], [a, b, 0x0123, 0x0011_2233]],
    );
    // Bit 3 of a selector repeats the byte's sign.
    check(
        "prmt.b32",
        B32,
        &t,
        &[[0x80, 0x7f, 0x8888, ALL], [0x80, 0x7f, 0xc880, 0x00ff_ff80], [a, b, 0x1_3210, a]],
    );
    check(
        "prmt.b32.f4e",
        B32,
        &t,
        &[[a, b, 0, a], [a, b, 1, 0x4433_2211], [a, b, 2, 0x5544_3322], [a, b, 3, 0x6655_4433]],
    );
    check(
        "prmt.b32.b4e",
        B32,
        &t,
        &[[a, b, 0, 0x5566_7700], [a, b, 1, 0x6677_0011], [a, b, 2, 0x7700_1122], [a, b, 3, 0x0011_2233]],
    );
    check("prmt.b32.rc8", B32, &t, &[[a, b, 0, 0], [a, b, 1, 0x1111_1111], [a, b, 3, 0x3333_3333]]);
    check(
        "prmt.b32.ecl",
        B32,
        &t,
        &[[a, b, 0, a], [a, b, 1, 0x3322_1111], [a, b, 2, 0x3322_2222], [a, b, 3, 0x3333_3333]],
    );
    check(
        "prmt.b32.ecr",
        B32,
        &t,
        &[[a, b, 0, 0], [a, b, 1, 0x1111_1100], [a, b, 2, 0x2222_1100], [a, b, 3, a]],
    );
    check(
        "prmt.b32.rc16",
        B32,
        &t,
        &[[a, b, 0, 0x1100_1100], [a, b, 1, 0x3322_3322], [a, b, 2, 0x1100_1100]],
    );
}

#[test]
fn choices() {
    check("selp.b32", B32, &[B32, B32, Pred], &[[5, 6, 1, 5], [5, 6, 0, 6]]);
    check("selp.b64", B64, &[B64, B64, Pred], &[[1 << 40, 6, 1, 1 << 40], [5, 1 << 50, 0, 1 << 50]]);
    check("slct.u32.s32", B32, &[B32; 3], &[[5, 6, 0, 5], [5, 6, ALL, 6], [5, 6, MAX, 5]]);
}

#[test]
fn comparisons() {
    let both = |op: &str, signed: bool, less: u64, equal: u64, greater: u64| {
        let t = if signed { "s32" } else { "u32" };
        // -7 against 3: smaller signed, larger unsigned.
        let first = if signed { less } else { greater };
        let rows = [[M7, 3, first], [3, 3, equal], [3, 5, less], [5, 3, greater]];
        check(&format!("setp.{op}.{t}"), Pred, &[B32; 2], &rows);
    };
    for signed in [false, true] {
        both("eq", signed, 0, 1, 0);
        both("ne", signed, 1, 0, 1);
        both("lt", signed, 1, 0, 0);
        both("le", signed, 1, 1, 0);
        both("gt", signed, 0, 0, 1);
        both("ge", signed, 0, 1, 1);
    }
    check("setp.lo.u32", Pred, &[B32; 2], &[[3, M7, 1], [M7, 3, 0]]);
    check("setp.hs.u32", Pred, &[B32; 2], &[[3, 3, 1], [M7, 3, 1], [3, M7, 0]]);
    check("setp.lt.s64", Pred, &[B64; 2], &[[!0, 0, 1], [0, !0, 0]]);
    check("setp.lt.u64", Pred, &[B64; 2], &[[!0, 0, 0], [0, !0, 1]]);
    check("setp.lt.s16", Pred, &[B16; 2], &[[0xffff, 0, 1]]);
    check("setp.eq.b64", Pred, &[B64; 2], &[[1 << 40, 0, 0], [1 << 40, 1 << 40, 1]]);
    check("setp.lt.and.s32", Pred, &[B32, B32, Pred], &[[1, 2, 1, 1], [1, 2, 0, 0], [2, 1, 1, 0]]);
    check("setp.lt.or.s32", Pred, &[B32, B32, Pred], &[[1, 2, 0, 1], [2, 1, 1, 1], [2, 1, 0, 0]]);
    check("setp.lt.xor.s32", Pred, &[B32, B32, Pred], &[[1, 2, 1, 0], [2, 1, 1, 1]]);
    check("set.lt.u32.s32", B32, &[B32; 2], &[[M7, 3, ALL], [3, M7, 0]]);
    check("set.lt.f32.s32", F32, &[B32; 2], &[[M7, 3, f(1.0)], [3, M7, 0]]);
}

#[test]
fn sums_of_bytes() {
    check("dp4a.u32.u32", B32, &[B32; 3], &[[0x0102_0304, 0xff01_0101, 10, 10 + 255 + 2 + 3 + 4]]);
    check(
        "dp4a.s32.s32",
        B32,
        &[B32; 3],
        &[[0x0102_0304, 0xff01_0101, 10, 10 - 1 + 2 + 3 + 4], [0x80, 0x80, 0, 0x4000]],
    );
}
