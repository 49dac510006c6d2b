//! Asynchronous copies on their way, per warp, in the order of issue.

use std::collections::VecDeque;

use crate::monitor::LANES;

/// One instruction's copies by lanes that are in the same group.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Lanes whose copy is on its way.
    pub mask: u32,
    /// Its instruction.
    pub pc: u32,
    /// Bytes per lane.
    pub bytes: u32,
    /// Offsets in the block's shared memory.
    pub to: [u32; LANES],
    group: u32,
}

/// Copies of a warp's lanes.
#[derive(Clone, Debug)]
pub struct Copies {
    under_way: VecDeque<Copy>,
    committed: [u32; LANES],
}

impl Default for Copies {
    fn default() -> Self {
        Copies { under_way: VecDeque::new(), committed: [0; LANES] }
    }
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
}

impl Copies {
    /// Lanes `mask` issue a copy.
    pub fn issue(&mut self, mask: u32, pc: u32, bytes: u32, to: &[u32; LANES]) {
        let mut left = mask;
        while left != 0 {
            let group = self.committed[left.trailing_zeros() as usize];
            let same = lanes(left).filter(|l| self.committed[*l] == group).fold(0, |m, l| m | 1 << l);
            self.under_way.push_back(Copy { mask: same, pc, bytes, to: *to, group });
            left &= !same;
        }
    }

    /// Lanes `mask` close their group.
    pub fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }

    /// Lanes `mask` wait until at most `pending` groups are under way, `None` for all copies, committed or not. Tells
    /// of each copy and its lanes that are done.
    pub fn wait(&mut self, mask: u32, pending: Option<u32>, mut done: impl FnMut(&Copy, u32)) {
        let committed = self.committed;
        for copy in &mut self.under_way {
            let over = lanes(mask & copy.mask)
                .filter(|l| match pending {
                    None => true,
                    Some(n) => copy.group < committed[*l].saturating_sub(n),
                })
                .fold(0, |m, l| m | 1 << l);
            if over != 0 {
                done(copy, over);
                copy.mask &= !over;
            }
        }
        while self.under_way.front().is_some_and(|c| c.mask == 0) {
            self.under_way.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(copies: &mut Copies, mask: u32, pending: Option<u32>) -> Vec<(u32, u32)> {
        let mut seen = Vec::new();
        copies.wait(mask, pending, |c, m| seen.push((c.pc, m)));
        seen
    }

    #[test]
    fn groups_complete_in_order() {
        let mut c = Copies::default();
        for pc in 0..3 {
            c.issue(!0, pc, 16, &[0; LANES]);
            c.commit(!0);
        }
        assert_eq!(waited(&mut c, !0, Some(3)), []);
        assert_eq!(waited(&mut c, !0, Some(1)), [(0, !0), (1, !0)]);
        assert_eq!(waited(&mut c, !0, Some(1)), []);
        assert_eq!(waited(&mut c, !0, Some(0)), [(2, !0)]);
    }

    #[test]
    fn what_is_not_committed_is_not_waited_for() {
        let mut c = Copies::default();
        c.issue(!0, 7, 4, &[0; LANES]);
        assert_eq!(waited(&mut c, !0, Some(0)), []);
        c.commit(!0);
        assert_eq!(waited(&mut c, 1, Some(0)), [(7, 1)]);
        c.issue(!0, 8, 4, &[0; LANES]);
        assert_eq!(waited(&mut c, !0, None), [(7, !1), (8, !0)]);
    }

    #[test]
    fn lanes_count_their_own_groups() {
        let mut c = Copies::default();
        c.commit(0xffff);
        c.issue(!0, 1, 16, &[0; LANES]);
        c.commit(!0);
        // The lower half has two groups, of which the copy is in the second; the upper half has it in its first.
        assert_eq!(waited(&mut c, !0, Some(1)), []);
        c.commit(0xffff_0000);
        assert_eq!(waited(&mut c, !0, Some(1)), [(1, 0xffff_0000)]);
        assert_eq!(waited(&mut c, !0, Some(0)), [(1, 0xffff)]);
    }
}
