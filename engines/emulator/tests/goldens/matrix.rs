//! Tiles: `ldmatrix`, `stmatrix` and `mma` against the manual's fragment layouts.

use crate::case::*;

fn kernel(declarations: &str, body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .b64 %p, %q, %a;\n\
         .reg .b32 %t, %s, %r<16>;\n.reg .f32 %f<8>;\n.shared .align 16 .b8 s[512];\n{declarations}\n\
         ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n\
         mov.u32 %t, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// Elements 0..256 of 16 bits, four 8x8 tiles, as words of 64 bits.
fn elements() -> Vec<u64> {
    (0..64u64).map(|w| (0..4).fold(0, |x, i| x | (4 * w + i) << (16 * i))).collect()
}

/// Loads 512 bytes into shared memory, then tiles whose rows lie in reverse order of tiles.
fn ldmatrix(n: usize, transposed: bool) -> Vec<u64> {
    let registers: Vec<String> = (0..n).map(|i| format!("%r{i}")).collect();
    let stores: String = (0..n).map(|i| format!("st.global.u32 [%a+{}], %r{i};\n", 8 * i)).collect();
    let body = format!(
        "mul.wide.u32 %a, %t, 16; add.u64 %a, %a, %p; mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s;\n\
         ld.global.v4.b32 {{%r8, %r9, %r10, %r11}}, [%a]; st.shared.v4.b32 [%s], {{%r8, %r9, %r10, %r11}}; bar.sync 0;\n\
         mov.u32 %s, s; xor.b32 %r12, %t, 24; mad.lo.u32 %s, %r12, 16, %s;\n\
         ldmatrix.sync.aligned.m8n8.x{n}{}.shared.b16 {{{}}}, [%s];\n\
         mul.wide.u32 %a, %t, {}; add.u64 %a, %a, %q;\n{stores}",
        if transposed { ".trans" } else { "" },
        registers.join(", "),
        8 * n
    );
    run(&kernel("", &body), 1, 32, &elements(), 32 * n)
}

#[test]
fn tiles_are_loaded_row_by_row() {
    for n in [1, 2, 4] {
        for transposed in [false, true] {
            let out = ldmatrix(n, transposed);
            for lane in 0..32u64 {
                for i in 0..n as u64 {
                    // Lane 8 i + r gives the row of tile i; its tile in memory is i ^ 3.
                    let element = |row: u64, column: u64| 64 * (i ^ 3) + 8 * row + column;
                    let (a, b) = (lane / 4, 2 * (lane % 4));
                    let expected = if transposed {
                        element(b, a) | element(b + 1, a) << 16
                    } else {
                        element(a, b) | element(a, b + 1) << 16
                    };
                    assert_eq!(
                        out[(lane * n as u64 + i) as usize],
                        expected,
                        "x{n} {transposed} lane {lane}.{i}"
                    );
                }
            }
        }
    }
}

#[test]
fn tiles_are_stored_as_they_are_loaded() {
    for transposed in ["", ".trans"] {
        let body = format!(
            "mul.wide.u32 %a, %t, 16; add.u64 %a, %a, %p; mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s;\n\
             ld.global.v4.b32 {{%r8, %r9, %r10, %r11}}, [%a]; st.shared.v4.b32 [%s], {{%r8, %r9, %r10, %r11}}; bar.sync 0;\n\
             ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{%r0, %r1, %r2, %r3}}, [%s]; bar.sync 0;\n\
             mov.u32 %s, s; xor.b32 %r12, %t, 8; mad.lo.u32 %s, %r12, 16, %s;\n\
             stmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 [%s], {{%r0, %r1, %r2, %r3}}; bar.sync 0;\n\
             mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s; ld.shared.v4.b32 {{%r8, %r9, %r10, %r11}}, [%s];\n\
             mul.wide.u32 %a, %t, 16; add.u64 %a, %a, %q; st.global.v4.b32 [%a], {{%r8, %r9, %r10, %r11}};"
        );
        let out = run(&kernel("", &body), 1, 32, &elements(), 64);
        let expected: Vec<u64> = (0..64).map(|w| elements()[w ^ 16]).collect();
        assert_eq!(out, expected, "{transposed}");
    }
}

/// Bits of a small integer as bf16 or f16.
fn small(x: i32, bf16: bool) -> u64 {
    let bits = (x as f32).to_bits();
    if bf16 || x == 0 {
        return u64::from(bits >> 16);
    }
    // Exponents are 8 and 5 bits wide with bias 127 and 15.
    u64::from((bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff))
}

/// The small integer that an f16 is.
fn integer(bits: u64) -> f32 {
    (-999..=999).find(|x| small(*x, false) == bits & 0xffff).expect("a small integer") as f32
}

/// `mma.m16n8k{k}` of integers, fragments by the manual's formulas. `half_sum` accumulates in f16.
fn product(k: usize, bf16: bool, half_sum: bool) {
    let a = |row: usize, column: usize| ((row * 7 + column * 3) % 11) as i32 - 5;
    let b = |row: usize, column: usize| ((row * 5 + column * 2) % 9) as i32 - 4;
    let c = |row: usize, column: usize| (row * 8 + column) as i32 % 13;
    let (n_a, n_b) = (k / 4, k / 8);
    let n_c = if half_sum { 2 } else { 4 };
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, thread) = (lane / 4, lane % 4);
        let mut words = [0u64; 12];
        for i in 0..2 * n_a {
            // a_i: row group or group + 8, column 2 thread + (i & 1), + 8 from the fifth on.
            let row = group + if (i / 2) % 2 == 1 { 8 } else { 0 };
            let column = 2 * thread + i % 2 + if i >= 4 { 8 } else { 0 };
            words[i / 2] |= small(a(row, column), bf16) << (16 * (i % 2));
        }
        for i in 0..2 * n_b {
            let row = 2 * thread + i % 2 + if i >= 2 { 8 } else { 0 };
            words[4 + i / 2] |= small(b(row, group), bf16) << (16 * (i % 2));
        }
        for i in 0..4 {
            let (row, column) = (group + 8 * (i / 2), 2 * thread + i % 2);
            if half_sum {
                words[8 + i / 2] |= small(c(row, column), false) << (16 * (i % 2));
            } else {
                words[8 + i] = f(c(row, column) as f32);
            }
        }
        input.extend(words);
    }
    let ty = if bf16 { "bf16" } else { "f16" };
    let sum = if half_sum { "f16" } else { "f32" };
    let list =
        |from: usize, n: usize| (from..from + n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", ");
    let sums = |from: usize| {
        let name = if half_sum { "%r" } else { "%f" };
        (0..n_c).map(|i| format!("{name}{}", from + i)).collect::<Vec<_>>().join(", ")
    };
    let mut body = "mul.wide.u32 %a, %t, 96; add.u64 %a, %a, %p;\n".to_string();
    for i in 0..8 {
        body += &format!("ld.global.b32 %r{i}, [%a+{}];\n", 8 * i);
    }
    for i in 0..n_c {
        let register = if half_sum { format!("%r{}", 8 + i) } else { format!("%f{i}") };
        body += &format!("ld.global.b32 {register}, [%a+{}];\n", 64 + 8 * i);
    }
    let (d, c_list) = if half_sum { (sums(12), sums(8)) } else { (sums(4), sums(0)) };
    body += &format!(
        "mma.sync.aligned.m16n8k{k}.row.col.{sum}.{ty}.{ty}.{sum} {{{d}}}, {{{}}}, {{{}}}, {{{c_list}}};\n\
         mul.wide.u32 %a, %t, 32; add.u64 %a, %a, %q;\n",
        list(0, n_a),
        list(4, n_b)
    );
    for i in 0..n_c {
        let register = if half_sum { format!("%r{}", 12 + i) } else { format!("%f{}", 4 + i) };
        body += &format!("st.global.b32 [%a+{}], {register};\n", 8 * i);
    }
    let out = run(&kernel("", &body), 1, 32, &input, 128);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let exact: i32 = (0..k).map(|x| a(row, x) * b(x, column)).sum::<i32>() + c(row, column);
            let got = if half_sum {
                integer(out[4 * lane + i / 2] >> (16 * (i % 2)))
            } else {
                f32::from_bits(out[4 * lane + i] as u32)
            };
            assert_eq!(got, exact as f32, "m16n8k{k} {ty} {sum}: [{row}, {column}]");
        }
    }
}

#[test]
fn products_of_integers_are_exact() {
    product(16, true, false);
    product(16, false, false);
    product(8, true, false);
    product(8, false, false);
    product(16, false, true);
}
