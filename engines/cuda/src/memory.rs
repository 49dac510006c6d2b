//! What the engine takes of a device's memory: fixed before the first allocation, then taken under names.

use lathe_api::{EngineError, MemoryLine};
use lathe_device::{DevicePtr, Driver, StepTable};
use lathe_plan::memory::{Bytes, DEVICE_ALIGN, MemoryReport, is_sampler_table, step_table_bytes, weights_of};
use lathe_plan::schema::{CacheKind, Program};
use lathe_plan::{Plan, schema::Limits};

use crate::launches::{Addresses, load_error, table_index};
use crate::tables::TableLayout;
use crate::transfer::Ring;

/// Sizes of the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Blocks.
    pub n_blocks: u32,
    /// Positions of a block.
    pub block: u32,
    /// Bytes of a block over all layers.
    pub block_bytes: u64,
}

fn fit(what: &str, why: String, remedy: &str) -> EngineError {
    EngineError::Fit { what: what.into(), why, remedy: remedy.into() }
}

impl Pool {
    /// The pool of `kv_bytes`, or of what the plan was compiled for.
    ///
    /// # Errors
    /// `Plan` when the program has not exactly one paged cache group, `Fit` when the pool would not hold one longest
    /// sequence.
    pub fn new(program: &Program, limits: &Limits, kv_bytes: Option<u64>) -> Result<Self, EngineError> {
        let refuse = |why: &str| EngineError::Plan { what: "cache groups".into(), why: why.into() };
        let [group] = program.cache_groups.as_slice() else {
            return Err(refuse("the CUDA engine runs exactly one"));
        };
        let CacheKind::Paged { block, .. } = group.kind else {
            return Err(refuse("the CUDA engine runs paged groups"));
        };
        if block == 0 || group.bytes_per_block == 0 {
            return Err(refuse("a block holds nothing"));
        }
        let blocks = match kv_bytes {
            Some(bytes) => bytes / group.bytes_per_block,
            None => limits.kv_tokens.div_ceil(u64::from(block)),
        };
        let least = u64::from(limits.max_seq_len).div_ceil(u64::from(block));
        if blocks < least {
            return Err(fit(
                "KV pool",
                format!(
                    "it holds {} positions, one sequence of --max-seq-len {} needs {} bytes",
                    blocks * u64::from(block),
                    limits.max_seq_len,
                    least.saturating_mul(group.bytes_per_block)
                ),
                "raise --kv-memory, or compile with a smaller --max-seq-len",
            ));
        }
        let n_blocks = i32::try_from(blocks).map(i32::cast_unsigned).map_err(|_| {
            fit("KV pool", format!("{blocks} blocks are more than a block id can name"), "lower --kv-memory")
        })?;
        Ok(Pool { n_blocks, block, block_bytes: group.bytes_per_block })
    }

    /// Positions that the pool holds.
    pub fn tokens(&self) -> u64 {
        u64::from(self.n_blocks) * u64::from(self.block)
    }
}

/// Refuses a sum that the device has not got: `free` bytes, of which `reserve` stay untouched.
///
/// # Errors
/// `Fit`, with the KV pool that would fit where one would.
pub fn check_fit(report: &MemoryReport, pool: &Pool, free: u64, reserve: u64) -> Result<(), EngineError> {
    let (needed, available) = (report.allocated(), free.saturating_sub(reserve));
    if needed <= available {
        return Ok(());
    }
    let why = format!(
        "{needed} bytes are needed, {available} are available: {} less a reserve of {}",
        Bytes(free),
        Bytes(reserve)
    );
    let room = available.saturating_sub(needed.saturating_sub(report.kv)) / pool.block_bytes;
    let remedy = if room >= report.kv_blocks_least && room > 0 {
        format!("pass --kv-memory {} or less", room * pool.block_bytes)
    } else {
        "compile with smaller --max-batch, --max-num-tokens or --max-seq-len, or take a larger device".into()
    };
    Err(fit("device memory", why, &remedy))
}

/// What was taken, by line of the report.
#[derive(Debug, Default)]
struct Taken {
    weights: u64,
    arena: u64,
    kv: u64,
    step_tables: u64,
    sampler: u64,
}

impl Taken {
    fn lines(&self) -> Vec<MemoryLine> {
        [
            ("weights", self.weights),
            ("activations", self.arena),
            ("kv pool", self.kv),
            ("step tables", self.step_tables),
            ("sampler", self.sampler),
        ]
        .map(|(name, bytes)| MemoryLine { name, bytes, mapped: false, measured: false })
        .into()
    }
}

/// Takes memory of `bytes` and adds what an aligned allocation of it takes to `sum`.
fn take(driver: &mut dyn Driver, name: &str, bytes: u64, sum: &mut u64) -> Result<DevicePtr, EngineError> {
    let at = driver.allocate(name, bytes.max(1)).map_err(load_error)?;
    *sum += bytes.next_multiple_of(DEVICE_ALIGN);
    Ok(at)
}

