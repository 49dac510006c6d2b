//! Loads, stores, atomic operations, asynchronous copies, address spaces.

use crate::case::*;

/// A kernel of one thread block: `%p` and `%q` are the buffers, `%t` the thread; declare what else is used.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .b64 %p, %q, %a, %b, %d<8>;\n\
         .reg .b32 %t, %r<16>;\n.reg .b16 %h<8>;\n.reg .f32 %f<8>;\n.reg .pred %c<4>;\n{declarations}\n\
         ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n\
         mov.u32 %t, %tid.x;\n{body}\nret;\n}}\n"
    )
}

#[test]
fn loads_extend_and_stores_cut() {
    let body = "
        ld.global.u8 %r0, [%p+3];  st.global.u32 [%q], %r0;
        ld.global.s8 %r1, [%p+3];  st.global.u32 [%q+8], %r1;
        ld.global.s16 %r2, [%p+2]; st.global.u32 [%q+16], %r2;
        ld.global.u16 %r3, [%p+2]; st.global.u32 [%q+24], %r3;
        ld.global.s32 %d0, [%p];   st.global.u64 [%q+32], %d0;
        ld.global.u32 %r4, [%p];   st.global.u8 [%q+40], %r4; st.global.u16 [%q+44], %r4;
        ld.global.u8 %h0, [%p+3];  st.global.u16 [%q+48], %h0;
        ld.global.v4.u8 {%r5, %r6, %r7, %r8}, [%p];
        shl.b32 %r5, %r5, 8; or.b32 %r5, %r5, %r8; st.global.u32 [%q+56], %r5;";
    let out = run(&kernel("", body), 1, 1, &[0x8123_4567], 8);
    let expected =
        [0x81, 0xffff_ff81, 0xffff_8123, 0x8123, 0xffff_ffff_8123_4567, 0x4567_0000_0067, 0x81, 0x6781];
    assert_eq!(out, expected, "{out:#x?}");
}

#[test]
fn vectors_lie_side_by_side() {
    let body = "
        ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%p]; st.global.v4.b32 [%q], {%r3, %r2, %r1, %r0};
        ld.global.v2.b64 {%d0, %d1}, [%p];           st.global.v2.b64 [%q+16], {%d1, %d0};
        ld.global.nc.v4.b16 {%h0, %h1, %h2, %h3}, [%p]; st.global.v4.b16 [%q+32], {%h3, %h2, %h1, %h0};
        ld.global.v2.f32 {%f0, %f1}, [%p+8];         st.global.v2.f32 [%q+40], {%f1, %f0};";
    let out = run(&kernel("", body), 1, 1, &[0x4444_3333_2222_1111, 0x8888_7777_6666_5555], 6);
    let expected = [
        0x6666_5555_8888_7777,
        0x2222_1111_4444_3333,
        0x8888_7777_6666_5555,
        0x4444_3333_2222_1111,
        0x1111_2222_3333_4444,
        0x6666_5555_8888_7777,
    ];
    assert_eq!(out, expected, "{out:#x?}");
}

#[test]
fn moves_pack_and_unpack() {
    let body = "
        ld.global.b64 %d0, [%p];
        mov.b64 {%r0, %r1}, %d0; mov.b64 %d1, {%r1, %r0}; st.global.b64 [%q], %d1;
        mov.b32 {%h0, %h1}, %r0; mov.b32 %r2, {%h1, %h0}; st.global.b32 [%q+8], %r2;
        mov.b64 {%h0, %h1, %h2, %h3}, %d0; mov.b64 %d2, {%h3, %h2, %h1, %h0}; st.global.b64 [%q+16], %d2;
        mov.b32 %f0, %r0; mov.b32 %r3, %f0; st.global.b32 [%q+24], %r3;";
    let out = run(&kernel("", body), 1, 1, &[0x4444_3333_2222_1111], 4);
    assert_eq!(out, [0x2222_1111_4444_3333, 0x1111_2222, 0x1111_2222_3333_4444, 0x2222_1111], "{out:#x?}");
}

