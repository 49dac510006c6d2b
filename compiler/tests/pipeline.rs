//! From a checkpoint to a plan: what is stored, that it is the same each time, and what it takes to make it.

mod checkpoints;
mod memory;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lathe_compiler::checkpoint::Checkpoint;
use lathe_compiler::error::CompileError;
use lathe_compiler::import::{Imported, import};
use lathe_compiler::options::{Options, Phase, Silent};
use lathe_compiler::pipeline::compile;
use lathe_compiler::report::Outcome;
use lathe_compiler::self_test;
use lathe_ir::{Graph, Interpreter, Tensor, WeightExpr, WeightSource};
use lathe_numerics::DType;
use lathe_plan::Plan;
use lathe_plan::schema::{Layout, Place, Program, Target, Weight};
use serde_json::{Value, json};

struct Compiled {
    plan: Plan,
    outcome: Outcome,
    _folder: tempfile::TempDir,
}

fn compiled(checkpoint: &Checkpoint, imported: Imported, options: &Options) -> Compiled {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { output: folder.path().join("engine.plan"), ..options.clone() };
    let outcome = compile(imported, checkpoint.tensors.as_ref(), &options, &Silent).unwrap();
    Compiled { plan: Plan::open(&options.output).unwrap(), outcome, _folder: folder }
}

/// The fused graph, as `--to fuse` prints it.
fn fused(checkpoint: &Checkpoint, options: &Options) -> Graph {
    let options = Options { to: Phase::Fuse, ..options.clone() };
    let imported = import(checkpoint, &options).unwrap();
    let outcome = compile(imported, checkpoint.tensors.as_ref(), &options, &Silent).unwrap();
    lathe_ir::parse(&outcome.graph_text).unwrap()
}

fn value(bytes: &[u8], dtype: DType) -> f32 {
    match dtype {
        DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        DType::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        _ => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    }
}

/// Element (`row`, `col`) of a stored weight, by FORMAT.md.
fn stored(weight: &Weight, bytes: &[u8], row: usize, col: usize) -> f32 {
    let k = weight.shape.get(1).map_or(1, |k| *k as usize);
    let index = match (weight.layout, weight.dtype) {
        (Layout::RowMajor, _) => row * k + col,
        (Layout::Panel16, DType::BF16) => {
            row / 16 * 16 * k.next_multiple_of(2) + col / 2 * 32 + row % 16 * 2 + col % 2
        }
        (Layout::Panel16, _) => row / 16 * 16 * k + col * 16 + row % 16,
        (Layout::Mma16, _) => {
            row / 16 * k.div_ceil(16) * 256 + lathe_kernels::cuda::mma16::index(row % 16, col)
        }
    };
    let size = weight.dtype.size();
    value(&bytes[index * size..(index + 1) * size], weight.dtype)
}

struct Stored(BTreeMap<String, Tensor>);

impl WeightSource for Stored {
    fn tensor(&self, name: &str) -> Result<Tensor, String> {
        self.0.get(name).cloned().ok_or_else(|| "absent".into())
    }
}

fn tensors(stored: &[checkpoints::Stored], dtype: DType) -> Stored {
    let tensor = |t: &checkpoints::Stored| {
        let data = t.bytes.chunks_exact(dtype.size()).map(|b| value(b, dtype)).collect();
        Tensor::float(dtype, t.shape.clone(), data)
    };
    Stored(stored.iter().map(|t| (t.name.clone(), tensor(t))).collect())
}

