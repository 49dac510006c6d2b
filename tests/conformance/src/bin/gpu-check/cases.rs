//! Every kernel case against its reference: the test programs of this crate, on the GPU where there is one.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::Bench;

/// Test programs about kernels. `rig` and `mutants` are about the emulator, `code` is about machine code.
const PROGRAMS: &[&str] = &[
    "gather_rows",
    "glu",
    "step_structs",
    "embedding",
    "rms_norm",
    "rope_append",
    "sampling",
    "gemm",
    "fused",
    "attention",
];

/// Outcome of a test from a line of the test harness.
fn outcome(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ").filter(|(_, word)| ["ok", "FAILED"].contains(word))
}

/// # Errors
/// Failed tests; a program that does not run or says nothing.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    // All of them would take the emulator minutes, and the suite runs them there anyway.
    let programs = if bench.emulator { &PROGRAMS[..3] } else { PROGRAMS };
    let mut wrong = Vec::new();
    for program in programs {
        let started = Instant::now();
        let path = bench.kit.join("tests").join(program);
        if *program == "fused" && !path.is_file() {
            continue;
        }
        let mut command = Command::new(&path);
        command.args(["--test-threads", "4"]);
        if !bench.emulator {
            command.env("LATHE_RIG", "gpu");
        }
        let output = command.output().with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let tests: Map<String, Value> =
            text.lines().filter_map(outcome).map(|(name, word)| (name.to_owned(), json!(word))).collect();
        let passed = tests.values().filter(|word| *word == "ok").count();
        let ok = output.status.success() && passed == tests.len() && passed > 0;
        let mut row = json!({ "passed": passed, "tests": tests, "seconds": started.elapsed().as_secs_f64() });
        if !ok {
            wrong.push(*program);
            let said: Vec<&str> = text.lines().filter(|line| outcome(line).is_none()).collect();
            row["said"] = json!(said.join("\n").chars().take(6000).collect::<String>());
            row["errors"] =
                json!(String::from_utf8_lossy(&output.stderr).chars().take(2000).collect::<String>());
        }
        found.insert((*program).into(), row);
    }
    ensure!(wrong.is_empty(), "tests failed: {wrong:?}");
    Ok(())
}
