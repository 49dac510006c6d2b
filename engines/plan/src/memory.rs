//! How much memory a plan takes: computed from its tables alone, printed by the compiler and held by the runtime.

use std::fmt;

use lathe_device::{Answer, DrawParams, Sequence};
pub use lathe_device::{MAX_LOGIT_BIAS, MAX_STOP_IDS};
use serde::Serialize;

pub use crate::kv::{KvError, KvPool, KvPools};
use crate::schema::{CacheKind, Limits, ModelCard, Place, Program, StepTable, Target, Weight};

/// Alignment of what an engine places in device memory; each line of the report is a sum of multiples of it.
pub const DEVICE_ALIGN: u64 = 256;

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
    /// The KV pools.
    pub pools: KvPools,
    /// Bytes of the pools, states of recurrent groups included.
    pub kv: u64,
    /// Bytes of sampling state and working space.
    pub sampler: u64,
    /// What only a device's memory holds; `None` where the host computes.
    pub device: Option<DeviceMemory>,
}

/// The lines of a report that a device has and the host has not. All lines are then device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Bytes of the weights that the program names, copied from the file.
    pub weights: u64,
    /// Bytes of the tables that every step brings, those of the sampler left out.
    pub step_tables: u64,
}

/// Bytes of a step table at its largest; what an engine allocates for it, for `Blocks` once per cache group. `block` is
/// the positions of a KV block.
pub fn step_table_bytes(table: StepTable, limits: &Limits, vocab_size: u32, block: u32) -> u64 {
    let [t, s, r] = [limits.max_num_tokens, limits.max_batch, limits.max_sample_rows].map(u64::from);
    let vocab = u64::from(vocab_size);
    let (rows, row_bytes) = match table {
        StepTable::Tokens | StepTable::Positions | StepTable::RowSequence => (t, 4),
        StepTable::Sequences => (s, size_of::<Sequence>() as u64),
        StepTable::Blocks => (s, u64::from(limits.max_seq_len).div_ceil(u64::from(block.max(1))) * 4),
        StepTable::SampleRows | StepTable::Drawn => (r, 4),
        StepTable::DrawParams => (r, size_of::<DrawParams>() as u64),
        StepTable::Masks => (r, vocab.div_ceil(32) * 4),
        StepTable::Counts => (s, vocab * 4),
        StepTable::Bias => (s, MAX_LOGIT_BIAS as u64 * 8),
        StepTable::Stops => (s, MAX_STOP_IDS as u64 * 4),
        StepTable::Answers => (r, size_of::<Answer>() as u64),
        StepTable::Scores => (r, vocab * 4),
    };
    rows.saturating_mul(row_bytes)
}

/// True for the tables that the report counts as the sampler's: what draws tokens, with its state per sequence.
pub const fn is_sampler_table(table: StepTable) -> bool {
    match table {
        StepTable::Tokens
        | StepTable::Positions
        | StepTable::RowSequence
        | StepTable::Sequences
        | StepTable::Blocks
        | StepTable::SampleRows => false,
        StepTable::Drawn
        | StepTable::DrawParams
        | StepTable::Masks
        | StepTable::Counts
        | StepTable::Bias
        | StepTable::Stops
        | StepTable::Answers
        | StepTable::Scores => true,
    }
}

/// Indices of the weights that a program names, ascending: what its device must hold.
pub fn weights_of(program: &Program) -> Vec<u32> {
    let operands = program.launches.iter().flat_map(|l| l.inputs.iter().chain(&l.outputs));
    let mut indices: Vec<u32> = operands
        .filter_map(|o| match o.place {
            Place::Weight(index) => Some(index),
            Place::Buffer(_) | Place::Input(_) | Place::Cache { .. } => None,
        })
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// The next multiple of `DEVICE_ALIGN`, or the largest number.
fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(DEVICE_ALIGN).unwrap_or(u64::MAX)
}

