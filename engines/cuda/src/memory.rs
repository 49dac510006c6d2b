//! What the engine takes of a device's memory: fixed before the first allocation, then taken under names.

use lathe_api::{EngineError, MemoryLine};
use lathe_device::{DevicePtr, Driver, StepTable};
use lathe_plan::kv::{KvError, KvPools};
use lathe_plan::memory::{Bytes, DEVICE_ALIGN, MemoryReport, is_sampler_table, step_table_bytes, weights_of};
use lathe_plan::schema::Program;
use lathe_plan::{Plan, schema::Limits};

use crate::launches::{Addresses, GroupAddresses, load_error, table_index};
use crate::tables::TableLayout;
use crate::transfer::Ring;

fn fit(what: &str, why: String, remedy: &str) -> EngineError {
    EngineError::Fit { what: what.into(), why, remedy: remedy.into() }
}

/// The KV pools of `kv_bytes`, or of what the plan was compiled for.
///
/// # Errors
/// `Plan` when the program has groups that are not paged, `Fit` when the pools would not hold one longest sequence.
pub fn pools(program: &Program, limits: &Limits, kv_bytes: Option<u64>) -> Result<KvPools, EngineError> {
    KvPools::of(program, limits, kv_bytes).map_err(|error| match error {
        KvError::Groups { why } => EngineError::Plan { what: "cache groups".into(), why: why.into() },
        KvError::TooSmall { .. } | KvError::TooMany { .. } => {
            fit("KV pool", error.to_string(), error.remedy())
        }
    })
}

/// Refuses a sum that the device has not got: `free` bytes, of which `reserve` stay untouched.
///
/// # Errors
/// `Fit`, with the KV pool that would fit where one would.
pub fn check_fit(
    report: &MemoryReport,
    program: &Program,
    limits: &Limits,
    free: u64,
    reserve: u64,
) -> Result<(), EngineError> {
    let (needed, available) = (report.allocated(), free.saturating_sub(reserve));
    if needed <= available {
        return Ok(());
    }
    let why = format!(
        "{needed} bytes are needed, {available} are available: {} less a reserve of {}",
        Bytes(free),
        Bytes(reserve)
    );
    let room = available.saturating_sub(needed.saturating_sub(report.kv));
    let remedy = if let Ok(smaller) = KvPools::of(program, limits, Some(room)) {
        format!("pass --kv-memory {} or less", smaller.bytes())
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
    pools: &KvPools,
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
    let mut kv = Vec::with_capacity(pools.groups.len());
    for (i, pool) in pools.groups.iter().enumerate() {
        kv.push(take(driver, &format!("kv pool {i}"), pool.bytes(), &mut taken.kv)?);
    }
    let step_tables = take(driver, "step tables", layout.bytes as u64, &mut taken.step_tables)?;
    let mut tables = [step_tables; StepTable::ALL.len()];
    for table in StepTable::ALL {
        let at = &mut tables[table_index(table)];
        if is_sampler_table(table) {
            let bytes = step_table_bytes(table, limits, vocab, pools.block_tokens as u32);
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
    let blocks = tables[table_index(StepTable::Blocks)];
    let group = |(i, kv): (usize, DevicePtr)| GroupAddresses {
        kv,
        blocks: blocks.add((i * layout.blocks_stride()) as u64),
    };
    let groups = kv.into_iter().enumerate().map(group).collect();
    Ok((Addresses { arena, weights, tables, groups }, taken.lines()))
}

#[cfg(test)]
mod tests {
    use lathe_plan::schema::CacheKind;
    use lathe_plan::testing::{small_plan, small_tables};

    use super::*;

    fn small() -> (Plan, Program) {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let program = small_tables(plan.weights()).programs.remove(0);
        (plan, program)
    }

    #[test]
    fn a_pool_holds_one_longest_sequence_or_is_refused() {
        let (plan, mut program) = small();
        let limits = plan.card().limits;
        let of = |program: &Program, bytes| pools(program, &limits, bytes).map_err(|e| e.to_string());
        assert_eq!(of(&program, None).map(|p| (p.tokens, p.bytes())), Ok((256, 8 * 2048)));
        assert_eq!(of(&program, Some(2 * 2048 + 5)).map(|p| p.tokens), Ok(64));
        assert_eq!(
            of(&program, Some(2047 * 2)).unwrap_err(),
            "KV pool does not fit: it holds 32 positions, one sequence of --max-seq-len 64 needs 4096 bytes; raise \
             --kv-memory, or compile with a smaller --max-seq-len"
        );
        program.cache_groups[0].kind = CacheKind::Recurrent { bytes: 8 };
        assert_eq!(
            of(&program, None).unwrap_err(),
            "plan refused: cache groups: engines run paged ones alone"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let (plan, program) = small();
        let limits = plan.card().limits;
        let report = MemoryReport::on_device(plan.card(), &program, plan.weights(), None);
        let all = report.allocated();
        let check = |free, reserve| check_fit(&report, &program, &limits, free, reserve);
        assert!(check(all + 10, 10).is_ok());
        let error = |free, reserve| check(free, reserve).unwrap_err().to_string();
        let short = error(all, 2048);
        assert!(short.starts_with(&format!("device memory does not fit: {all} bytes are needed")), "{short}");
        assert!(short.ends_with(&format!("pass --kv-memory {} or less", 7 * 2048)), "{short}");
        assert!(error(all - report.kv, 0).contains("take a larger device"));
        assert!(error(0, u64::MAX).contains("0 are available"));
    }
}
