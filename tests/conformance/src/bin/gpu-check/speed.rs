//! Time of every node of an 8B Llama against its roofline.

use anyhow::Result;
use lathe_conformance::Rig;
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::nodes::Node;
use crate::shapes::{LLAMA_8B, Load, SMALL};
use crate::timing::{capture, replay};

/// What the roofline takes a device to reach: an H200's measured copy rate and dense bf16 rate.
const BYTES_PER_SECOND: f64 = 4.3e12;
const FLOPS: f64 = 7.9e14;
/// Operands in turn cover this much, several times any second-level cache.
const ROTATE: u64 = 256 << 20;
/// A graph runs at least about this long.
const GRAPH_SECONDS: f64 = 1e-2;
const SAMPLES: usize = 9;

fn measure(rig: &mut Rig, node: &Node, tiny: bool) -> Result<Value> {
    let roofline = (node.bytes as f64 / BYTES_PER_SECOND).max(node.flops as f64 / FLOPS);
    let sets = if tiny { 2 } else { ROTATE.div_ceil(node.footprint().max(1)).clamp(1, 32) };
    let placed = (0..sets).map(|seed| node.place(rig, seed)).collect::<Result<Vec<_>>>()?;
    for set in &placed {
        node.submit(rig, set)?;
    }
    rig.wait()?;
    let runs = if tiny { 2 } else { ((GRAPH_SECONDS / roofline.max(2e-6)) as usize).clamp(8, 2000) };
    let graph = capture(rig, |rig| (0..runs).try_for_each(|i| node.submit(rig, &placed[i % placed.len()])))?;
    let times = replay(rig, graph, runs, if tiny { 2 } else { SAMPLES })?;
    let launches = rig.launched().len();
    placed.into_iter().try_for_each(|set| set.free(rig))?;
    let seconds = times.median();
    let mut row = times.report();
    for (key, value) in [
        ("bytes", json!(node.bytes)),
        ("flops", json!(node.flops)),
        ("gb_per_s", json!(node.bytes as f64 / seconds / 1e9)),
        ("tflop_per_s", json!(node.flops as f64 / seconds / 1e12)),
        ("roofline_us", json!(roofline * 1e6)),
        ("of_roofline", json!(roofline / seconds)),
        ("launches", json!(launches)),
        ("operand_sets", json!(sets)),
        ("runs_per_graph", json!(runs)),
    ] {
        row[key] = value;
    }
    Ok(row)
}

/// All projections at decode and prefill row counts, attention at contexts, the rest at both ends.
///
/// # Errors
/// The device's.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    found.insert("roofline".into(), json!({ "bytes_per_s": BYTES_PER_SECOND, "flop_per_s": FLOPS }));
    let tiny = bench.emulator;
    let shape = if tiny { SMALL } else { LLAMA_8B };
    let decode = |sequences, context| Load { sequences, rows: 1, context };
    let prefill = |rows| Load { sequences: 1, rows, context: rows };
    let mut nodes: Vec<(Load, Node)> = Vec::new();
    let mut add = |load: Load, made: Vec<Node>| nodes.extend(made.into_iter().map(|node| (load, node)));
    let (batches, prefills): (&[usize], &[usize]) =
        if tiny { (&[1], &[8]) } else { (&[1, 8, 32, 128], &[512, 2048]) };
    let contexts: &[usize] = if tiny { &[40] } else { &[1024, 8192] };
    for load in batches.iter().map(|b| decode(*b, 64)).chain(prefills.iter().map(|rows| prefill(*rows))) {
        add(load, shape.linears(&load)?);
    }
    for load in contexts.iter().flat_map(|c| batches.iter().map(|b| decode(*b, *c))) {
        add(load, vec![shape.attention(&load)?]);
    }
    for load in prefills.iter().map(|rows| prefill(*rows)) {
        add(load, vec![shape.attention(&load)?]);
        add(load, shape.others(&load)?);
    }
    for load in batches.iter().map(|b| decode(*b, 64)) {
        add(load, vec![shape.sampling(&load)?]);
        add(load, shape.others(&load)?);
    }
    // After an error it is opened anew.
    let mut rig = None;
    let (mut rows, mut skipped) = (Vec::new(), 0);
    for (load, node) in nodes {
        if bench.out_of_time() {
            skipped += 1;
            continue;
        }
        let open = match &mut rig {
            Some(open) => open,
            none => none.insert(bench.rig()?),
        };
        let mut row = match measure(open, &node, tiny) {
            Ok(row) => row,
            Err(error) => {
                rig = None;
                json!({ "error": format!("{error:#}") })
            }
        };
        row["node"] = json!(node.role);
        row["family"] = json!(node.family);
        row["sequences"] = json!(load.sequences);
        row["rows_per_sequence"] = json!(load.rows);
        row["context"] = json!(load.context);
        rows.push(row);
    }
    found.insert("nodes".into(), Value::Array(rows));
    found.insert("nodes_left_out".into(), json!(skipped));
    Ok(())
}
