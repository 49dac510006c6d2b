//! The `compile` program as its users meet it: exit codes, streams, files left behind.

mod checkpoints;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use checkpoints::{Dir, config};
use lathe_numerics::DType;
use serde_json::{Value, json};

fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compile"));
    // Only the given directory and no hub cache decide what is found.
    command.args(line.split_whitespace()).current_dir(dir).env("HF_HUB_CACHE", dir.join("no-cache"));
    command.env_remove("LATHE_LOG");
    command
}

fn compile(dir: &Path, line: &str) -> Output {
    command(dir, line).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_becomes_a_plan_and_a_report() {
    let (model, out) = (Dir::of(&config(json!({})), DType::BF16), tempfile::tempdir().unwrap());
    let line = format!("--model {} --max-batch 4 --max-num-tokens 64 -o x.plan", model.path().display());
    let done = compile(out.path(), &format!("{line} --json"));
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(files(out.path()), ["x.plan"]);
    let plan = lathe_plan::Plan::open(&out.path().join("x.plan")).unwrap();
    assert_eq!(report["plan_bytes"], std::fs::metadata(out.path().join("x.plan")).unwrap().len());
    assert_eq!(report["model"], plan.card().name.as_str());
    assert_eq!(plan.card().limits.max_batch, 4);
    let phases: Vec<&str> =
        report["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["import", "canonical", "quant", "fuse", "select", "schedule", "emit"]);

    let table = compile(out.path(), &line);
    let text = String::from_utf8(table.stdout).unwrap();
    for row in ["merge-qkv", "weights", "stored in two layouts", "arena", "kv per token", "plan "] {
        assert!(text.contains(row), "{row} missing in {text}");
    }
}

#[test]
fn flags_in_the_plan_make_the_same_plan() {
    let (model, out) = (Dir::of(&config(json!({})), DType::F32), tempfile::tempdir().unwrap());
    let path = model.path().display().to_string();
    let first =
        compile(out.path(), &format!("--model {path} --dtype bf16 --kv-cache f16 --threads 1 -o a.plan"));
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let flags = lathe_plan::Plan::open(&out.path().join("a.plan")).unwrap().card().flags.join(" ");
    let second = compile(out.path(), &format!("--model {path} {flags} --threads 3 -o b.plan"));
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    let [a, b] = ["a.plan", "b.plan"].map(|n| std::fs::read(out.path().join(n)).unwrap());
    assert!(a == b, "the plans differ");
}

#[test]
fn stopping_early_prints_the_graph_and_writes_no_plan() {
    let (model, out) = (Dir::of(&config(json!({})), DType::BF16), tempfile::tempdir().unwrap());
    let line = format!("--model {} --to fuse --dump-phases dump", model.path().display());
    let done = compile(out.path(), &line);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let text = String::from_utf8(done.stdout.clone()).unwrap();
    lathe_ir::verify(&lathe_ir::parse(&text).unwrap()).unwrap();
    assert!(stderr(&done).contains("none: stopped after fuse"));
    assert_eq!(files(out.path()), ["dump"]);
    assert_eq!(files(&out.path().join("dump")), ["1-import.ir", "2-canonical.ir", "3-quant.ir", "4-fuse.ir"]);
}

#[test]
fn every_fault_has_its_exit_code_and_says_what_to_do() {
    let (model, out) = (Dir::of(&config(json!({})), DType::BF16), tempfile::tempdir().unwrap());
    let mistral = Dir::of(&config(json!({})), DType::BF16);
    mistral.write("config.json", &config(json!({"architectures": ["MambaForCausalLM"]})).to_string());
    let (model, mistral) = (model.path().display().to_string(), mistral.path().display().to_string());
    let rows: [(String, i32, &[&str]); 9] = [
        ("--max-batch 4".into(), 2, &["--model"]),
        (format!("--model {model} --dtype int8"), 2, &["bf16"]),
        (
            format!("--model {model} --max-num-tokens 4"),
            2,
            &["--max-num-tokens 4", "help: pass --max-num-tokens 32"],
        ),
        (format!("--model {model} --max-seq-len 9999"), 2, &["must be from 1 to 256"]),
        (
            format!("--model {model} --target sm_90a"),
            3,
            &["unsupported target sm_90a", "sm_90 runs on the same devices"],
        ),
        (format!("--model {mistral}"), 3, &["architecture MambaForCausalLM", "supported: LlamaForCausalLM"]),
        ("--model org/absent".into(), 3, &["help: download it with: hf download org/absent"]),
        ("--config absent.json --synthetic-weights 1".into(), 5, &["absent.json", "No such file"]),
        (format!("--model {model} -o no/such/dir/x.plan"), 5, &["no/such/dir/x.plan"]),
    ];
    for (line, code, parts) in rows {
        let done = compile(out.path(), &line);
        let text = stderr(&done);
        assert_eq!(done.status.code(), Some(code), "{line}: {text}");
        assert!(done.stdout.is_empty(), "{line}");
        // Reports wrap at the terminal's width.
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(flat.contains(part), "{line}: {part} missing in {text}");
        }
    }
    assert_eq!(files(out.path()), [""; 0]);
}

#[test]
fn the_version_names_what_matters() {
    let done = compile(Path::new("."), "--version");
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(done.status.code(), Some(0));
    for part in ["commit ", "plan format 1.", "targets cpu", "isa "] {
        assert!(text.contains(part), "{part} missing in {text}");
    }
}

#[test]
fn log_lines_can_be_json() {
    let (model, out) = (Dir::of(&config(json!({})), DType::BF16), tempfile::tempdir().unwrap());
    let done = compile(
        out.path(),
        &format!("--model {} --to select --json --log-format json", model.path().display()),
    );
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let lines: Vec<Value> = stderr(&done).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().any(|l| l["message"].as_str().is_some_and(|m| m.starts_with("phase import took"))));
    assert_eq!(serde_json::from_slice::<Value>(&done.stdout).unwrap()["stopped_after"], "select");
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let out = tempfile::tempdir().unwrap();
    // Half a gigabyte of weights: writing them takes longer than noticing the file.
    let big = config(
        json!({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "head_dim": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 1000}),
    );
    std::fs::write(out.path().join("config.json"), big.to_string()).unwrap();
    let mut child = command(out.path(), "--config config.json --synthetic-weights 1 --threads 1")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !files(out.path()).iter().any(|f| f.ends_with(".part")) {
        assert!(child.try_wait().unwrap().is_none(), "ended before it wrote");
        assert!(started.elapsed() < Duration::from_secs(60), "no temporary file after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    // The file's name is told to the handler right after the file appears.
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: signals a child of this test that has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130), "{}", stderr(&done));
    assert!(stderr(&done).contains("interrupted: no plan was written"));
    assert_eq!(files(out.path()), ["config.json"]);
}