/// `op` on device and on shared memory by one thread: memory before, operands, the value answered, memory after.
fn atomic(op: &str, wide: bool, rows: &[(u64, &[u64], u64)]) {
    let (ty, reg) = if wide { ("b64", "d") } else { ("b32", "r") };
    for (before, operands, after) in rows {
        let literal = |x: &u64| if op.ends_with("f32") { format!("0f{x:08X}") } else { format!("{x:#x}") };
        let list: Vec<String> = operands.iter().map(literal).collect();
        let list = list.join(", ");
        let mut body = format!(
            "ld.global.{ty} %{reg}0, [%p]; st.global.{ty} [%q], %{reg}0; st.shared.{ty} [s], %{reg}0;\n"
        );
        for (space, place, at) in [("global", "%q", 8), ("shared", "s", 16)] {
            body += &format!(
                "atom.{space}.{op} %{reg}1, [{place}], {list}; st.global.{ty} [%q+{at}], %{reg}1;\n"
            );
        }
        body += &format!("ld.shared.{ty} %{reg}2, [s]; st.global.{ty} [%q+24], %{reg}2;");
        let out = run(&kernel(".shared .align 8 .b8 s[8];", &body), 1, 1, &[*before], 4);
        assert_eq!(out, [*after, *before, *before, *after], "{op} {before:#x} {operands:#x?}: {out:#x?}");
    }
}

#[test]
fn atomic_operations() {
    atomic("add.u32", false, &[(5, &[7], 12), (0xffff_ffff, &[2], 1)]);
    atomic("add.u64", true, &[(0xffff_ffff, &[2], 0x1_0000_0001)]);
    atomic("max.s32", false, &[(0xffff_ffff, &[3], 3)]);
    atomic("max.u32", false, &[(0xffff_ffff, &[3], 0xffff_ffff)]);
    atomic("min.s32", false, &[(0xffff_ffff, &[3], 0xffff_ffff)]);
    atomic("min.u32", false, &[(0xffff_ffff, &[3], 3)]);
    atomic("and.b32", false, &[(0xff00, &[0x0ff0], 0x0f00)]);
    atomic("or.b32", false, &[(0xff00, &[0x0ff0], 0xfff0)]);
    atomic("xor.b32", false, &[(0xff00, &[0x0ff0], 0xf0f0)]);
    atomic("exch.b32", false, &[(5, &[9], 9)]);
    atomic("exch.b64", true, &[(5, &[1 << 50], 1 << 50)]);
    atomic("cas.b32", false, &[(5, &[5, 9], 9), (5, &[6, 9], 5)]);
    atomic("cas.b64", true, &[(1 << 40, &[1 << 40, 9], 9), (5, &[6, 9], 5)]);
    atomic("inc.u32", false, &[(5, &[6], 6), (6, &[6], 0), (9, &[6], 0)]);
    atomic("dec.u32", false, &[(5, &[6], 4), (0, &[6], 6), (9, &[6], 6)]);
    atomic("add.f32", false, &[(f(1.5), &[f(2.25)], f(3.75))]);
}

#[test]
fn lanes_update_one_address_one_by_one() {
    let body = "
        atom.global.add.u32 %r0, [%q], 1;
        mul.wide.u32 %a, %r0, 8; add.u64 %a, %a, %q; st.global.u32 [%a+8], 1;
        red.global.max.u32 [%q+264], %t;
        red.shared.add.u32 [s], 1; bar.sync 0; ld.shared.u32 %r1, [s]; st.global.u32 [%q+272], %r1;";
    let init = "setp.eq.u32 %c0, %t, 0; @%c0 st.shared.u32 [s], 100; bar.sync 0;";
    let out = run(&kernel(".shared .align 4 .b8 s[4];", &format!("{init}{body}")), 1, 32, &[], 35);
    assert_eq!(out[0], 32);
    assert_eq!(out[1..33], [1; 32], "every old value once");
    assert_eq!(out[33..], [31, 132]);
}

#[test]
fn asynchronous_copies_fill_with_zeros() {
    let body = "
        mov.u32 %r0, s;
        st.shared.v4.b32 [s], {7, 7, 7, 7}; st.shared.v4.b32 [s+16], {7, 7, 7, 7};
        cp.async.cg.shared.global [%r0], [%p], 16, 4;
        cp.async.ca.shared.global [%r0+16], [%p], 4;
        cp.async.ca.shared.global [%r0+24], [%p+8], 8, 0;
        cp.async.commit_group; cp.async.wait_group 0;
        ld.shared.v2.b64 {%d0, %d1}, [s]; st.global.v2.b64 [%q], {%d0, %d1};
        ld.shared.v2.b64 {%d0, %d1}, [s+16]; st.global.v2.b64 [%q+16], {%d0, %d1};";
    let body = body
        .replace("{7, 7, 7, 7}", "{%r1, %r1, %r1, %r1}")
        .replace("mov.u32 %r0", "mov.u32 %r1, 7; mov.u32 %r0");
    let out = run(&kernel(".shared .align 16 .b8 s[32];", &body), 1, 1, &[0x2222_2222_1111_1111, 9], 4);
    assert_eq!(out, [0x1111_1111, 0, 0x7_1111_1111, 0], "{out:#x?}");
}

