//! How much memory a plan takes: computed from its tables alone, printed by the compiler and held by the runtime.

use std::fmt;

use serde::Serialize;

use crate::schema::{CacheGroup, CacheKind, ModelCard, Program};

/// Most entries of a request's logit bias; room for them is reserved per sequence.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most ids that end a sequence; room for them is reserved per sequence.
pub const MAX_STOP_IDS: usize = 128;

/// Bytes of list heads per sequence in the sampler, at most.
const SLOT_FIXED: u64 = 256;
/// Bytes of a row's answer and parameters in the sampler, at most: 20 alternatives of 8 and what was asked.
const ROW_FIXED: u64 = 512;
/// Bytes of a worker's working space in the sampler per vocabulary entry, at most.
const SAMPLER_PER_ENTRY: u64 = 20;
/// Bytes of a worker's working space in the sampler beside that, at most: histogram of scaled logits.
const SAMPLER_FIXED: u64 = 1 << 16;

/// What the user decides at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRequest {
    /// Worker threads.
    pub threads: u64,
    /// Positions that the KV pool holds; `None` is the plan's own `kv_tokens`.
    pub kv_tokens: Option<u64>,
}

/// A sum of named amounts, all fixed before the first allocation. An engine may take less of a line, never more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// Bytes of weights in the file's map; the system may drop and read them again.
    pub weights_mapped: u64,
    /// Bytes of all activations, the logits among them.
    pub arena: u64,
    /// Bytes of the logits within the arena.
    pub logits_in_arena: u64,
    /// Worker threads.
    pub threads: u64,
    /// Bytes of kernel working space of one thread.
    pub scratch_per_thread: u64,
    /// Positions per block of the first paged cache group; 0 where none is paged.
    pub kv_block_tokens: u64,
    /// Blocks of each paged cache group.
    pub kv_blocks: u64,
    /// Blocks that one longest sequence takes; a pool with fewer is refused.
    pub kv_blocks_least: u64,
    /// Bytes of one block over all layers of all paged groups.
    pub kv_block_bytes: u64,
    /// Bytes of the pool, states of recurrent groups included.
    pub kv: u64,
    /// Bytes of sampling state and working space.
    pub sampler: u64,
}

impl MemoryReport {
    /// The memory of `program`. Numbers that 64 bits do not hold are at their largest, and so refused anywhere.
    pub fn new(card: &ModelCard, program: &Program, weights_mapped: u64, request: MemoryRequest) -> Self {
        let limits = &card.limits;
        let kv_tokens = request.kv_tokens.unwrap_or(limits.kv_tokens);
        let paged = |g: &CacheGroup| match g.kind {
            CacheKind::Paged { block, .. } | CacheKind::Latent { block, .. } | CacheKind::Cross { block } => {
                Some(u64::from(block.max(1)))
            }
            CacheKind::Recurrent { .. } => None,
        };
        let first = program.cache_groups.iter().find_map(paged);
        let kv_blocks = first.map_or(0, |block| kv_tokens.div_ceil(block));
        let mut kv = 0u64;
        let mut kv_block_bytes = 0u64;
        for group in &program.cache_groups {
            let bytes = match (paged(group), group.kind) {
                (Some(block), _) => {
                    kv_block_bytes = kv_block_bytes.saturating_add(group.bytes_per_block);
                    kv_tokens.div_ceil(block).saturating_mul(group.bytes_per_block)
                }
                (None, CacheKind::Recurrent { bytes }) => bytes.saturating_mul(u64::from(limits.max_batch)),
                (None, _) => 0,
            };
            kv = kv.saturating_add(bytes);
        }
        let vocab = u64::from(card.vocab_size);
        let slot = (u64::from(limits.max_seq_len) + 1) * 4
            + MAX_LOGIT_BIAS as u64 * 8
            + MAX_STOP_IDS as u64 * 4
            + SLOT_FIXED;
        let sampler = u64::from(limits.max_batch)
            .saturating_mul(slot)
            .saturating_add(u64::from(limits.max_sample_rows) * ROW_FIXED)
            .saturating_add(request.threads.saturating_mul(vocab * SAMPLER_PER_ENTRY + SAMPLER_FIXED));
        MemoryReport {
            weights_mapped,
            arena: program.arena_bytes,
            logits_in_arena: u64::from(limits.max_sample_rows).saturating_mul(vocab * 4),
            threads: request.threads,
            scratch_per_thread: program.scratch_bytes.next_multiple_of(64),
            kv_block_tokens: first.unwrap_or(0),
            kv_blocks,
            kv_blocks_least: first.map_or(0, |block| u64::from(limits.max_seq_len).div_ceil(block)),
            kv_block_bytes,
            kv,
            sampler,
        }
    }

