//! KV blocks by cache group, and tables for sequences that nobody schedules.

use lathe_numerics::window::{NO_BLOCK, blocks_at_once, first_block};

use crate::{EngineInfo, StepPlan};

/// The KV blocks of one cache group: the layers of one attention window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockGroup {
    /// Blocks in its pool.
    pub n_blocks: u32,
    /// Positions that a row sees, its own included; `None` is all up to its own.
    pub window: Option<u32>,
}

impl EngineInfo {
    /// Blocks of a group that a sequence of up to `room` positions holds at once.
    fn at_once(&self, group: &BlockGroup, room: u32) -> u32 {
        let all = room.div_ceil(self.block_tokens);
        group.window.map_or(all, |w| all.min(blocks_at_once(w, self.max_num_tokens, self.block_tokens)))
    }

    /// Sequences of up to `room` positions that all pools hold side by side.
    pub fn places(&self, room: u32) -> u32 {
        let places = |group: &BlockGroup| group.n_blocks / self.at_once(group, room).max(1);
        self.groups.iter().map(places).min().unwrap_or(0)
    }
}

impl StepPlan {
    /// Appends the block ids of a sequence that keeps to itself: it has place `place` of equal ones with room for `room`
    /// positions each, and its rows in this step start at position `start`. Gives `blocks_start` and `blocks_len`.
    pub fn push_own_blocks(&mut self, info: &EngineInfo, place: u32, room: u32, start: u32) -> (u32, u32) {
        let blocks_start = self.blocks.first().map_or(0, Vec::len) as u32;
        let blocks_len = room.div_ceil(info.block_tokens);
        for (table, group) in self.blocks.iter_mut().zip(&info.groups) {
            let held = info.at_once(group, room).max(1);
            let first = first_block(start, group.window, info.block_tokens);
            let id = |at| if at < first { NO_BLOCK } else { place * held + at % held };
            table.extend((0..blocks_len).map(id));
        }
        (blocks_start, blocks_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    #[test]
    fn a_place_has_blocks_of_its_own_in_every_group() {
        let group = |n_blocks, window| BlockGroup { n_blocks, window };
        let info = EngineInfo {
            path: String::new(),
            threads: 1,
            steps_ahead: 0,
            vocab_size: 10,
            max_batch: 4,
            max_num_tokens: 16,
            max_sample_rows: 4,
            max_seq_len: 160,
            groups: vec![group(32, None), group(13, Some(20))],
            block_tokens: 16,
            memory: Memory::default(),
        };
        // 160 positions are ten blocks; of a window of 20 and a step of 16 at most four live at once.
        assert_eq!((info.places(160), info.places(40)), (3, 4));
        let mut step = StepPlan::with_capacity(1, 2, 1, 20, 2);
        assert_eq!(step.push_own_blocks(&info, 0, 48, 0), (0, 3));
        assert_eq!(step.push_own_blocks(&info, 2, 160, 100), (3, 10));
        assert_eq!(step.blocks[0], [0, 1, 2, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]);
        let none = NO_BLOCK;
        assert_eq!(step.blocks[1], [0, 1, 2, none, none, none, none, none, 9, 10, 11, 8, 9]);
    }
}