#[test]
fn generic_addresses_reach_all_spaces() {
    let body = "
        mov.u32 %r0, s; cvt.u64.u32 %a, %r0; cvta.shared.u64 %a, %a;
        st.u32 [%a], 77; ld.shared.u32 %r1, [s]; st.global.u32 [%q], %r1;
        cvta.global.u64 %b, %q; ld.u32 %r2, [%b]; st.u32 [%b+8], %r2;
        isspacep.shared %c0, %a; selp.u32 %r3, 1, 0, %c0; st.global.u32 [%q+16], %r3;
        isspacep.shared %c0, %b; selp.u32 %r3, 1, 0, %c0; st.global.u32 [%q+24], %r3;
        cvta.to.shared.u64 %a, %a; cvt.u32.u64 %r4, %a; sub.u32 %r4, %r4, %r0; st.global.u32 [%q+32], %r4;
        st.local.u32 [l+4], 55; mov.u64 %a, l; cvta.local.u64 %a, %a; ld.u32 %r5, [%a+4]; st.global.u32 [%q+40], %r5;";
    let body = body.replace(", 77;", ", %r7;").replace(", 55;", ", %r8;");
    let body = format!("mov.u32 %r7, 77; mov.u32 %r8, 55;{body}");
    let declarations = ".shared .align 4 .b8 s[4];\n.local .align 4 .b8 l[8];";
    let out = run(&kernel(declarations, &body), 1, 1, &[], 6);
    assert_eq!(out, [77, 77, 1, 0, 0, 55]);
}

#[test]
fn constants_and_special_registers() {
    let table = ".const .align 4 .u32 table[4] = {3, 1, 4, 1};";
    let body = "
        mul.wide.u32 %a, %t, 8; add.u64 %a, %a, %q;
        mov.u32 %r0, %ntid.x; mov.u32 %r1, %nctaid.x; mad.lo.u32 %r0, %r0, 10, %r1; mov.u32 %r2, %laneid;
        mad.lo.u32 %r0, %r0, 100, %r2; mov.u32 %r3, %warpid; mad.lo.u32 %r0, %r0, 10, %r3;
        st.global.u32 [%a], %r0;
        ld.const.u32 %r5, [table+8]; st.global.u32 [%a+4], %r5;";
    let ptx = kernel("", body).replace(".visible", &format!("{table}\n.visible"));
    let out = run(&ptx, 1, 64, &[], 64);
    for (t, word) in out.iter().enumerate() {
        let t = t as u64;
        assert_eq!(*word, 4 << 32 | ((641 * 100 + t % 32) * 10 + t / 32), "{t}");
    }
}

#[test]
fn guards_switch_lanes_off() {
    let body = "
        mul.wide.u32 %a, %t, 8; add.u64 %a, %a, %q; mov.u32 %r0, 5;
        setp.lt.u32 %c0, %t, 10; @%c0 mov.u32 %r0, 6; @!%c0 add.u32 %r0, %r0, 2;
        setp.ge.u32 %c1, %t, 30; @%c1 bra done;
        and.b32 %r1, %t, 1; setp.eq.u32 %c2, %r1, 0; @%c2 bra even;
        add.u32 %r0, %r0, 100; bra join;
        even: add.u32 %r0, %r0, 200;
        join: st.global.u32 [%a], %r0;
        done:";
    let out = run(&kernel("", body), 1, 32, &[], 32);
    for (t, word) in out.iter().enumerate() {
        let base = if t < 10 { 6 } else { 7 } + if t % 2 == 0 { 200 } else { 100 };
        assert_eq!(*word, if t < 30 { base } else { 0 }, "{t}");
    }
}

#[test]
fn loops_end_lane_by_lane() {
    // Collatz: lanes leave the loop at different times.
    let body = "
        mul.wide.u32 %a, %t, 8; add.u64 %a, %a, %q; add.u32 %r0, %t, 1; mov.u32 %r1, 0;
        loop: setp.eq.u32 %c0, %r0, 1; @%c0 bra end;
        and.b32 %r2, %r0, 1; setp.ne.u32 %c1, %r2, 0;
        @%c1 mad.lo.u32 %r0, %r0, 3, 1; @!%c1 shr.u32 %r0, %r0, 1;
        add.u32 %r1, %r1, 1; bra loop;
        end: st.global.u32 [%a], %r1;";
    let out = run(&kernel("", body), 1, 32, &[], 32);
    let steps = |mut n: u64| {
        let mut count = 0;
        while n != 1 {
            n = if n % 2 == 1 { 3 * n + 1 } else { n / 2 };
            count += 1;
        }
        count
    };
    assert_eq!(out, (1..=32).map(steps).collect::<Vec<u64>>());
}
