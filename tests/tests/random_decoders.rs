//! Decoders of many styles through compiler and CPU engine, and a few through the CUDA engine on the emulator, against the
//! reference interpreter: every op of the IR has kernels that mean the same, fused or not.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use lathe_api::Engine;
use lathe_compiler::checkpoint::{TensorInfo, TensorSource};
use lathe_compiler::error::{CompileError, Result as CompileResult};
use lathe_compiler::import::Imported;
use lathe_compiler::options::{Options, Silent};
use lathe_compiler::pipeline::compile;
use lathe_compiler::self_test::tolerance;
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_ir::arbitrary::{Decoder, Style, decoders};
use lathe_ir::ops::QkNorm;
use lathe_ir::{Batch, BatchSequence, Graph, Interpreter, KvState, Tensor};
use lathe_numerics::{Activation, DType};
use lathe_plan::Plan;
use lathe_plan::schema::{GenerationDefaults, Limits, ModelCard, Target, TextConfig};
use lathe_tests::drive::{Emulation, emulate, logits};
use proptest::prelude::{ProptestConfig, TestCaseError};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

const N: usize = 40;
const LIMITS: Limits =
    Limits { max_batch: 4, max_num_tokens: 64, max_sample_rows: 64, max_seq_len: 128, kv_tokens: 512 };

struct Weights(BTreeMap<String, Tensor>);

impl TensorSource for Weights {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.0.get(name)?;
        Some(TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone() })
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> CompileResult<()> {
        let absent = || CompileError::input(name, "is absent");
        let tensor = self.0.get(name).ok_or_else(absent)?;
        let row = self.info(name).ok_or_else(absent)?.row_len();
        let values = &tensor.floats().map_err(CompileError::Bug)?[rows.start * row..rows.end * row];
        for (v, out) in values.iter().zip(out.chunks_exact_mut(tensor.dtype.size())) {
            match tensor.dtype {
                DType::BF16 => out.copy_from_slice(&bf16::from_f32(*v).to_le_bytes()),
                DType::F16 => out.copy_from_slice(&f16::from_f32(*v).to_le_bytes()),
                _ => out.copy_from_slice(&v.to_le_bytes()),
            }
        }
        Ok(())
    }
}

fn card(decoder: &Decoder) -> ModelCard {
    ModelCard {
        name: "random".into(),
        architecture: "Random".into(),
        n_parameters: 1,
        vocab_size: decoder.vocab as u32,
        bos_id: None,
        eos_ids: vec![],
        generation: GenerationDefaults::default(),
        max_position: LIMITS.max_seq_len,
        limits: LIMITS,
        producer: env!("CARGO_PKG_VERSION").into(),
        contract: lathe_numerics::contract::CONTRACT.0,
        flags: vec![],
        numeric_passes: vec![],
        source_hash: [0; 32],
    }
}

/// What the interpreter says of the ids, all rows.
fn interpreted(graph: &Graph, weights: &Weights, ids: &[u32]) -> Vec<f32> {
    let interpreter = Interpreter::new(graph, &weights.0).unwrap();
    let tokens = ids.iter().map(|&id| id as i32).collect();
    let batch = Batch::new(vec![BatchSequence { slot: 0, start: 0, tokens, rows: (0..ids.len()).collect() }]);
    let out = interpreter.run(&batch, &mut KvState::new(graph.cache())).unwrap();
    out.tensors[0].1.floats().unwrap().to_vec()
}

/// Compiles the decoder for `target` and holds the engine to the interpreter.
fn hold(decoder: &Decoder, target: Target) -> Result<(), String> {
    let graph = decoder.graph().map_err(|e| e.to_string())?;
    let weights = Weights(decoder.weights(&graph));
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        output: folder.path().join("engine.plan"),
        targets: vec![target.clone()],
        threads: 1,
        ..Options::default()
    };
    let imported = Imported {
        graph: graph.clone(),
        card: card(decoder),
        text: TextConfig::default(),
        tokenizer_json: None,
        dtype: decoder.dtype,
        kv_dtype: decoder.cache,
    };
    compile(imported, &weights, &options, &Silent).map_err(|e| format!("{e}\n{graph}"))?;
    let ids: Vec<u32> = (0..N as u64).map(|i| lathe_tests::drive::token(i, decoder.vocab as u32)).collect();
    let want = interpreted(&graph, &weights, &ids);
    let mut engines: Vec<Box<dyn Engine>> = match target {
        Target::Cpu => {
            let plan = Arc::new(Plan::open(&options.output).map_err(|e| e.to_string())?);
            let load = |isa| {
                let options = CpuOptions { threads: 2, isa, ..CpuOptions::default() };
                CpuEngine::load(plan.clone(), &options).map_err(|e| format!("{e}\n{graph}"))
            };
            vec![Box::new(load(None)?), Box::new(load(Some(lathe_cpu::Isa::Scalar))?)]
        }
        Target::Cuda { .. } => {
            let how = Emulation { checked: true, ..Emulation::default() };
            vec![Box::new(emulate(&options.output, how).map_err(|e| format!("{e:#}\n{graph}"))?)]
        }
    };
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let types = [decoder.dtype, decoder.cache];
    let bound = largest * types.into_iter().map(tolerance).fold(0.0, f32::max);
    for engine in &mut engines {
        let got = logits(&mut **engine, &ids);
        let differ = |(a, b): (&f32, &f32)| (a - b).abs() > bound || (a - b).is_nan();
        if got.len() != want.len() || want.iter().zip(&got).any(differ) {
            let worst = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            let path = &engine.info().path;
            return Err(format!("{path}: differs by {worst}, largest {largest}\n{decoder:?}\n{graph}"));
        }
    }
    Ok(())
}

#[test]
fn the_cpu_engine_says_what_the_interpreter_says() {
    // The same decoders every time: the bound is one on roundings, which chance may always exceed.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig { cases: 64, ..ProptestConfig::default() }, rng);
    let held = runner.run(&decoders(), |decoder| {
        // A norm over a handful of columns turns a rounding into a sign.
        let wide = Decoder {
            hidden: 16 + decoder.hidden,
            head_dim: 8 + decoder.head_dim,
            returned: vec![],
            reused: vec![],
            ..decoder
        };
        hold(&wide, Target::Cpu).map_err(TestCaseError::fail)
    });
    held.unwrap_or_else(|e| panic!("{e}"));
}

/// Styles that between them hold every kernel that stands alone.
fn far_from_llama() -> [Style; 3] {
    [
        Style {
            layer_norm: Some(true),
            learned_positions: true,
            gated: false,
            act: Activation::GeluTanh,
            ..Style::default()
        },
        Style {
            norm_plus_one: true,
            qk_norm: QkNorm::Head,
            post_norms: true,
            act: Activation::GeluTanh,
            embedding_scale: Some(2.5),
            logit_cap: Some(8.0),
            ..Style::default()
        },
        Style { qk_norm: QkNorm::Row, post_norms: true, parallel: true, ..Style::default() },
    ]
}

#[test]
fn the_cuda_engine_says_what_the_interpreter_says() {
    for (seed, style) in far_from_llama().into_iter().enumerate() {
        let decoder = Decoder { style, ..Decoder::plain(seed as u64) };
        hold(&decoder, Target::Cuda { arch: "sm_80".into() }).unwrap_or_else(|e| panic!("{e}"));
    }
}
