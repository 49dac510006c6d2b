//! The run that is made on a GPU, on the emulator: every part does what it is there for.

use std::path::Path;
use std::process::Command;

use lathe_tests::drive::compile;
use lathe_tests::root;
use serde_json::Value;

/// A test program of this crate, as built last.
fn newest(name: &str) -> std::path::PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let of = |path: &Path| {
        let file = path.file_name()?.to_str()?;
        let hash = file.strip_prefix(name)?.strip_prefix('-')?;
        hash.chars().all(|c| c.is_ascii_hexdigit()).then(|| path.metadata().unwrap().modified().unwrap())
    };
    let all = deps.read_dir().unwrap().map(|entry| entry.unwrap().path());
    all.filter_map(|path| Some((of(&path)?, path))).max().unwrap().1
}

#[test]
fn every_part_runs_on_the_emulator() {
    let kit = tempfile::tempdir().unwrap();
    let kit = kit.path();
    for folder in ["plans", "tests", "bin"] {
        std::fs::create_dir(kit.join(folder)).unwrap();
    }
    let model = root().join("tools/demo-model");
    let args = ["--model", model.to_str().unwrap(), "--target", "cpu,sm_90", "--max-num-tokens", "256"];
    let limits = ["--max-seq-len", "512", "--max-batch", "16"];
    compile(&[&args[..], &limits].concat(), &kit.join("plans/demo.plan")).unwrap();
    for name in ["gather_rows", "glu", "step_structs"] {
        std::os::unix::fs::symlink(newest(name), kit.join("tests").join(name)).unwrap();
    }
    std::os::unix::fs::symlink(lathe_tests::program("runtime"), kit.join("bin/runtime")).unwrap();

    let out = kit.join("found.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    command.arg("--emulator").arg("--kit").arg(kit).arg("--out").arg(&out);
    let output = command.args(["--date", "1999-12-31"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let found: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((&found["date"], &found["emulator"]), (&Value::from("1999-12-31"), &Value::from(true)));
    let parts = found["parts"].as_object().unwrap();
    assert_eq!(parts.len(), 7);
    for (name, part) in parts {
        assert!(part["error"].is_null(), "{name}: {}", part["error"]);
    }
    // The checked emulator and the fast one have the same bits, and so has every way through the engine.
    let nodes = parts["differential"]["nodes"].as_array().unwrap();
    assert!(
        nodes.len() >= 13 && nodes.iter().all(|node| node["elements_with_other_bits"] == 0),
        "{nodes:#?}"
    );
    assert_eq!(parts["wgmma"]["mma_sync_against_emulator"]["other_bits"], 0);
    assert_eq!(parts["demo"]["without_graphs"]["requests"], parts["demo"]["without_graphs"]["same_bits"]);
    assert!(parts["steps"]["demo"]["decode"][0]["tokens_per_s"].as_f64().unwrap() > 0.0);
    let timed = parts["kernels"]["nodes"].as_array().unwrap();
    assert!(timed.iter().all(|node| node["median_us"].as_f64().is_some_and(|us| us > 0.0)), "{timed:#?}");
}

#[test]
fn a_failed_part_is_recorded_and_the_others_run() {
    let kit = tempfile::tempdir().unwrap();
    let out = kit.path().join("found.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-check"));
    command.arg("--emulator").arg("--kit").arg(kit.path()).arg("--out").arg(&out);
    // There are no plans: `demo` is about being right, so the run fails.
    let output = command.args(["--only", "demo,ceilings"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert!(found["parts"]["demo"]["error"].as_str().unwrap().contains("demo.plan"), "{found:#}");
    assert!(found["parts"]["ceilings"]["error"].is_null(), "{found:#}");
    assert!(found["parts"]["ceilings"]["mma_sync_bf16"][0]["tflop_per_s"].is_number(), "{found:#}");
}
