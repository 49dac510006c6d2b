//! What lanes of a warp tell each other: shuffles, votes, matches, reductions.

use super::block::Cx;
use super::registers::{Bits, Reg};
use crate::decode::op::{ReduxKind, Shuffle, ShuffleMode, VoteMode};
use crate::exec::mma::Mma;
use crate::monitor::{At, BlockMonitor, LANES};

impl<B: BlockMonitor> Cx<'_, '_, B> {
    pub(super) fn shuffle(&mut self, op: &Shuffle, at: At) {
        let (a, b, c) = (self.regs.r32(op.a), self.regs.r32(op.b), self.regs.r32(op.c));
        let mut values = [0; LANES];
        let mut sources = [0; LANES];
        let mut in_range = 0u32;
        for l in 0..LANES {
            let (b, clamp, segment) = ((b[l] & 31) as i32, (c[l] & 31) as i32, (c[l] >> 8 & 31) as i32);
            let lane = l as i32;
            let max = (lane & segment) | (clamp & !segment);
            let min = lane & segment;
            let (source, fits) = match op.mode {
                ShuffleMode::Up => (lane - b, lane - b >= max),
                ShuffleMode::Down => (lane + b, lane + b <= max),
                ShuffleMode::Bfly => (lane ^ b, lane ^ b <= max),
                ShuffleMode::Idx => {
                    let source = min | (b & !segment);
                    (source, source <= max)
                }
            };
            let source = if fits { source } else { lane };
            sources[l] = source as usize & 31;
            values[l] = a[sources[l]];
            in_range |= u32::from(fits) << l;
        }
        if self.checked {
            let own = self.regs.taint(op.b) | self.regs.taint(op.c);
            let from = self.regs.taint(op.a);
            // A lane that does not take part has no value to give.
            let absent = !at.mask;
            let taint = (0..LANES).fold(own, |t, l| t | ((from | absent) >> sources[l] & 1) << l);
            u32::put(self.regs.r32_mut(op.d), at.mask, &values);
            self.regs.set_taint(op.d, at.mask, taint);
        } else {
            u32::put(self.regs.r32_mut(op.d), at.mask, &values);
        }
        if let Some(p) = op.p {
            self.regs.set_pred(p, at.mask, in_range);
            if self.checked {
                self.regs.set_pred_taint(p, at.mask, 0);
            }
        }
    }

    pub(super) fn vote(&mut self, mode: VoteMode, d: Reg, a: (Reg, bool), members: u32, at: At) {
        let votes = self.regs.pred(a.0) ^ if a.1 { u32::MAX } else { 0 };
        let takes_part = members & at.mask;
        let votes = votes & takes_part;
        let all = |yes: bool| if yes { u32::MAX } else { 0 };
        let taint = if self.checked { all(self.regs.pred_taint(a.0) & takes_part != 0) } else { 0 };
        let answer = match mode {
            VoteMode::Ballot => {
                self.write32(d, at.mask, [votes; LANES]);
                if self.checked {
                    self.regs.set_taint(d, at.mask, taint);
                }
                return;
            }
            VoteMode::All => votes == takes_part,
            VoteMode::Any => votes != 0,
            VoteMode::Uni => votes == takes_part || votes == 0,
        };
        self.regs.set_pred(d, at.mask, all(answer));
        if self.checked {
            self.regs.set_pred_taint(d, at.mask, taint);
        }
    }

    pub(super) fn matching(&mut self, all: bool, wide: bool, d: Reg, p: Option<Reg>, a: Reg, at: At) {
        let values: [u64; LANES] = if wide { *self.regs.r64(a) } else { self.regs.r32(a).map(u64::from) };
        let taint = if self.checked && self.regs.taint(a) & at.mask != 0 { u32::MAX } else { 0 };
        let equal = |l: usize| {
            (0..LANES)
                .filter(|o| at.mask >> o & 1 == 1 && values[*o] == values[l])
                .fold(0u32, |m, o| m | 1 << o)
        };
        let first = equal(at.mask.trailing_zeros() as usize);
        if all {
            let agree = first == at.mask;
            self.write32(d, at.mask, [if agree { at.mask } else { 0 }; LANES]);
            if let Some(p) = p {
                self.regs.set_pred(p, at.mask, if agree { u32::MAX } else { 0 });
                if self.checked {
                    self.regs.set_pred_taint(p, at.mask, taint);
                }
            }
        } else {
            self.write32(d, at.mask, std::array::from_fn(equal));
        }
        if self.checked {
            self.regs.set_taint(d, at.mask, taint);
        }
    }