#[test]
fn stored_weights_are_the_recipes_values() {
    let rows = [
        (json!({}), DType::BF16, Options::default()),
        (json!({"tie_word_embeddings": true, "vocab_size": 53}), DType::F16, Options::default()),
        (
            json!({"attention_bias": true, "mlp_bias": true, "hidden_size": 20, "head_dim": 6}),
            DType::BF16,
            Options::default(),
        ),
        (
            json!({"intermediate_size": 33}),
            DType::F32,
            Options { dtype: Some(DType::BF16), ..Options::default() },
        ),
        (
            json!({"num_key_value_heads": 1}),
            DType::BF16,
            Options { dtype: Some(DType::F32), ..Options::default() },
        ),
    ];
    for (change, dtype, options) in rows {
        let config = checkpoints::config(change.clone());
        let held = checkpoints::tensors(&config, dtype);
        let checkpoint = checkpoints::Dir::new(&config, &held).open().unwrap();
        let Compiled { plan, outcome, .. } =
            compiled(&checkpoint, import(&checkpoint, &options).unwrap(), &options);
        plan.verify_weights(|_| {}).unwrap();
        let graph = fused(&checkpoint, &options);
        let source = tensors(&held, dtype);
        let interpreter = Interpreter::new(&graph, &source).unwrap();
        let mut merged = 0;
        for (index, weight) in plan.weights().iter().enumerate() {
            let id = graph.find_weight(&weight.name).unwrap();
            merged += usize::from(!matches!(graph.weight_data(id).expr, WeightExpr::Tensor(_)));
            let want = interpreter.weight_tensor(id).unwrap();
            let bytes = plan.weight_bytes(index);
            let k = want.row_len();
            for (i, &want) in want.floats().unwrap().iter().enumerate() {
                let got = stored(weight, bytes, i / k, i % k);
                assert!(
                    got.to_bits() == want.to_bits(),
                    "{change} {}[{i}]: {got} is not {want}",
                    weight.name
                );
            }
        }
        assert!(merged >= 5, "{change}: {merged} weights are recipes");
        let embeddings = plan.weights().iter().filter(|w| w.name.starts_with("model.embed_tokens")).count();
        assert_eq!((embeddings, outcome.weights.unwrap().duplicated_bytes), (1, 0), "{change}");
    }
}

#[test]
fn every_phase_can_be_the_last() {
    let config = checkpoints::config(json!({}));
    let checkpoint = checkpoints::Dir::of(&config, DType::BF16).open().unwrap();
    for (n, to) in Phase::ALL.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            to,
            output: folder.path().join("p.plan"),
            dump_phases: Some(folder.path().join("dump")),
            ..Options::default()
        };
        let imported = import(&checkpoint, &options).unwrap();
        let outcome = compile(imported, checkpoint.tensors.as_ref(), &options, &Silent).unwrap();
        let dumped = fs::read_dir(folder.path().join("dump")).unwrap().count();
        assert_eq!(dumped, (n + 1).min(6), "{to}");
        assert_eq!(options.output.exists(), to == Phase::Emit);
        lathe_ir::verify(&lathe_ir::parse(&outcome.graph_text).unwrap()).unwrap();
        // Two layers, each qkv, rope, attention, o, norm, gate and up, down, norm; embedding, first norm, two gathers, head.
        assert_eq!(outcome.launches, (to >= Phase::Select).then_some(2 * 8 + 5), "{to}");
    }
}

#[test]
fn a_device_program_has_five_nodes_a_layer_and_the_same_bytes_twice() {
    let config = checkpoints::config(json!({"tie_word_embeddings": true}));
    let checkpoint = checkpoints::Dir::of(&config, DType::BF16).open().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let arch = || Target::Cuda { arch: "sm_80".into() };
    let options = Options {
        targets: vec![arch(), Target::Cpu, Target::Cuda { arch: "compute_80".into() }],
        kernel_cache: Some(cache.path().join("kernels")),
        max_num_tokens: 64,
        max_seq_len: Some(128),
        ..Options::default()
    };
    let of = |options: &Options| compiled(&checkpoint, import(&checkpoint, options).unwrap(), options);
    let (cold, cached) = (of(&options), of(&options));
    let anew = of(&Options { kernel_cache: None, threads: 1, ..options });
    let bytes = |c: &Compiled| fs::read(c.plan.path()).unwrap();
    assert!(bytes(&cold) == bytes(&cached), "a plan from cached kernels differs");
    assert!(bytes(&cold) == bytes(&anew), "kernels compile to other bytes");

    let [device, cpu, virtual_arch] = cold.plan.programs() else { panic!("not a program per target") };
    assert_eq!(device.target, arch());
    let kernels = |p: &Program| p.launches.iter().map(|l| l.kernel.clone()).collect::<Vec<_>>();
    let layer = ["norm_linear_rope_append", "attention", "linear_add", "norm_linear_glu", "linear_add"];
    let gathers = ["gather_rows"; 2];
    let want = [&["embedding"], &layer[..], &layer[..2], &gathers, &layer[2..], &["norm_linear"]].concat();
    assert_eq!(kernels(device), want);
    assert_eq!(kernels(virtual_arch), want);
    assert_eq!(kernels(cpu).len(), 2 * 8 + 5);
    assert!(device.modules.iter().all(|m| m.cubin.is_some() && m.ptx.is_some() && !m.entries.is_empty()));
    assert!(virtual_arch.modules.iter().all(|m| m.cubin.is_none() && m.ptx.is_some()));
    assert!(cpu.modules.is_empty() && cpu.sampling.is_empty() && !device.sampling.is_empty());

    let reported = &cold.outcome.kernels;
    assert!(reported.iter().all(|k| k.spill_bytes == 0 && k.bytes.1 >= k.bytes.0));
    assert!(reported.iter().any(|k| k.kernel.starts_with("gemm") && k.registers > 0 && k.flops.1 > 0));
    let targets: Vec<&str> = cold.outcome.serving.iter().map(|s| s.target.as_str()).collect();
    assert_eq!(targets, ["sm_80", "cpu", "compute_80"]);
}

