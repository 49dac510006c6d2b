//! How many KV blocks each cache group gets: the one arithmetic of report, engines and compiler.
//!
//! The pool is sized in positions, rounded up to blocks. A group without a window has a block for each of them. One with
//! a window has no more than `max_batch` sequences can hold at once, as what leaves a window is free for others.

use lathe_numerics::window::blocks_at_once;
use serde::Serialize;

use crate::schema::{CacheGroup, CacheKind, Limits, Program};

/// One more than the largest block id that tables hold.
const MAX_BLOCKS: u64 = 1 << 31;

/// The pool of one paged cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KvPool {
    /// Positions that a row sees; `None` is all up to its own.
    pub window: Option<u32>,
    /// Blocks.
    pub blocks: u64,
    /// Blocks that one longest sequence holds at once; a pool with fewer is refused.
    pub blocks_least: u64,
    /// Bytes of one block over all layers of the group.
    pub block_bytes: u64,
}

impl KvPool {
    /// Bytes of all blocks.
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes)
    }
}

/// The pools of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvPools {
    /// Positions per block, in every group; 0 where none is paged.
    pub block_tokens: u64,
    /// Positions that the pools were sized for, a multiple of `block_tokens`.
    pub tokens: u64,
    /// One per paged group, in the order of the program's groups.
    pub groups: Vec<KvPool>,
}

/// Why a program gets no pools.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The program has groups that no engine runs, or none.
    #[error("{why}")]
    Groups {
        /// The rule that they break.
        why: &'static str,
    },
    /// The pools would not hold one longest sequence.
    #[error("it holds {tokens} positions, one sequence of --max-seq-len {max_seq_len} needs {bytes} bytes")]
    TooSmall {
        /// Positions that it was sized for.
        tokens: u64,
        /// The limit.
        max_seq_len: u32,
        /// Bytes that would do.
        bytes: u64,
    },
    /// Block ids are `i32`.
    #[error("{blocks} blocks are more than a block id can name")]
    TooMany {
        /// Blocks of the largest group.
        blocks: u64,
    },
}

impl KvError {
    /// What the user can do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            KvError::Groups { .. } => "compile the model anew",
            KvError::TooSmall { .. } => "raise --kv-memory, or compile with a smaller --max-seq-len",
            KvError::TooMany { .. } => "lower --kv-memory",
        }
    }
}

impl KvPools {
    /// Pools for `kv_tokens` positions. Groups that are not paged are left out.
    pub fn for_tokens(groups: &[CacheGroup], limits: &Limits, kv_tokens: u64) -> Self {
        let Some(block) = groups.iter().find_map(block_of) else { return Self::default() };
        let block = block.max(1);
        let longest = u64::from(limits.max_seq_len.div_ceil(block));
        let n = kv_tokens.div_ceil(u64::from(block));
        let pool = |group: &CacheGroup| {
            let window = window_of(group);
            let at_once = window
                .map_or(longest, |w| longest.min(u64::from(blocks_at_once(w, limits.max_num_tokens, block))));
            let most = window.map_or(u64::MAX, |_| u64::from(limits.max_batch).saturating_mul(at_once));
            KvPool { window, blocks: n.min(most), blocks_least: at_once, block_bytes: group.bytes_per_block }
        };
        KvPools {
            block_tokens: u64::from(block),
            tokens: n.saturating_mul(u64::from(block)),
            groups: groups.iter().filter(|g| block_of(g).is_some()).map(pool).collect(),
        }
    }

    /// The largest pools that `bytes` hold.
    pub fn within(groups: &[CacheGroup], limits: &Limits, bytes: u64) -> Self {
        let block = u64::from(groups.iter().find_map(block_of).unwrap_or(1).max(1));
        let of = |blocks: u64| Self::for_tokens(groups, limits, blocks.saturating_mul(block));
        let (mut fits, mut beyond) = (0, MAX_BLOCKS + 1);
        while beyond - fits > 1 {
            let middle = fits.midpoint(beyond);
            if of(middle).bytes() <= bytes { fits = middle } else { beyond = middle }
        }
        let pools = of(fits);
        // Where every group has a window, more positions than all of them hold at once take no more bytes.
        let most = pools.groups.iter().map(|g| g.blocks).max().unwrap_or(0);
        if most < fits { of(most) } else { pools }
    }

    /// The pools that an engine takes for a program: of `kv_bytes`, or what the plan was compiled for.
    ///
    /// # Errors
    /// Groups that are not all paged; pools that do not hold one longest sequence, or more blocks than have ids.
    pub fn of(program: &Program, limits: &Limits, kv_bytes: Option<u64>) -> Result<Self, KvError> {
        let groups = &program.cache_groups;
        if groups.is_empty() {
            return Err(KvError::Groups { why: "there is none; engines run at least one" });
        }
        if groups.iter().any(|g| !matches!(g.kind, CacheKind::Paged { .. })) {
            return Err(KvError::Groups { why: "engines run paged ones alone" });
        }
        if groups.iter().any(|g| block_of(g) == Some(0) || g.bytes_per_block == 0) {
            return Err(KvError::Groups { why: "a block holds nothing" });
        }
        let pools = match kv_bytes {
            Some(bytes) => Self::within(groups, limits, bytes),
            None => Self::for_tokens(groups, limits, limits.kv_tokens),
        };
        if pools.groups.iter().any(|g| g.blocks < g.blocks_least) {
            let least = |g: &KvPool| g.blocks_least.saturating_mul(g.block_bytes);
            let bytes = pools.groups.iter().map(least).fold(0, u64::saturating_add);
            return Err(KvError::TooSmall { tokens: pools.tokens, max_seq_len: limits.max_seq_len, bytes });
        }
        let blocks = pools.groups.iter().map(|g| g.blocks).max().unwrap_or(0);
        if blocks >= MAX_BLOCKS { Err(KvError::TooMany { blocks }) } else { Ok(pools) }
    }

    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        self.groups.iter().map(KvPool::bytes).fold(0, u64::saturating_add)
    }
}