    pub(super) fn redux(&mut self, kind: ReduxKind, d: Reg, a: Reg, at: At) {
        let values = self.regs.r32(a);
        let fold = |x: u32, y: u32| match kind {
            ReduxKind::Add => x.wrapping_add(y),
            ReduxKind::MinU => x.min(y),
            ReduxKind::MaxU => x.max(y),
            ReduxKind::MinS => (x as i32).min(y as i32) as u32,
            ReduxKind::MaxS => (x as i32).max(y as i32) as u32,
            ReduxKind::And => x & y,
            ReduxKind::Or => x | y,
            ReduxKind::Xor => x ^ y,
        };
        let members = (0..LANES).filter(|l| at.mask >> l & 1 == 1).map(|l| values[l]);
        let result = members.reduce(fold).unwrap_or(0);
        let taint = if self.checked && self.regs.taint(a) & at.mask != 0 { u32::MAX } else { 0 };
        self.write32(d, at.mask, [result; LANES]);
        if self.checked {
            self.regs.set_taint(d, at.mask, taint);
        }
    }

    pub(super) fn bfi(&mut self, wide: bool, d: Reg, s: &[Reg; 4], mask: u32) {
        let insert = |field: u64, base: u64, at: u32, len: u32, bits: u32| {
            let (at, len) = (at & 0xff, len & 0xff);
            if at >= bits || len == 0 {
                return base;
            }
            let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
            let hole = ones << at;
            (base & !hole) | (field << at & hole)
        };
        let (at, len) = (*self.regs.r32(s[2]), *self.regs.r32(s[3]));
        if wide {
            let (a, b) = (self.regs.r64(s[0]), self.regs.r64(s[1]));
            let r: [u64; LANES] = std::array::from_fn(|l| insert(a[l], b[l], at[l], len[l], 64));
            u64::put(self.regs.r64_mut(d), mask, &r);
        } else {
            let (a, b) = (self.regs.r32(s[0]), self.regs.r32(s[1]));
            let r: [u32; LANES] =
                std::array::from_fn(|l| insert(a[l].into(), b[l].into(), at[l], len[l], 32) as u32);
            u32::put(self.regs.r32_mut(d), mask, &r);
        }
    }

    /// An element of the product depends on a row of `a` and a column of `b`.
    pub(super) fn mma_taint(&mut self, op: &Mma) {
        // Lanes `4 * row ..` hold a row of `a`, or a column of `b`.
        let spread = |t: u32| (0..8).filter(|r| t >> (4 * r) & 15 != 0).fold(0u32, |m, r| m | 1 << r);
        let per_half =
            |half: usize| op.a.iter().skip(half).step_by(2).fold(0, |t, r| t | self.regs.taint(*r));
        let rows = [spread(per_half(0)), spread(per_half(1))];
        let columns = spread(op.b.iter().fold(0, |t, r| t | self.regs.taint(*r)));
        let before: Vec<u32> = op.c.iter().map(|r| self.regs.taint(*r)).collect();
        for (i, (d, before)) in op.d.iter().zip(before).enumerate() {
            let half = if op.half { i } else { i / 2 };
            let mut taint = before;
            if rows[half] | columns != 0 {
                for l in 0..LANES {
                    let pair = 2 * (l % 4);
                    let hit =
                        if op.half { columns >> pair & 3 != 0 } else { columns >> (pair + i % 2) & 1 == 1 };
                    if rows[half] >> (l / 4) & 1 == 1 || hit {
                        taint |= 1 << l;
                    }
                }
            }
            self.regs.set_taint(*d, u32::MAX, taint);
        }
    }
}
