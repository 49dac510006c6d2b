//! `compile verify` as its users meet it: plans that are right, plans that are not.

mod checkpoints;
mod memory;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use checkpoints::architectures::{shapes, with};
use checkpoints::{Dir, config};
use lathe_numerics::DType;
use lathe_plan::Plan;
use lathe_plan::testing::reseal;
use serde_json::{Value, json};

fn compile(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compile"));
    command.env_remove("LATHE_LOG").args(args).output().unwrap()
}

fn plan_of(dir: &Dir, flags: &[&str]) -> PathBuf {
    let (model, plan) = (dir.path(), dir.path().join("engine.plan"));
    let output =
        compile(&[&["--model", model.to_str().unwrap(), "-o", plan.to_str().unwrap()][..], flags].concat());
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    plan
}

fn verify(model: &Path, plan: &Path, flags: &[&str]) -> Output {
    let (model, plan) = (model.to_str().unwrap(), plan.to_str().unwrap());
    compile(&[&["verify", "--model", model, "--plan", plan][..], flags].concat())
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", error(output)))
}

/// Flips the sign bit of every third element in the middle of a bf16 weight and makes the hashes right again: a plan that
/// `runtime check` finds whole.
fn corrupt(plan: &Path, weight: &str) -> PathBuf {
    let (offset, bytes) = {
        let read = Plan::open(plan).unwrap();
        let at = read.weights().iter().position(|w| w.name == weight).unwrap();
        let data = read.header().sections.iter().find(|s| s.tag == *b"WDAT").unwrap().offset;
        ((data + read.weights()[at].offset) as usize, read.weights()[at].bytes as usize)
    };
    let mut file = std::fs::read(plan).unwrap();
    for element in (offset + bytes / 4..offset + bytes / 2).step_by(6) {
        file[element | 1] ^= 0x80;
    }
    reseal(&mut file);
    let other = plan.with_extension("corrupt");
    std::fs::write(&other, file).unwrap();
    Plan::open(&other).unwrap();
    other
}

