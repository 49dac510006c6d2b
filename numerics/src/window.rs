//! Attention windows over blocks of positions: the arithmetic that plan, scheduler and engines share.
//!
//! With a window `w` the row at position `p` sees positions `max(0, p - w + 1)..=p`; without one it sees all up to its
//! own. A block of `block` positions is needed while a row to come sees any of it.

/// A block id that is none: the entry of a table whose block no row to come sees. No kernel reads it.
pub const NO_BLOCK: u32 = u32::MAX;

/// First position that the row at `position` sees.
pub const fn first_visible(position: u32, window: Option<u32>) -> u32 {
    match window {
        None => 0,
        Some(window) => position.saturating_add(1).saturating_sub(window),
    }
}

/// First block of which the row at `position` sees anything; `block` positions each, not zero.
pub const fn first_block(position: u32, window: Option<u32>, block: u32) -> u32 {
    first_visible(position, window) / block
}

/// Most blocks of `block` positions that one sequence holds at once, if a step computes at most `tokens` of its
/// positions: those that the step's first row sees, the step's own, and up to a block more that a prompt keeps for
/// others to share.
pub const fn blocks_at_once(window: u32, tokens: u32, block: u32) -> u32 {
    let step = if tokens > block { tokens } else { block };
    let blocks = (window as u64 + step as u64).div_ceil(block as u64) + 1;
    if blocks > u32::MAX as u64 { u32::MAX } else { blocks as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_its_own_position() {
        assert_eq!([0, 3, 4, 9].map(|p| first_visible(p, Some(4))), [0, 0, 1, 6]);
        assert_eq!([0, 9, u32::MAX].map(|p| first_visible(p, Some(1))), [0, 9, u32::MAX - 1]);
        assert_eq!(first_visible(9, None), 0);
        assert_eq!([6, 7, 8].map(|p| first_block(p, Some(4), 4)), [0, 1, 1]);
    }

    #[test]
    fn the_bound_covers_every_step() {
        for (window, tokens, block) in [(1, 1, 16), (5, 3, 4), (64, 7, 16), (64, 256, 32), (33, 32, 16)] {
            let bound = blocks_at_once(window, tokens, block);
            for start in 0..600 {
                let held = (start + tokens).div_ceil(block) - first_block(start, Some(window), block);
                assert!(held <= bound, "window {window}, {tokens} tokens from {start}: {held} blocks");
            }
        }
        assert_eq!(blocks_at_once(u32::MAX, u32::MAX, 1), u32::MAX);
    }
}