/// A checkpoint whose layers are those of `of`, by number, with their weights.
fn layers_of(config: &Value, all: &[checkpoints::Stored], of: &[usize]) -> (Value, Vec<checkpoints::Stored>) {
    let mut config = config.clone();
    config["num_hidden_layers"] = json!(of.len());
    let renamed = all.iter().filter_map(|t| {
        let mut t = t.clone();
        if let Some(rest) = t.name.strip_prefix("model.layers.") {
            let (layer, rest) = rest.split_once('.').unwrap();
            let at = of.iter().position(|l| *l == layer.parse::<usize>().unwrap())?;
            t.name = format!("model.layers.{at}.{rest}");
        }
        Some(t)
    });
    (config, renamed.collect())
}

#[test]
fn a_large_model_is_tested_by_its_first_and_last_layer() {
    let config = checkpoints::config(json!({"num_hidden_layers": 5, "tie_word_embeddings": true}));
    let held = checkpoints::tensors(&config, DType::BF16);
    let checkpoint = checkpoints::Dir::new(&config, &held).open().unwrap();
    let options = Options::default();
    let small = compiled(&checkpoint, import(&checkpoint, &options).unwrap(), &options);
    let mut imported = import(&checkpoint, &options).unwrap();
    imported.card.n_parameters = self_test::WHOLE_MODEL_LIMIT + 1;
    let large = compiled(&checkpoint, imported, &options);

    let [decoder] = small.plan.programs() else { panic!("{} programs", small.plan.programs().len()) };
    let sums: Vec<_> = decoder.launches.iter().filter(|l| l.kernel == "add_rms_norm").collect();
    assert_eq!(sums.len(), 10);
    assert!(
        sums.iter().all(|l| l.inputs[1].place == l.outputs[0].place),
        "sums are written over their residuals"
    );
    let program = large.plan.program(self_test::PROGRAM).unwrap();
    assert_eq!(program.launches.len(), 2 * 8 + 5);
    assert_eq!(large.plan.weights(), small.plan.weights(), "the programs share their weights");
    let layers: Vec<u32> = program
        .launches
        .iter()
        .filter(|l| l.kernel == "attention")
        .filter_map(|l| match l.inputs[1].place {
            Place::Cache { layer, .. } => Some(layer),
            _ => None,
        })
        .collect();
    assert_eq!(layers, [0, 4]);

    // The answer is that of a model which has only those two layers.
    let (config, held) = layers_of(&config, &held, &[0, 4]);
    let two = checkpoints::Dir::new(&config, &held).open().unwrap();
    let two = compiled(&two, import(&two, &options).unwrap(), &options);
    assert_eq!(large.plan.self_test(), two.plan.self_test());
    assert_ne!(large.plan.self_test().unwrap().logits, small.plan.self_test().unwrap().logits);
}