#[test]
fn a_plan_is_what_its_checkpoint_gives() {
    let shapes = [
        (json!({}), DType::BF16, &[][..]),
        (json!({"tie_word_embeddings": true, "attention_bias": true}), DType::F32, &[]),
        (
            json!({"num_key_value_heads": 4, "hidden_size": 64, "head_dim": 16}),
            DType::F16,
            &["--kv-cache", "f32"],
        ),
        (json!({"vocab_size": 5000}), DType::F32, &["--kv-cache", "bf16"]),
        (json!({"num_key_value_heads": 1}), DType::BF16, &["--dtype", "f32"]),
    ];
    // Past a leaf of attention, and more than sample in one step.
    let long = (0..150).map(|i| (i * 7 % 50).to_string()).collect::<Vec<_>>().join(",");
    for (change, dtype, flags) in shapes {
        let dir = Dir::of(&config(change), dtype);
        let plan = plan_of(&dir, flags);
        for more in [&["--tokens", &long][..], &["--isa", "scalar", "--threads", "1"], &["--tokens", "3"]] {
            let output = verify(&dir.path(), &plan, &[&["--layers", "--json"], more].concat());
            assert_eq!(output.status.code(), Some(0), "{flags:?} {more:?}: {}", error(&output));
            let found = json(&output);
            let launches = found["launches"].as_array().unwrap();
            assert_eq!(launches.len(), Plan::open(&plan).unwrap().program("decoder").unwrap().launches.len());
            assert!(launches.iter().all(|l| l["max_bound"].as_f64() > Some(0.0)), "{found:#}");
            assert_eq!(found["weight_faults"], json!([]));
            let ids = found["logits"]["ids"].as_u64().unwrap();
            assert_eq!(ids, found["logits"]["vocab_size"].as_u64().unwrap().min(4096));
        }
        let output = verify(&dir.path(), &plan, &[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        assert!(text.contains("weights   ok") && text.contains("logits    ok"), "{text}");
    }
}

#[test]
fn every_architecture_is_what_its_checkpoint_gives() {
    for (base, change) in shapes() {
        for (config, flags) in [(base.clone(), &[][..]), (with(&base, &change), &["--dtype", "f32"])] {
            let dir = Dir::of(&config, DType::BF16);
            let plan = plan_of(&dir, flags);
            let read = Plan::open(&plan).unwrap();
            let longest = read.card().limits.max_seq_len;
            // What only appends to the cache shows in the attention that reads it.
            let launches = read.program("decoder").unwrap().launches.iter();
            let n_launches = launches.filter(|l| !l.outputs.is_empty()).count();
            // Longer than every window.
            let tokens: Vec<String> = (0..longest.min(100)).map(|i| (i * 7 % 50).to_string()).collect();
            let output = verify(&dir.path(), &plan, &["--layers", "--json", "--tokens", &tokens.join(",")]);
            assert_eq!(output.status.code(), Some(0), "{config}: {}", error(&output));
            let found = json(&output);
            assert_eq!(found["launches"].as_array().unwrap().len(), n_launches, "{config}");
        }
    }
}

#[test]
fn a_corrupt_weight_is_found_and_its_layer_named() {
    let dir = Dir::of(&config(json!({"num_hidden_layers": 4})), DType::BF16);
    let plan = plan_of(&dir, &[]);
    for (weight, value) in [
        ("model.layers.2.mlp.down_proj.weight", "l2.down"),
        ("model.layers.1.input_layernorm.weight", "l0.h"),
        ("model.layers.0.self_attn.o_proj.weight", "l0.o"),
        ("model.embed_tokens.weight", "embed"),
    ] {
        let bad = corrupt(&plan, weight);
        let output = verify(&dir.path(), &bad, &["--layers", "--json"]);
        assert_eq!(output.status.code(), Some(6), "{weight}: {}", error(&output));
        let found = json(&output);
        let faults = found["weight_faults"].as_array().unwrap();
        assert_eq!((faults.len(), &faults[0]["name"]), (1, &json!(weight)));
        let off = |l: &&Value| l["max_error"].as_f64() > l["max_bound"].as_f64();
        let launches = found["launches"].as_array().unwrap();
        let first = launches.iter().find(off).unwrap_or_else(|| panic!("{weight}: {found:#}"));
        assert_eq!(first["value"], value, "{weight}");
        assert!(first["weights"].as_array().unwrap().contains(&json!(weight)), "{first}");
        // Each launch goes on from the engine's inputs: nothing behind the first is blamed for it.
        assert_eq!(launches.iter().filter(off).count(), 1, "{weight}");
        let text = error(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            text.contains("is the first launch that leaves its tolerance") && text.contains(value),
            "{text}"
        );
        // Without the layers the weight is named.
        let output = verify(&dir.path(), &bad, &[]);
        assert_eq!(output.status.code(), Some(6));
        assert!(error(&output).contains(weight), "{}", error(&output));
    }
}

#[test]
fn a_corrupt_expert_or_router_is_found_and_named() {
    for (architecture, experts, router, tensor) in [
        (
            "MixtralForCausalLM",
            "l1.experts.down",
            "model.layers.1.block_sparse_moe.gate.weight",
            "experts.1.w2.weight",
        ),
        (
            "Qwen2MoeForCausalLM",
            "l1.experts.gate_up",
            "model.layers.1.mlp.gate.weight",
            "experts.1.up_proj.weight",
        ),
        (
            "Qwen3MoeForCausalLM",
            "l1.experts.gate_up",
            "model.layers.1.mlp.gate.weight",
            "experts.2.gate_proj.weight",
        ),
        ("GptOssForCausalLM", "l1.experts.down", "model.layers.1.mlp.router.weight", "mlp.experts.down_proj"),
    ] {
        let (config, _) = shapes().into_iter().find(|(c, _)| c["architectures"][0] == architecture).unwrap();
        let dir = Dir::of(&config, DType::BF16);
        let plan = plan_of(&dir, &[]);
        let launch = if experts.ends_with("down") { "l1.expert_down" } else { "l1.expert_mlp" };
        for (weight, value, origin) in [(experts, launch, tensor), (router, "l1.router", router)] {
            let bad = corrupt(&plan, weight);
            let output = verify(&dir.path(), &bad, &["--layers", "--json", "--threads", "1"]);
            assert_eq!(output.status.code(), Some(6), "{architecture} {weight}: {}", error(&output));
            let found = json(&output);
            let faults = found["weight_faults"].as_array().unwrap();
            assert_eq!((faults.len(), &faults[0]["name"]), (1, &json!(weight)));
            let tensors = faults[0]["tensors"].as_array().unwrap();
            assert!(tensors.iter().any(|t| t.as_str().unwrap().ends_with(origin)), "{tensors:?}");
            assert!(tensors.iter().all(|t| t.as_str().unwrap().contains(".layers.1.")), "{tensors:?}");
            let off = |l: &&Value| l["max_error"].as_f64() > l["max_bound"].as_f64();
            let off: Vec<_> = found["launches"].as_array().unwrap().iter().filter(off).collect();
            // The last layer's launches see the sampled rows alone.
            let names: Vec<_> =
                off.iter().map(|l| l["value"].as_str().unwrap().replace(".rows", "")).collect();
            assert_eq!(names, [value], "{architecture} {weight}");
            let text = error(&output).split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(value) && text.contains(weight), "{text}");
            assert!(text.contains(tensors[0].as_str().unwrap()), "{text}");
        }
    }
}

#[test]
fn an_undecided_router_is_no_difference() {
    // Many alike experts: without rounding, others are chosen at some of the positions.
    let config = with(
        &config(
            json!({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64}),
        ),
        &json!({
            "num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "num_hidden_layers": 6,
            "norm_topk_prob": true, "head_dim": 16,
        }),
    );
    // Experts that say much: a choice shows in the logits.
    let mut tensors = checkpoints::tensors(&config, DType::BF16);
    for tensor in tensors.iter_mut().filter(|t| t.name.contains("experts") || t.name.contains("lm_head")) {
        for element in tensor.bytes.as_chunks_mut::<2>().0 {
            let number = half::bf16::from_le_bytes(*element).to_f32();
            *element = half::bf16::from_f32(number * 8.0).to_le_bytes();
        }
    }
    let dir = Dir::new(&config, &tensors);
    let plan = plan_of(&dir, &[]);
    let tokens = (0..200).map(|i| (i * 7 % 50).to_string()).collect::<Vec<_>>().join(",");
    let output = verify(&dir.path(), &plan, &["--layers", "--json", "--tokens", &tokens]);
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let logits = &json(&output)["logits"];
    assert_eq!((&logits["choices"], &logits["choices_apart"]), (&json!(200 * 6), &json!(0)));
}

#[test]
fn other_weights_are_other_weights() {
    let config = config(json!({}));
    let dir = Dir::of(&config, DType::BF16);
    let plan = plan_of(&dir, &[]);
    let mut tensors = checkpoints::tensors(&config, DType::BF16);
    // One ulp of one element: far below any tolerance.
    let tensor = tensors.iter_mut().find(|t| t.name == "model.layers.1.mlp.up_proj.weight").unwrap();
    tensor.bytes[100] ^= 1;
    let tuned = Dir::new(&config, &tensors);
    let output = verify(&tuned.path(), &plan, &["--layers", "--json"]);
    assert_eq!(output.status.code(), Some(6), "{}", error(&output));
    let found = json(&output);
    assert_eq!(found["weight_faults"].as_array().unwrap().len(), 1);
    assert!(
        found["weight_faults"][0]["name"].as_str().unwrap().contains("layers.1.mlp.gate_up"),
        "{found:#}"
    );
}

#[test]
fn what_cannot_be_compared_is_said() {
    let dir = Dir::of(&config(json!({})), DType::BF16);
    let other = Dir::of(&config(json!({"intermediate_size": 48})), DType::BF16);
    let plan = plan_of(&dir, &["--max-seq-len", "64"]);
    let junk = dir.path().join("junk.plan");
    std::fs::write(&junk, "junk").unwrap();
    let absent = dir.path().join("absent.plan");
    let long = vec!["1"; 65].join(",");
    for (model, plan, flags, code, words) in [
        (&other, &plan, &[][..], 3, "another checkpoint"),
        (&dir, &junk, &[], 3, "junk.plan"),
        (&dir, &absent, &[], 5, "absent.plan"),
        (&dir, &plan, &["--tokens", "50"], 2, "50 is not below the vocabulary's 50"),
        (&dir, &plan, &["--tokens", &long], 2, "has 65 ids"),
        (&dir, &plan, &["--tokens", "x"], 2, "invalid value"),
        (&dir, &plan, &["--threads", "0"], 2, "at least 1"),
    ] {
        let output = verify(&model.path(), plan, flags);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {}", error(&output));
        assert!(error(&output).contains(words), "{words} missing in {}", error(&output));
    }
}

#[test]
fn the_question_may_be_a_text() {
    let dir = Dir::of(&config(json!({})), DType::BF16);
    let vocab: serde_json::Map<_, _> = ["e", "h", "l", "o", "\u{120}", "he", "ll"]
        .iter()
        .zip(5..)
        .map(|(t, id)| ((*t).into(), json!(id)))
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "l l"]},
        "pre_tokenizer": byte_level, "decoder": byte_level,
    });
    dir.write("tokenizer.json", &tokenizer.to_string());
    let plan = plan_of(&dir, &["--max-seq-len", "64"]);
    let file = dir.path().join("text");
    let file = file.to_str().unwrap();
    let asked = |flag: &str, what: &str| {
        let output = verify(&dir.path(), &plan, &["--layers", "--json", flag, what]);
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        json(&output)
    };
    dir.write("text", "hello hello");
    let (by_text, by_ids) = (asked("--text", file), asked("--tokens", "10,11,8,9,10,11,8"));
    assert_eq!((&by_text["logits"]["positions"], &by_text), (&json!(7), &by_ids));

    for (text, code, words) in [
        (&b""[..], 3, "is empty"),
        (b"\xff", 3, "is not UTF-8"),
        (b"xyz", 3, "has no token"),
        ("o".repeat(65).as_bytes(), 3, "has 65 tokens, a sequence of the plan holds 64"),
    ] {
        std::fs::write(file, text).unwrap();
        let output = verify(&dir.path(), &plan, &["--text", file]);
        assert_eq!(output.status.code(), Some(code), "{words}: {}", error(&output));
        assert!(error(&output).contains(words), "{words} missing in {}", error(&output));
    }
    let absent = verify(&dir.path(), &plan, &["--text", "absent.txt"]);
    assert_eq!(absent.status.code(), Some(5), "{}", error(&absent));

    let plan = plan_of(&dir, &["--tokenizer", "none"]);
    assert_eq!(verify(&dir.path(), &plan, &[]).status.code(), Some(0));
    let output = verify(&dir.path(), &plan, &["--text", file]);
    assert_eq!(output.status.code(), Some(3), "{}", error(&output));
    assert!(error(&output).contains("the plan has none"), "{}", error(&output));
}

#[test]
fn weights_stream_through_the_comparison() {
    // Embedding and head of 96 MiB each, four layers of 12 MiB: 240 MiB of bf16, 480 as f32. One node's operands as f32
    // are 16 MiB at most, the engine holds some more.
    let folder = tempfile::tempdir().unwrap();
    let config = config(json!({
        "vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 4,
    }));
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compile"));
        command.current_dir(folder.path()).args(args).stdout(Stdio::null()).spawn().unwrap()
    };
    let compiled = run(&[
        "--config",
        "config.json",
        "--synthetic-weights",
        "1",
        "--max-num-tokens",
        "64",
        "--max-batch",
        "4",
        "--max-seq-len",
        "128",
    ]);
    memory::peak(compiled);
    let peak = memory::peak(run(&[
        "verify",
        "--config",
        "config.json",
        "--plan",
        "engine.plan",
        "--layers",
        "--threads",
        "2",
    ]));
    assert!((1 << 20..160 << 20).contains(&peak), "peak RssAnon is {} KiB", peak >> 10);
}