impl MemoryReport {
    /// The memory of `program` on what it was compiled for; `weights` is the plan's table.
    pub fn of(card: &ModelCard, program: &Program, weights: &[Weight], request: MemoryRequest) -> Self {
        if program.target != Target::Cpu {
            return Self::on_device(card, program, weights, request.kv_tokens);
        }
        let named = weights_of(program);
        let mapped = named.iter().filter_map(|i| weights.get(*i as usize)).map(|w| w.bytes).sum();
        Self::new(card, program, mapped, request)
    }

    /// The memory of a CPU `program`. Numbers that 64 bits do not hold are at their largest, and so refused anywhere.
    pub fn new(card: &ModelCard, program: &Program, weights_mapped: u64, request: MemoryRequest) -> Self {
        let limits = &card.limits;
        let kv_tokens = request.kv_tokens.unwrap_or(limits.kv_tokens);
        let pools = KvPools::for_tokens(&program.cache_groups, limits, kv_tokens);
        let states = program.cache_groups.iter().map(|g| match g.kind {
            CacheKind::Recurrent { bytes } => bytes.saturating_mul(u64::from(limits.max_batch)),
            CacheKind::Paged { .. } | CacheKind::Latent { .. } | CacheKind::Cross { .. } => 0,
        });
        let kv = states.fold(pools.bytes(), u64::saturating_add);
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
            pools,
            kv,
            sampler,
            device: None,
        }
    }

    /// The memory of `program` on a device; `weights` is the plan's table, `kv_tokens` as in `MemoryRequest`.
    pub fn on_device(
        card: &ModelCard,
        program: &Program,
        weights: &[Weight],
        kv_tokens: Option<u64>,
    ) -> Self {
        let report = Self::new(card, program, 0, MemoryRequest { threads: 0, kv_tokens });
        let block = u32::try_from(report.pools.block_tokens).unwrap_or(u32::MAX);
        let n_groups = report.pools.groups.len() as u64;
        let (mut step_tables, mut sampler) = (0u64, 0u64);
        for table in StepTable::ALL {
            let sum = if is_sampler_table(table) { &mut sampler } else { &mut step_tables };
            let times = if table == StepTable::Blocks { n_groups } else { 1 };
            let bytes = aligned(step_table_bytes(table, &card.limits, card.vocab_size, block));
            *sum = sum.saturating_add(bytes.saturating_mul(times));
        }
        let named = weights_of(program);
        let bytes = named.iter().filter_map(|i| weights.get(*i as usize)).map(|w| aligned(w.bytes));
        let weights = bytes.fold(0, u64::saturating_add);
        MemoryReport {
            arena: aligned(program.arena_bytes),
            scratch_per_thread: 0,
            sampler,
            device: Some(DeviceMemory { weights, step_tables }),
            ..report
        }
    }

    /// Bytes that are allocated, mapped weights left out.
    pub fn allocated(&self) -> u64 {
        self.lines().iter().filter(|l| !l.2).fold(0, |sum, l| u64::saturating_add(sum, l.1))
    }

    /// Name, bytes and whether they are the file's map: the lines that add up to the whole.
    pub fn lines(&self) -> [(&'static str, u64, bool); 5] {
        if let Some(device) = self.device {
            return [
                ("weights", device.weights, false),
                ("activations", self.arena, false),
                ("kv pool", self.kv, false),
                ("step tables", device.step_tables, false),
                ("sampler", self.sampler, false),
            ];
        }
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
                "weights" => "copied to the device".to_string(),
                "activations" => format!("logits {} of it", Bytes(self.logits_in_arena)),
                "kv pool" => self.pools.to_string(),
                "kernel scratch" => format!("{} threads", self.threads),
                _ => String::new(),
            };
            writeln!(f, "{}", format!("{name:<16}{:>12}  {note}", Bytes(bytes).to_string()).trim_end())?;
        }
        writeln!(f, "{:<16}{:>12}", "allocated", Bytes(self.allocated()).to_string())
    }
}