#[test]
fn the_self_test_is_the_interpreters_answer() {
    for (change, dtype) in
        [(json!({}), DType::BF16), (json!({"tie_word_embeddings": true, "mlp_bias": true}), DType::F32)]
    {
        let config = checkpoints::config(change);
        let held = checkpoints::tensors(&config, dtype);
        let checkpoint = checkpoints::Dir::new(&config, &held).open().unwrap();
        let imported = import(&checkpoint, &Options::default()).unwrap();
        let graph = imported.graph.clone();
        let Compiled { plan, .. } = compiled(&checkpoint, imported, &Options::default());
        let test = plan.self_test().unwrap();

        let source = tensors(&held, dtype);
        let tokens: Vec<i32> = test.token_ids.iter().map(|&t| t as i32).collect();
        let rows = test.positions.iter().map(|&p| p as usize).collect();
        let batch = lathe_ir::Batch::new(vec![lathe_ir::BatchSequence { slot: 0, start: 0, tokens, rows }]);
        let mut kv = lathe_ir::KvState::new(graph.cache());
        let outputs = Interpreter::new(&graph, &source).unwrap().run(&batch, &mut kv).unwrap();
        let logits = outputs.tensors[0].1.floats().unwrap();
        let vocab = plan.card().vocab_size as usize;
        assert!(test.ids.len() >= 32 && test.tolerance > 0.0);
        for (at, got) in test.logits.iter().enumerate() {
            let (row, id) = (at / test.ids.len(), test.ids[at % test.ids.len()] as usize);
            assert_eq!(got.to_bits(), logits[row * vocab + id].to_bits(), "row {row}, id {id}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused_and_nothing_stays_behind() {
    let config = checkpoints::config(json!({}));
    let mut held = checkpoints::tensors(&config, DType::BF16);
    let norm = held.iter_mut().find(|t| t.name == "model.norm.weight").unwrap();
    norm.bytes[..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    let checkpoint = checkpoints::Dir::new(&config, &held).open().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = Options { output: folder.path().join("p.plan"), ..Options::default() };
    let imported = import(&checkpoint, &options).unwrap();
    let error = compile(imported, checkpoint.tensors.as_ref(), &options, &Silent).unwrap_err();
    assert!(matches!(&error, CompileError::Input { remedy: Some(_), .. }), "{error:?}");
    assert_eq!(error.to_string(), "weights: the reference logit of id 0 is NaN");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Runs the binary; everything around it differs from call to call, as `place` says.
fn run(place: &Path, model: &Path, threads: &str, zone: &str) -> Vec<u8> {
    let output = place.join(format!("{}.plan", zone.replace('/', "-")));
    let status = Command::new(env!("CARGO_BIN_EXE_compile"))
        .current_dir(place)
        .env("TZ", zone)
        .args(["--threads", threads, "--model"])
        .args([model, Path::new("-o"), &output])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    fs::read(output).unwrap()
}

#[test]
fn same_checkpoint_same_bytes() {
    let config = checkpoints::config(json!({"num_hidden_layers": 3, "mlp_bias": true}));
    let held = checkpoints::tensors(&config, DType::BF16);
    let (a, b) = (checkpoints::Dir::new(&config, &held), checkpoints::Dir::new(&config, &held));
    let (elsewhere, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let longer = elsewhere.path().join("a checkpoint with a longer name");
    fs::rename(b.path(), &longer).unwrap();
    let first = run(here.path(), &a.path(), "1", "UTC");
    let second = run(elsewhere.path(), &longer, "5", "Asia/Kathmandu");
    assert!(first == second, "the plans differ");
}

#[test]
fn no_tensor_is_held_whole() {
    // Two tensors of 96 MiB and a layer: the promise is two of them and 512 MiB, and one is already too much.
    let config = checkpoints::config(json!({
        "vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 1,
    }));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_compile"))
        .current_dir(folder.path())
        .args(["--config", "config.json", "--synthetic-weights", "1", "--threads", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let peak = memory::peak(child);
    let plan = fs::metadata(folder.path().join("engine.plan")).unwrap().len();
    assert!(plan > 192 << 20, "{plan}");
    assert!((1 << 20..64 << 20).contains(&peak), "peak RssAnon is {} KiB", peak >> 10);
}