/// Takes all memory of `program` and copies its weights; gives the addresses and what was taken by purpose.
///
/// # Errors
/// `Fit` when the device has not enough, `Failed` when it fails.
pub fn take_all(
    driver: &mut dyn Driver,
    plan: &Plan,
    program: &Program,
    pool: &Pool,
    layout: &TableLayout,
    ring: &mut Ring,
) -> Result<(Addresses, Vec<MemoryLine>), EngineError> {
    let (limits, vocab) = (&plan.card().limits, plan.card().vocab_size);
    let mut taken = Taken::default();
    let mut weights = vec![None; plan.weights().len()];
    for index in weights_of(program) {
        let (weight, bytes) = (&plan.weights()[index as usize], plan.weight_bytes(index as usize));
        let at = take(driver, &weight.name, bytes.len() as u64, &mut taken.weights)?;
        ring.upload(driver, at, bytes).map_err(load_error)?;
        weights[index as usize] = Some(at);
    }
    let arena = take(driver, "activations", program.arena_bytes, &mut taken.arena)?;
    let kv = take(driver, "kv pool", u64::from(pool.n_blocks) * pool.block_bytes, &mut taken.kv)?;
    let step_tables = take(driver, "step tables", layout.bytes as u64, &mut taken.step_tables)?;
    let mut tables = [step_tables; StepTable::ALL.len()];
    for table in StepTable::ALL {
        let at = &mut tables[table_index(table)];
        if is_sampler_table(table) {
            let bytes = step_table_bytes(table, limits, vocab, pool.block);
            *at = take(driver, &format!("{table:?}"), bytes, &mut taken.sampler)?;
            // What sequences leave behind has a beginning: nothing drawn, nothing counted.
            let first = match table {
                StepTable::Drawn => Some(0xff),
                StepTable::Counts => Some(0),
                _ => None,
            };
            if let Some(byte) = first {
                driver.fill(*at, byte, bytes).map_err(load_error)?;
            }
        } else if let Some(offset) = layout.offset(table) {
            *at = step_tables.add(offset as u64);
        }
    }
    ring.finish(driver).map_err(load_error)?;
    Ok((Addresses { arena, weights, tables, kv }, taken.lines()))
}

#[cfg(test)]
mod tests {
    use lathe_plan::testing::{small_plan, small_tables};

    use super::*;

    fn small() -> (Plan, Program) {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let program = small_tables(plan.weights()).programs.remove(0);
        (plan, program)
    }

    #[test]
    fn a_pool_holds_one_longest_sequence_or_is_refused() {
        let (plan, program) = small();
        let limits = plan.card().limits;
        let pool = |bytes| Pool::new(&program, &limits, bytes).map_err(|e| e.to_string());
        assert_eq!(pool(None), Ok(Pool { n_blocks: 8, block: 32, block_bytes: 2048 }));
        assert_eq!(pool(Some(2 * 2048 + 5)).map(|p| (p.n_blocks, p.tokens())), Ok((2, 64)));
        assert_eq!(
            pool(Some(2047 * 2)).unwrap_err(),
            "KV pool does not fit: it holds 32 positions, one sequence of --max-seq-len 64 needs 4096 bytes; raise \
             --kv-memory, or compile with a smaller --max-seq-len"
        );
        assert!(pool(Some(u64::MAX)).unwrap_err().contains("more than a block id can name"));
    }

    #[test]
    fn groups_that_cannot_run_are_refused() {
        let (plan, mut program) = small();
        let limits = plan.card().limits;
        program.cache_groups[0].kind = CacheKind::Recurrent { bytes: 8 };
        let error = Pool::new(&program, &limits, None).unwrap_err().to_string();
        assert_eq!(error, "plan refused: cache groups: the CUDA engine runs paged groups");
        program.cache_groups.clear();
        assert!(Pool::new(&program, &limits, None).unwrap_err().to_string().contains("exactly one"));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let (plan, program) = small();
        let pool = Pool::new(&program, &plan.card().limits, None).unwrap();
        let report = MemoryReport::on_device(plan.card(), &program, plan.weights(), Some(pool.tokens()));
        let all = report.allocated();
        assert!(check_fit(&report, &pool, all + 10, 10).is_ok());
        let error = |free, reserve| check_fit(&report, &pool, free, reserve).unwrap_err().to_string();
        let short = error(all, 2048);
        assert!(short.starts_with(&format!("device memory does not fit: {all} bytes are needed")), "{short}");
        assert!(short.ends_with(&format!("pass --kv-memory {} or less", 7 * 2048)), "{short}");
        assert!(error(all - report.kv, 0).contains("take a larger device"));
        assert!(error(0, u64::MAX).contains("0 are available"));
    }
}