impl fmt::Display for KvPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pool) in self.groups.iter().enumerate() {
            let (blocks, each) = (pool.blocks, Bytes(pool.block_bytes));
            match i {
                0 => write!(f, "{blocks} blocks of {} positions, {each} each", self.block_tokens)?,
                _ => write!(f, "; {blocks} of {each}")?,
            }
            if let Some(window) = pool.window {
                write!(f, ", window {window}: {} a sequence", pool.blocks_least)?;
            }
        }
        Ok(())
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
        let pool = KvPool { window: None, blocks: 8, blocks_least: 2, block_bytes: 2048 };
        assert_eq!((&r.pools.groups[..], r.kv), (&[pool][..], 16384));
        assert_eq!(r.allocated(), r.arena + r.kv + 2 * r.scratch_per_thread + r.sampler);
        assert_eq!(report(Some(33)).pools.groups[0].blocks, 2);
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
    fn a_device_holds_the_weights_that_the_program_names() {
        let (weights, _) = place(small_weights()).unwrap();
        let mut t = small_tables(&weights);
        let r = MemoryReport::on_device(&t.card, &t.programs[0], &weights, None);
        let all: u64 = weights.iter().map(|w| w.bytes.next_multiple_of(256)).sum();
        assert_eq!(r.device, Some(DeviceMemory { weights: all, step_tables: 6 * 256 }));
        assert_eq!(r.allocated(), r.arena + r.kv + r.sampler + all + 6 * 256);
        // The embedding alone names one weight.
        t.programs[0].launches.truncate(1);
        let r = MemoryReport::on_device(&t.card, &t.programs[0], &weights, Some(33));
        assert_eq!(r.device.unwrap().weights, weights[0].bytes.next_multiple_of(256));
        assert_eq!(
            r.to_string(),
            "weights              3.0 KiB  copied to the device\n\
             activations          6.0 KiB  logits 640 B of it\n\
             kv pool              4.0 KiB  2 blocks of 32 positions, 2.0 KiB each\n\
             step tables          1.5 KiB\n\
             sampler             37.2 KiB\n\
             allocated           51.8 KiB\n"
        );
    }

    #[test]
    fn every_group_has_its_line() {
        let (weights, _) = place(small_weights()).unwrap();
        let mut t = small_tables(&weights);
        let one = MemoryReport::on_device(&t.card, &t.programs[0], &weights, None);
        let mut group = t.programs[0].cache_groups[0].clone();
        group.kind = CacheKind::Paged { block: 32, window: Some(20) };
        t.programs[0].cache_groups.push(group);
        let two = MemoryReport::on_device(&t.card, &t.programs[0], &weights, None);
        assert_eq!(
            two.pools.to_string(),
            "8 blocks of 32 positions, 2.0 KiB each; 8 of 2.0 KiB, window 20: 2 a sequence"
        );
        assert_eq!(two.kv, 2 * one.kv);
        let tables = |r: &MemoryReport| r.device.unwrap().step_tables;
        assert_eq!(tables(&two), tables(&one) + 256);
    }

    #[test]
    fn tables_are_as_large_as_their_largest_step() {
        let limits =
            Limits { max_batch: 3, max_num_tokens: 50, max_sample_rows: 7, max_seq_len: 100, kv_tokens: 1 };
        let bytes = |table| step_table_bytes(table, &limits, 70, 32);
        let want = [
            200,          // Tokens
            200,          // Positions
            200,          // RowSequence
            48,           // Sequences
            3 * 4 * 4,    // Blocks: 100 positions take 4
            28,           // SampleRows
            28,           // Drawn
            7 * 72,       // DrawParams
            7 * 3 * 4,    // Masks: 70 bits take 3 words
            3 * 70 * 4,   // Counts
            3 * 1024 * 8, // Bias
            3 * 128 * 4,  // Stops
            7 * 176,      // Answers
            7 * 70 * 4,   // Scores
        ];
        assert_eq!(StepTable::ALL.map(bytes), want);
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
