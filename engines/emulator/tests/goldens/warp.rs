//! Lanes exchange.

use crate::case::*;

/// Runs `body` in one warp: `%x` holds the lane's input, `%y` goes out and `%c` as its flag in bit 32.
fn exchange(body: &str, input: &[u64; 32]) -> Vec<(u32, bool)> {
    let ptx = format!(
        "{HEAD}.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n.reg .b64 %p, %q;\n.reg .b32 %t, %x, %y, %z, %m;\n\
         .reg .pred %c, %e;\n\
         ld.param.u64 %p, [in];\nld.param.u64 %q, [out];\ncvta.to.global.u64 %p, %p;\ncvta.to.global.u64 %q, %q;\n\
         mov.u32 %t, %tid.x;\nmad.wide.u32 %p, %t, 8, %p;\nmad.wide.u32 %q, %t, 8, %q;\nld.global.u32 %x, [%p];\n\
         mov.u32 %y, 0;\nsetp.ne.u32 %c, %t, %t;\n{body}\n\
         st.global.u32 [%q], %y;\nselp.u32 %y, 1, 0, %c;\nst.global.u32 [%q+4], %y;\nret;\n}}\n"
    );
    run(&ptx, 1, 32, input, 32).iter().map(|w| (*w as u32, w >> 32 == 1)).collect()
}

fn lanes(value: impl Fn(u32) -> u64) -> [u64; 32] {
    std::array::from_fn(|l| value(l as u32))
}

/// The manual's pseudocode.
fn shfl(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (bval, cval, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = (lane & segment) | (cval & !segment & 31);
    let first = lane & segment;
    let (j, valid) = match mode {
        "up" => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= last as i32),
        "down" => (lane + bval, lane + bval <= last),
        "bfly" => (lane ^ bval, lane ^ bval <= last),
        _ => {
            let j = first | (bval & !segment & 31);
            (j, j <= last)
        }
    };
    (if valid { j } else { lane }, valid)
}

#[test]
fn shuffles_clamp_at_their_segment() {
    let x = lanes(|l| u64::from(1000 + l));
    for mode in ["up", "down", "bfly", "idx"] {
        for b in [0, 1, 5, 16, 31, 33] {
            // Whole warp, segments of 8, and an odd clamp.
            for c in [if mode == "up" { 0 } else { 31 }, if mode == "up" { 0x1800 } else { 0x181f }, 0x0007] {
                let out = exchange(&format!("shfl.sync.{mode}.b32 %y|%c, %x, {b}, {c}, -1;"), &x);
                for (lane, (value, valid)) in out.into_iter().enumerate() {
                    let (from, fits) = shfl(mode, lane as u32, b, c);
                    assert_eq!((value, valid), (1000 + from, fits), "{mode} {b} {c:#x} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn shuffles_by_hand() {
    let x = lanes(|l| u64::from(l * l));
    let at = |body: &str| exchange(body, &x).into_iter().map(|(v, _)| v).collect::<Vec<_>>();
    let down = at("shfl.sync.down.b32 %y, %x, 16, 31, -1;");
    assert_eq!((down[0], down[15], down[16], down[31]), (256, 961, 256, 961));
    let up = at("shfl.sync.up.b32 %y, %x, 1, 0, -1;");
    assert_eq!((up[0], up[1], up[31]), (0, 0, 900));
    let idx = at("shfl.sync.idx.b32 %y, %x, %t, 31, -1;");
    assert_eq!(idx, (0..32).map(|l| l * l).collect::<Vec<_>>());
    let quad = at("shfl.sync.bfly.b32 %y, %x, 2, 0x1c1f, -1;");
    assert_eq!((quad[0], quad[3], quad[5]), (4, 1, 49));
}

#[test]
fn votes_and_masks() {
    let x = lanes(|l| u64::from(l % 3 == 0));
    let set: u32 = (0..32).filter(|l| l % 3 == 0).fold(0, |m, l| m | 1 << l);
    let all = |body: &str| exchange(&format!("setp.ne.u32 %e, %x, 0;\n{body}"), &x);
    assert_eq!(all("vote.sync.ballot.b32 %y, %e, -1;"), [(set, false); 32]);
    assert_eq!(all("vote.sync.ballot.b32 %y, !%e, -1;"), [(!set, false); 32]);
    assert_eq!(all("vote.sync.any.pred %c, %e, -1;"), [(0, true); 32]);
    assert_eq!(all("vote.sync.all.pred %c, %e, -1;"), [(0, false); 32]);
    assert_eq!(all("vote.sync.uni.pred %c, %e, -1;"), [(0, false); 32]);
    for (lane, (mask, _)) in all("activemask.b32 %y;").into_iter().enumerate() {
        assert_eq!(mask, !0, "{lane}");
    }
    let part = all("mov.u32 %y, 5;\n@%e vote.sync.all.pred %c, %e, 0x49249249;");
    for (lane, (_, flag)) in part.into_iter().enumerate() {
        assert_eq!(flag, lane % 3 == 0);
    }
}

#[test]
fn matches() {
    let x = lanes(|l| u64::from(l % 4));
    for (lane, (mask, _)) in exchange("match.any.sync.b32 %y, %x, -1;", &x).into_iter().enumerate() {
        assert_eq!(mask, 0x1111_1111 << (lane % 4));
    }
    assert_eq!(exchange("match.all.sync.b32 %y|%c, %x, -1;", &x), [(0, false); 32]);
    assert_eq!(exchange("match.all.sync.b32 %y|%c, %x, -1;", &lanes(|_| 7)), [(!0, true); 32]);
}

#[test]
fn reductions() {
    let x = lanes(|l| if l == 9 { 0xffff_fff9 } else { u64::from(l) });
    let all = |op: &str| exchange(&format!("redux.sync.{op} %y, %x, -1;"), &x)[3].0;
    assert_eq!(all("add.s32") as i32, 496 - 9 - 7);
    assert_eq!(all("min.s32") as i32, -7);
    assert_eq!(all("min.u32"), 0);
    assert_eq!(all("max.s32"), 31);
    assert_eq!(all("max.u32"), 0xffff_fff9);
    assert_eq!(all("or.b32"), 0xffff_ffff);
    assert_eq!(all("and.b32"), 0);
    // 1 ^ .. ^ 31 is 0.
    assert_eq!(all("xor.b32"), 9 ^ 0xffff_fff9);
}

#[test]
fn lane_masks() {
    let out = exchange(
        "mov.u32 %y, %lanemask_lt;\nmov.u32 %z, %lanemask_ge;\nsetp.eq.u32 %c, %z, 0x80000000;",
        &[0; 32],
    );
    for (lane, got) in out.into_iter().enumerate() {
        assert_eq!(got, ((1u32 << lane) - 1, lane == 31));
    }
}
