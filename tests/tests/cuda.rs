//! CUDA programs on the emulator: what the CPU engine says, one answer, and the way of a user.

use std::path::{Path, PathBuf};
use std::process::Command;

use lathe_api::Engine;
use lathe_compiler::self_test::tolerance;
use lathe_numerics::DType;
use lathe_tests::answers::{alone, kv_of, mixed, plan, same};
use lathe_tests::drive::{Conditions, Emulation, Request, compile, emulate, load, logits, run, token};
use lathe_tests::{fixture, program, root};

/// The largest id of a row of logits, and how far the second is below it.
fn best(row: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    (order[0], row[order[0]] - row[order[1]])
}

/// Compares the emulated program with the CPU's on a prompt of `n` ids.
fn close_to_the_cpu(plan: &Path, dtype: DType, n: u64, how: Emulation) {
    let mut cpu = load(plan, 2, None).unwrap();
    let vocab = cpu.info().vocab_size;
    let ids: Vec<u32> = (0..n).map(|i| token(i, vocab)).collect();
    let want = logits(&mut cpu, &ids);
    let got = logits(&mut emulate(plan, how).unwrap(), &ids);
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let allowed = tolerance(dtype) * largest;
    let worst = want.iter().zip(&got).fold(0f32, |m, (w, g)| m.max((w - g).abs()));
    assert!(
        got.iter().all(|x| x.is_finite()) && worst <= allowed,
        "{}: off by {worst} of {allowed}",
        plan.display()
    );
    let rows = want.chunks(vocab as usize).zip(got.chunks(vocab as usize));
    for (position, (want, got)) in rows.enumerate() {
        let (id, margin) = best(want);
        if margin > 4.0 * allowed {
            assert_eq!(best(got).0, id, "{}: position {position}", plan.display());
        }
    }
    println!("{}: off by {worst:.3e} of {allowed:.3e}", plan.display());
}

/// A checkpoint without a tokenizer, for both targets.
fn both(model: &Path, out: PathBuf) -> PathBuf {
    let model = model.to_str().unwrap();
    let args = ["--model", model, "--tokenizer", "none", "--target", "cpu,sm_80", "--max-num-tokens", "64"];
    compile(&[&args[..], &["--max-seq-len", "128", "--max-batch", "8"]].concat(), &out).unwrap();
    out
}

#[test]
fn every_form_of_checkpoint_is_close_to_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("llama2-like", DType::F16, 20),
        ("llama32-sharded", DType::BF16, 40),
        ("parity/all-bias-bf16", DType::BF16, 60),
        ("parity/attention-bias-f32", DType::F32, 60),
        ("parity/gqa-tied-bf16", DType::BF16, 60),
        ("parity/gqa-wide-bf16", DType::BF16, 60),
        ("parity/llama3-rope-f32", DType::F32, 60),
        ("parity/mha-f32", DType::F32, 60),
        ("parity/mqa-linear-f32", DType::F32, 60),
        ("parity/odd-bf16", DType::BF16, 60),
    ];
    for (at, (name, dtype, n)) in cases.into_iter().enumerate() {
        let plan = both(&fixture(name), dir.path().join(format!("{}.plan", name.replace('/', "-"))));
        let how =
            Emulation { checked: true, seed: (at % 2 == 1).then_some(at as u64), ..Emulation::default() };
        close_to_the_cpu(&plan, dtype, n, how);
    }
}

/// One of each family; what shares a kernel's every case with another is left to the compiler's tests.
#[test]
fn a_tiny_model_of_every_family_draws_the_tokens_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("falcon-grouped-bf16", DType::BF16),
        ("falcon-sequential-f32", DType::F32),
        ("gemma2-bf16", DType::BF16),
        ("gemma3-f32", DType::F32),
        ("gpt-oss-f32", DType::F32),
        ("gpt2-f32", DType::F32),
        ("granite-f32", DType::F32),
        ("mistral-window-f32", DType::F32),
        ("mixtral-f32", DType::F32),
        ("neox-parallel-f32", DType::F32),
        ("olmo2-gqa-bf16", DType::BF16),
        ("phi3-short-bf16", DType::BF16),
        ("qwen2-moe-f32", DType::F32),
        ("qwen2-window-f32", DType::F32),
        ("qwen3-moe-f32", DType::F32),
        ("qwen3-window-bf16", DType::BF16),
        ("stablelm-parallel-bf16", DType::BF16),
    ];
    for (name, dtype) in cases {
        let plan = both(&fixture(&format!("parity/{name}")), dir.path().join(format!("{name}.plan")));
        let how = Emulation { checked: true, ..Emulation::default() };
        close_to_the_cpu(&plan, dtype, 40, how);
        if dtype == DType::F32 {
            let prompt = (0..24).map(|i| token(i, 101)).collect();
            let requests = [Request { prompt, max_new: 4, ..Request::default() }];
            let tokens = |engine: &mut dyn Engine| alone(engine, &requests).remove(0).tokens;
            let want = tokens(&mut load(&plan, 2, None).unwrap());
            assert_eq!(tokens(&mut emulate(&plan, Emulation::default()).unwrap()), want, "{name}");
        }
    }
}

#[test]
fn the_demo_model_is_close_to_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let plan = both(&root().join("tools/demo-model"), dir.path().join("demo.plan"));
    close_to_the_cpu(&plan, DType::BF16, 128, Emulation::default());
}

