//! What the device can do at best: read bandwidth by footprint, chains of empty kernels, barriers among all blocks, the
//! rate of `mma.sync`.

use anyhow::Result;
use lathe_conformance::{Operands, Rig};
use lathe_device::{Arg, DevicePtr, Extent, Symbols, When};
use lathe_kernels::cuda::{Cost, Launches, Source, Stage};
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::timing::{Times, capture, replay};

const KERNELS: &str = include_str!("ceilings.cu");
const STEP: Symbols = Symbols { tokens: 1, sequences: 1, rows: 1, decode: true, sm_count: 1 };

/// The kernels of this part.
pub fn source() -> Source {
    Source::new("ceilings", KERNELS, vec![])
}

fn kernel(entry: &'static str, blocks: u32, block: u32, dependent: bool, args: Vec<Arg>) -> Launches {
    let grid = [Extent::fixed(blocks), Extent::fixed(1), Extent::fixed(1)];
    let (source, when, cost) = (source(), When::Always, Cost::default());
    let stage = Stage { source, entry, when, grid, block, shared_bytes: 0, dependent, args, cost };
    Launches { stages: vec![stage], workspaces: vec![] }
}

/// Time of one of `n` launches in a row, in a graph.
fn chain(rig: &mut Rig, launches: &Launches, at: &[DevicePtr], n: usize, samples: usize) -> Result<Times> {
    let operands = Operands { outputs: at.to_vec(), ..Operands::default() };
    rig.submit(launches, STEP, &operands)?;
    rig.wait()?;
    let graph = capture(rig, |rig| (0..n).try_for_each(|_| rig.submit(launches, STEP, &operands)))?;
    replay(rig, graph, n, samples)
}

/// Bandwidth by footprint and by blocks per multiprocessor.
fn reading(rig: &mut Rig, tiny: bool) -> Result<Value> {
    let sm_count = rig.info().sm_count;
    let footprints: Vec<u64> = if tiny { vec![1 << 16] } else { (0..9).map(|i| (4 << 20) << i).collect() };
    let largest = footprints.iter().max().copied().unwrap_or(0);
    let at = rig.driver().allocate("read", largest)?;
    rig.driver().fill(at, 1, largest)?;
    let out = rig.empty("sum", 4)?;
    let mut rows = Vec::new();
    for bytes in footprints {
        for per_sm in [1u32, 2, 4] {
            let (blocks, block) = if tiny { (4, 64) } else { (sm_count * per_sm, 512) };
            let args = vec![Arg::Output(0), Arg::U64(bytes / 16), Arg::Output(1)];
            let n = if tiny { 2 } else { ((8u64 << 30) / bytes).clamp(4, 200) as usize };
            let times = chain(rig, &kernel("read", blocks, block, false, args), &[at, out], n, 7)?;
            let mut row = times.report();
            row["footprint_bytes"] = json!(bytes);
            row["blocks_per_sm"] = json!(per_sm);
            row["gb_per_s"] = json!(bytes as f64 / times.median() / 1e9);
            rows.push(row);
        }
    }
    rig.free(at)?;
    rig.free(out)?;
    Ok(Value::Array(rows))
}

/// A graph of one empty kernel, launched and waited for: how much of every other time is the host's, once per replay.
fn round_trip(rig: &mut Rig, _: bool) -> Result<Value> {
    Ok(chain(rig, &kernel("empty", 1, 32, false, vec![]), &[], 1, 101)?.report())
}

/// Chains of kernels that do nothing: what a boundary between launches costs.
fn empty(rig: &mut Rig, tiny: bool) -> Result<Value> {
    let sm_count = if tiny { 2 } else { rig.info().sm_count };
    let n = if tiny { 4 } else { 4000 };
    let mut rows = Vec::new();
    for (entry, dependent) in [("empty", false), ("empty_dependent", false), ("empty_dependent", true)] {
        for blocks in [1, sm_count] {
            let times = chain(rig, &kernel(entry, blocks, 128, dependent, vec![]), &[], n, 9)?;
            let mut row = times.report();
            row["kernel"] = json!(entry);
            row["dependent"] = json!(dependent);
            row["blocks"] = json!(blocks);
            rows.push(row);
        }
    }
    Ok(Value::Array(rows))
}

/// All blocks meet through a counter in memory. One block per multiprocessor, so that all are there at once.
fn barriers(rig: &mut Rig, tiny: bool) -> Result<Value> {
    // The emulator runs blocks one after another: there one meets itself.
    let (blocks, rounds) = if tiny { (1, 3) } else { (rig.info().sm_count, 5000) };
    let counter = rig.empty("counter", 4)?;
    let operands = Operands { outputs: vec![counter], ..Operands::default() };
    let reset = kernel("reset", 1, 32, false, vec![Arg::Output(0)]);
    let meet = kernel("barrier", blocks, 128, false, vec![Arg::Output(0), Arg::U32(rounds)]);
    let both = |rig: &mut Rig| {
        rig.submit(&reset, STEP, &operands)?;
        rig.submit(&meet, STEP, &operands)
    };
    both(rig)?;
    rig.wait()?;
    let graph = capture(rig, both)?;
    let times = replay(rig, graph, rounds as usize, 9)?;
    rig.free(counter)?;
    let mut row = times.report();
    row["blocks"] = json!(blocks);
    row["rounds"] = json!(rounds);
    Ok(row)
}

fn multiplying(rig: &mut Rig, tiny: bool) -> Result<Value> {
    let mut rows = Vec::new();
    for per_sm in [1u32, 2, 4] {
        let (blocks, rounds) = if tiny { (1, 2) } else { (rig.info().sm_count * per_sm, 20_000 / per_sm) };
        let out = rig.empty("sums", blocks as usize * 256 * 4)?;
        let args = vec![Arg::Output(0), Arg::U32(rounds)];
        let times = chain(rig, &kernel("multiply", blocks, 256, false, args), &[out], 1, 9)?;
        rig.free(out)?;
        let flops = f64::from(blocks) * 8.0 * 8.0 * f64::from(rounds) * (2 * 16 * 8 * 16) as f64;
        let mut row = times.report();
        row["warps_per_sm"] = json!(8 * per_sm);
        row["tflop_per_s"] = json!(flops / times.median() / 1e12);
        rows.push(row);
    }
    Ok(Value::Array(rows))
}

/// Each by itself: one that fails does not hide the others.
///
/// # Errors
/// The first that failed.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    type Ceiling = fn(&mut Rig, bool) -> Result<Value>;
    let all: [(&str, Ceiling); 5] = [
        ("read", reading),
        ("host_round_trip", round_trip),
        ("empty_kernels", empty),
        ("grid_barrier", barriers),
        ("mma_sync_bf16", multiplying),
    ];
    let mut first = None;
    for (name, ceiling) in all {
        let value = bench.rig().and_then(|mut rig| ceiling(&mut rig, bench.emulator));
        match value {
            Ok(value) => found.insert(name.into(), value),
            Err(error) => {
                let text = format!("{error:#}");
                first.get_or_insert(error.context(name));
                found.insert(name.into(), json!({ "error": text }))
            }
        };
    }
    first.map_or(Ok(()), Err)
}