/// Positions per block of a paged group.
fn block_of(group: &CacheGroup) -> Option<u32> {
    match group.kind {
        CacheKind::Paged { block, .. } | CacheKind::Latent { block, .. } | CacheKind::Cross { block } => {
            Some(block)
        }
        CacheKind::Recurrent { .. } => None,
    }
}

const fn window_of(group: &CacheGroup) -> Option<u32> {
    match group.kind {
        CacheKind::Paged { window, .. } => window,
        CacheKind::Latent { .. } | CacheKind::Cross { .. } | CacheKind::Recurrent { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { max_batch: 4, max_num_tokens: 64, max_sample_rows: 4, max_seq_len: 1024, kv_tokens: 2000 };

    fn group(window: Option<u32>, bytes_per_block: u64) -> CacheGroup {
        let kind = CacheKind::Paged { block: 32, window };
        CacheGroup { kind, replay_exact: true, bytes_per_block, layers: vec![] }
    }

    fn blocks(groups: &[CacheGroup], kv_tokens: u64) -> Vec<u64> {
        KvPools::for_tokens(groups, &LIMITS, kv_tokens).groups.iter().map(|g| g.blocks).collect()
    }

    #[test]
    fn a_window_needs_no_more_than_all_sequences_hold() {
        // A window of 100 and a step of 64 positions touch at most seven blocks.
        let groups = [group(None, 100), group(Some(100), 10), group(Some(5000), 1)];
        assert_eq!(blocks(&groups, 2000), [63, 28, 63]);
        assert_eq!(blocks(&groups, 600), [19, 19, 19]);
        assert_eq!(blocks(&groups, 1 << 20), [1 << 15, 28, 128]);
        let pools = KvPools::for_tokens(&groups, &LIMITS, 2000);
        assert_eq!((pools.block_tokens, pools.tokens, pools.bytes()), (32, 2016, 6300 + 280 + 63));
        assert_eq!(pools.groups.iter().map(|g| g.blocks_least).collect::<Vec<_>>(), [32, 7, 32]);
    }

    #[test]
    fn bytes_become_the_largest_pools_that_they_hold() {
        let groups = [group(None, 100), group(Some(100), 10)];
        let within = |bytes| -> Vec<u64> {
            KvPools::within(&groups, &LIMITS, bytes).groups.iter().map(|g| g.blocks).collect()
        };
        assert_eq!(within(110 * 28), [28, 28]);
        assert_eq!(within(110 * 28 - 1), [27, 27]);
        assert_eq!(within(280 + 100 * 40 + 99), [40, 28]);
        assert_eq!(within(109), [0, 0]);
        let windows = [group(Some(100), 10), group(Some(40), 10)];
        let pools = KvPools::within(&windows, &LIMITS, u64::MAX);
        assert_eq!((pools.tokens, pools.bytes()), (28 * 32, 280 + 10 * 4 * 5));
    }

    #[test]
    fn pools_hold_one_longest_sequence_or_are_refused() {
        let program = |groups: Vec<CacheGroup>| {
            let (weights, _) = crate::writer::place(crate::testing::small_weights()).unwrap();
            let program = crate::testing::small_tables(&weights).programs.remove(0);
            Program { cache_groups: groups, ..program }
        };
        let of = |groups, bytes| KvPools::of(&program(groups), &LIMITS, bytes).map_err(|e| e.to_string());
        let both = vec![group(None, 100), group(Some(100), 10)];
        assert_eq!(of(both.clone(), None).map(|p| p.groups[1].blocks), Ok(28));
        assert_eq!(of(both.clone(), Some(3199 + 280)).unwrap_err(), {
            "it holds 992 positions, one sequence of --max-seq-len 1024 needs 3270 bytes"
        });
        assert_eq!(of(both, Some(3200 + 280)).map(|p| p.tokens), Ok(1024));
        assert_eq!(of(vec![group(Some(100), 10)], Some(70)).map(|p| p.tokens), Ok(7 * 32));
        assert!(
            of(vec![group(None, 1)], Some(u64::MAX)).unwrap_err().contains("more than a block id can name")
        );
        assert!(of(vec![], None).unwrap_err().contains("there is none"));
        let mut other = group(None, 8);
        other.kind = CacheKind::Recurrent { bytes: 8 };
        assert!(of(vec![other], None).unwrap_err().contains("paged ones alone"));
    }
}