/// From sm_90 on a launch may begin before the one before it has ended, and waits by itself: with a seed the checked
/// emulator lets it, and reports what is touched too early.
#[test]
fn launches_may_begin_before_the_one_before_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo.plan");
    let model = root().join("tools/demo-model");
    let limits =
        ["--max-num-tokens", "64", "--max-seq-len", "128", "--max-batch", "4", "--tokenizer", "none"];
    compile(&[&["--model", model.to_str().unwrap(), "--target", "sm_90"][..], &limits].concat(), &out)
        .unwrap();
    let ids: Vec<u32> = (0..9).map(|i| token(i, 1500)).collect();
    let requests = [Request { prompt: ids.clone(), max_new: 3, ..Request::default() }];
    let (want, want_answer) = {
        let mut engine = emulate(&out, Emulation::default()).unwrap();
        (logits(&mut engine, &ids), alone(&mut engine, &requests))
    };
    for seed in 1..4 {
        let how = Emulation { checked: true, seed: Some(seed), ..Emulation::default() };
        let mut engine = emulate(&out, how).unwrap();
        let got = logits(&mut engine, &ids);
        assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "logits differ, seed {seed}");
        same(&want_answer, &alone(&mut engine, &requests), &format!("with seed {seed}"));
    }
}

#[test]
fn company_chunks_schedule_and_preemption_do_not_show() {
    let plan = plan("bfloat16", "bf16", "cpu,sm_80");
    let requests: Vec<Request> = mixed().into_iter().take(24).collect();
    let want = alone(&mut emulate(&plan, Emulation::default()).unwrap(), &requests);
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    for (how, conditions) in [
        (Emulation::default(), Conditions { chunk: Some(7), arrivals_per_step: 3, ..Conditions::default() }),
        (
            Emulation { without_graphs: true, seed: Some(3), sm_count: 3, ..Emulation::default() },
            Conditions { chunk: Some(64), ..Conditions::default() },
        ),
        (
            Emulation { sm_count: 400, ..Emulation::default() },
            Conditions { n_blocks: Some(17), ..Conditions::default() },
        ),
    ] {
        let (got, preemptions) =
            run(&mut emulate(&plan, how).unwrap(), &requests, &order, &conditions).unwrap();
        assert!(conditions.n_blocks.is_none() || preemptions > 0, "no preemption was forced");
        same(&want, &got, &format!("{how:?}, {conditions:?}"));
    }
}

#[test]
fn kv_bytes_and_logits_of_a_position_do_not_depend_on_the_way_there() {
    for (dtype, kv) in [("bfloat16", "bf16"), ("float16", "f16")] {
        let plan = plan(dtype, kv, "cpu,sm_80");
        let ids: Vec<u32> = (0..150).map(|i| token(i, 611)).collect();
        let of =
            |chunk, beside| kv_of(&mut emulate(&plan, Emulation::default()).unwrap(), &ids, chunk, beside);
        let (want_kv, want_logits) = of(150, false);
        assert!(want_kv.iter().any(|b| *b != 0));
        for (chunk, beside) in [(1, true), (7, false), (64, true)] {
            let (got_kv, got_logits) = of(chunk, beside);
            assert!(want_kv == got_kv, "KV bytes differ: {dtype}, chunk {chunk}, neighbour {beside}");
            assert!(
                want_logits.iter().zip(&got_logits).all(|(a, b)| a.to_bits() == b.to_bits()),
                "logits differ: {dtype}, chunk {chunk}, neighbour {beside}"
            );
        }
    }
}

/// Exit code, standard output and standard error of `runtime`.
fn runtime(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program("runtime")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_user_finds_the_device_or_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let model = root().join("tools/demo-model");
    let model = model.to_str().unwrap();
    let (two, cpu) = (dir.path().join("two.plan"), dir.path().join("cpu.plan"));
    compile(&["--model", model, "--target", "cpu,sm_80"], &two).unwrap();
    compile(&["--model", model], &cpu).unwrap();
    let (two, cpu) = (two.to_str().unwrap(), cpu.to_str().unwrap());

    let prompt = ["--temperature", "0", "--max-tokens", "12", "--prompt", "The sum of 23 and 45 is"];
    let generate = |plan, device| runtime(&[&["generate", plan, "--device", device][..], &prompt].concat());
    let (code, want, log) = generate(two, "cpu");
    assert_eq!(code, 0, "{log}");
    for device in ["emulator", "emulator:checked"] {
        let (code, got, log) = generate(two, device);
        assert_eq!((code, got), (0, want.clone()), "{log}");
        assert!(log.contains("sm_80"), "{log}");
    }
    let (code, report, log) = runtime(&["check", two, "--device", "emulator"]);
    assert_eq!(code, 0, "{log}");
    assert!(report.contains("path emulator/sm_80") && report.contains("self-test passed"), "{report}");

    // The rest is for machines without a GPU, which CI's are.
    if lathe_cuda::GpuDriver::open(0).is_err() {
        assert_eq!(generate(two, "auto").0, 0);
        let (code, _, log) = generate(two, "cuda");
        assert_eq!(code, 4, "{log}");
        assert!(log.contains("CUDA driver") && log.contains("--device emulator"), "{log}");
    }
    // Without PTX a plan is for its GPUs and the CPU.
    let stripped = dir.path().join("stripped.plan");
    let stripped = stripped.to_str().unwrap();
    assert_eq!(runtime(&["strip", two, "-o", stripped]).0, 0);
    assert!(std::fs::metadata(stripped).unwrap().len() < std::fs::metadata(two).unwrap().len());
    assert_eq!(generate(stripped, "cpu").1, want);
    let (code, _, log) = generate(stripped, "emulator");
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("PTX"), "{log}");

    let (code, _, log) = generate(cpu, "emulator");
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("decoder for cpu") && log.contains("--target"), "{log}");
}
