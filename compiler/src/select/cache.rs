//! Cache groups: layers whose attention sees the same window share blocks, a block table and a pool.

use lathe_ir::Graph;
use lathe_ir::facts::Cache;
use lathe_ir::ops::{Attention, Op};
use lathe_kernels::paged::KvLayout;
use lathe_plan::schema::{CacheGroup, CacheKind, CacheLayer, MAX_CACHE_GROUPS, Operand};

use crate::error::{CompileError, Result};

/// Positions per KV block: long enough that a block's tiles are whole cache lines, short enough that the last block of
/// a sequence wastes little.
pub const KV_BLOCK: u32 = 32;

/// The groups of a program, in the order of their first layers.
#[derive(Default)]
pub(super) struct CacheGroups {
    pub groups: Vec<CacheGroup>,
    /// Group and index in it, by layer of the graph's cache.
    places: Vec<(u32, u32)>,
}

/// Positions that a row of `op` sees, where they may be fewer than a sequence of `max_seq_len` has.
pub(super) fn window_of(op: &Attention, max_seq_len: u32) -> Option<u32> {
    u32::try_from(op.window).ok().filter(|w| (1..max_seq_len).contains(w))
}

impl CacheGroups {
    /// The groups of `graph`, none where it has no cache.
    ///
    /// # Errors
    /// `Unsupported` for a cache that no kernel reads, layers seen through two windows, and too many windows.
    pub fn new(graph: &Graph, max_seq_len: u32) -> Result<Self> {
        let Some(cache) = graph.cache() else { return Ok(Self::default()) };
        let unsupported = |why: String| CompileError::unsupported(format!("kv cache @{}", cache.name), why);
        let mut windows = vec![None; cache.layers];
        for (_, node) in graph.nodes() {
            let Op::Attention(op) = &node.op else { continue };
            let window = window_of(op, max_seq_len);
            let Some(seen) = windows.get_mut(op.layer) else { continue };
            if seen.replace(window).is_some_and(|other| other != window) {
                return Err(unsupported(format!("layer {} is seen through two windows", op.layer)));
            }
        }
        let layout = KvLayout::new(cache.dtype, cache.kv_heads, cache.head_dim, KV_BLOCK as usize)
            .map_err(|e| unsupported(e.to_string()))?;
        let mut all = Self::default();
        for window in windows.into_iter().map(Option::flatten) {
            let kind = CacheKind::Paged { block: KV_BLOCK, window };
            let index = all.groups.iter().position(|g| g.kind == kind).unwrap_or(all.groups.len());
            if index == all.groups.len() {
                let group = CacheGroup { kind, replay_exact: true, bytes_per_block: 0, layers: vec![] };
                all.groups.push(group);
            }
            let group = &mut all.groups[index];
            all.places.push((index as u32, group.layers.len() as u32));
            group.layers.push(layer(cache, group.bytes_per_block));
            group.bytes_per_block += layout.block_bytes() as u64;
        }
        if all.groups.len() > MAX_CACHE_GROUPS {
            return Err(unsupported(format!(
                "{} windows; a plan has at most {MAX_CACHE_GROUPS}",
                all.groups.len()
            )));
        }
        Ok(all)
    }

    /// The operand of a layer of the graph's cache.
    pub fn operand(&self, layer: usize) -> Option<Operand> {
        let &(group, index) = self.places.get(layer)?;
        Some(Operand::cache(group, index, self.layer(layer)?))
    }

    /// What the plan says of a layer of the graph's cache.
    pub fn layer(&self, layer: usize) -> Option<&CacheLayer> {
        let &(group, index) = self.places.get(layer)?;
        self.groups.get(group as usize)?.layers.get(index as usize)
    }
}

fn layer(cache: &Cache, offset: u64) -> CacheLayer {
    CacheLayer {
        kv_heads: cache.kv_heads as u32,
        head_dim: cache.head_dim as u32,
        dtype: cache.dtype,
        offset,
    }
}