    /// Bytes that are allocated, mapped weights left out.
    pub fn allocated(&self) -> u64 {
        self.lines().iter().filter(|l| !l.2).fold(0, |sum, l| u64::saturating_add(sum, l.1))
    }

    /// Name, bytes and whether they are the file's map: the lines that add up to the whole.
    pub fn lines(&self) -> [(&'static str, u64, bool); 5] {
        [
            ("weights", self.weights_mapped, true),
            ("activations", self.arena, false),
            ("kv pool", self.kv, false),
            ("kernel scratch", self.threads.saturating_mul(self.scratch_per_thread), false),
            ("sampler", self.sampler, false),
        ]
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes, mapped) in self.lines() {
            let note = match name {
                "weights" if mapped => "mapped from the plan".to_string(),
                "activations" => format!("logits {} of it", Bytes(self.logits_in_arena)),
                "kv pool" => format!(
                    "{} blocks of {} positions, {} each",
                    self.kv_blocks,
                    self.kv_block_tokens,
                    Bytes(self.kv_block_bytes)
                ),
                "kernel scratch" => format!("{} threads", self.threads),
                _ => String::new(),
            };
            writeln!(f, "{}", format!("{name:<16}{:>12}  {note}", Bytes(bytes).to_string()).trim_end())?;
        }
        writeln!(f, "{:<16}{:>12}", "allocated", Bytes(self.allocated()).to_string())
    }
}

/// A number of bytes for people: exact below 1 KiB, else one decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        // 1023.95 would print as 1024.0 of the smaller unit.
        while value >= 1023.95
            && let Some(next) = units.next()
        {
            value /= 1024.0;
            unit = next;
        }
        if unit == "B" { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{small_tables, small_weights};
    use crate::writer::place;

    fn report(kv_tokens: Option<u64>) -> MemoryReport {
        let (weights, bytes) = place(small_weights()).unwrap();
        let t = small_tables(&weights);
        MemoryReport::new(&t.card, &t.programs[0], bytes, MemoryRequest { threads: 2, kv_tokens })
    }

    #[test]
    fn the_sum_is_that_of_its_lines() {
        let r = report(None);
        assert_eq!((r.kv_blocks, r.kv_block_bytes, r.kv), (8, 2048, 16384));
        assert_eq!(r.kv_blocks_least, 2);
        assert_eq!(r.allocated(), r.arena + r.kv + 2 * r.scratch_per_thread + r.sampler);
        assert_eq!(report(Some(33)).kv_blocks, 2);
        assert_eq!(
            r.to_string(),
            "weights             22.2 KiB  mapped from the plan\n\
             activations          5.9 KiB  logits 640 B of it\n\
             kv pool             16.0 KiB  8 blocks of 32 positions, 2.0 KiB each\n\
             kernel scratch     512.0 KiB  2 threads\n\
             sampler            167.6 KiB\n\
             allocated          701.5 KiB\n"
        );
    }

    #[test]
    fn sizes_saturate() {
        let (weights, bytes) = place(small_weights()).unwrap();
        let mut t = small_tables(&weights);
        t.card.limits.kv_tokens = u64::MAX;
        t.card.limits.max_batch = u32::MAX;
        t.programs[0].cache_groups[0].bytes_per_block = u64::MAX;
        let request = MemoryRequest { threads: u64::MAX, kv_tokens: None };
        assert_eq!(MemoryReport::new(&t.card, &t.programs[0], bytes, request).allocated(), u64::MAX);
    }

    #[test]
    fn bytes_for_people() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(n).to_string(), text);
        }
    }
}
