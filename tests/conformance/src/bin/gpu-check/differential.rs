//! The same kernels on the same inputs, on the device and on the emulator: how far the emulator's arithmetic is from the
//! hardware's, by family.

use anyhow::{Result, ensure};
use lathe_conformance::{Rig, bytes};
use lathe_kernels::tolerance;
use lathe_numerics::DType;
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::nodes::Node;
use crate::shapes::{Load, SMALL};

const LOADS: &[Load] = &[
    Load { sequences: 1, rows: 1, context: 200 },
    Load { sequences: 5, rows: 1, context: 300 },
    Load { sequences: 2, rows: 20, context: 150 },
    Load { sequences: 2, rows: 70, context: 70 },
];

fn results(rig: &mut Rig, node: &Node) -> Result<Vec<(DType, Vec<u8>)>> {
    let placed = node.place(rig, 1)?;
    node.submit(rig, &placed)?;
    rig.wait()?;
    let results = node.results(rig, &placed)?;
    placed.free(rig)?;
    Ok(results)
}

/// Fails when a difference is larger than what a kernel may be off its reference, twice.
///
/// # Errors
/// Faults, and differences.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    // A fault leaves a driver unusable: then both are opened anew, the old ones closed before.
    let mut rigs = None;
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for load in if bench.emulator { &LOADS[1..2] } else { LOADS } {
        for node in SMALL.all(load)? {
            let (device, emulator) = match &mut rigs {
                Some((device, emulator)) => (device, emulator),
                none => {
                    // Beside the emulator itself stands the checked one.
                    let (device, emulator) = none.insert((bench.rig()?, Rig::emulator(bench.emulator)?));
                    (device, emulator)
                }
            };
            let mut compare = || -> Result<(f32, f32, usize, usize, bool)> {
                let (mine, theirs) = (results(device, &node)?, results(emulator, &node)?);
                let (mut max, mut global, mut differ, mut n, mut ok) = (0f32, 0f32, 0, 0, true);
                for ((dtype, got), (_, want)) in mine.iter().zip(&theirs) {
                    let pairs = got.chunks(dtype.size()).zip(want.chunks(dtype.size()));
                    differ += pairs.filter(|(a, b)| a != b).count();
                    n += got.len() / dtype.size();
                    let errors = tolerance::errors(&bytes::to(*dtype, want), &bytes::to(*dtype, got));
                    let bound = tolerance::of(*dtype);
                    (max, global) = (max.max(errors.max), global.max(errors.global));
                    ok &= errors.max <= 2.0 * bound.max && errors.global <= 2.0 * bound.global;
                }
                Ok((max, global, differ, n, ok))
            };
            let name = format!("{} {}", node.family, node.role);
            let mut row = json!({ "family": node.family, "node": node.role, "tokens": node.symbols.tokens });
            match compare() {
                Ok((max, global, differ, n, ok)) => {
                    row["max_error"] = json!(max);
                    row["global_error"] = json!(global);
                    row["elements"] = json!(n);
                    row["elements_with_other_bits"] = json!(differ);
                    if !ok {
                        wrong.push(name);
                    }
                }
                Err(error) => {
                    row["error"] = json!(format!("{error:#}"));
                    wrong.push(name);
                    rigs = None;
                }
            }
            rows.push(row);
        }
    }
    found.insert("nodes".into(), Value::Array(rows));
    ensure!(wrong.is_empty(), "not what the emulator says: {wrong:?}");
    Ok(())
}
