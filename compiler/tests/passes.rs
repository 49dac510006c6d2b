//! Every rule and pass, in the pipeline's order, held to the interpreter: by bits where it says exact, within its bound
//! where it says numeric. On random decoders and on imported checkpoints.

mod checkpoints;

use std::collections::BTreeMap;

use lathe_compiler::import::import;
use lathe_compiler::options::Options;
use lathe_compiler::passes::{
    FOLD_CONSTANTS, FUSE_ADD_RMS_NORM, FUSE_LINEAR_ACTIVATION, FUSE_LINEAR_ADD, FUSE_LINEAR_GLU,
    FUSE_NORM_LINEAR, FUSE_NORM_LINEAR_GLU, FUSE_NORM_LINEAR_ROPE_APPEND, FUSE_ROPE_APPEND,
    GATHER_SAMPLED_ROWS, MERGE_GATE_UP, MERGE_QKV, REMOVE_DEAD,
};
use lathe_ir::arbitrary::{Decoder, compare, decoders};
use lathe_ir::driver::{Pass, Precision, Rule, drive};
use lathe_ir::{Batch, BatchSequence, Graph, Tensor};
use lathe_numerics::DType;
use proptest::prelude::*;
use serde_json::json;

/// What every target gets.
const COMMON: &[&Rule] = &[
    &GATHER_SAMPLED_ROWS,
    &MERGE_QKV,
    &MERGE_GATE_UP,
    &FUSE_ROPE_APPEND,
    &FUSE_LINEAR_GLU,
    &FUSE_LINEAR_ACTIVATION,
];
/// What the CPU gets on top, and what devices get instead.
const BRANCHES: [&[&Rule]; 2] = [
    &[&FUSE_ADD_RMS_NORM],
    &[&FUSE_LINEAR_ADD, &FUSE_NORM_LINEAR, &FUSE_NORM_LINEAR_GLU, &FUSE_NORM_LINEAR_ROPE_APPEND],
];

type Weights = BTreeMap<String, Tensor>;

/// Applies everything, one after another, comparing each time. Returns how often each rule applied, and whether every
/// application was exact.
fn held_to_the_interpreter(
    graph: &Graph,
    weights: &Weights,
    steps: &[Batch],
) -> Result<(Vec<usize>, bool), String> {
    let mut counts = Vec::new();
    let mut all_exact = true;
    let pass = |pass: &Pass, before: &Graph| -> Result<Graph, String> {
        let mut after = before.clone();
        (pass.run)(&mut after).map_err(|e| e.to_string())?;
        compare(before, &after, weights, steps, pass.precision)
            .map_err(|why| format!("{}: {why}", pass.name))?;
        Ok(after)
    };
    let mut rules = |rules: &[&Rule], mut graph: Graph| -> Result<Graph, String> {
        for rule in rules {
            let mut after = graph.clone();
            let report = drive(&mut after, &[rule]).map_err(|e| e.to_string())?;
            let exact = report.applied.iter().all(|a| a.precision == Precision::Exact);
            let precision = if exact { Precision::Exact } else { rule.precision };
            compare(&graph, &after, weights, steps, precision)
                .map_err(|why| format!("{}: {why}\n{after}", rule.name))?;
            counts.push(report.count(rule.name));
            all_exact &= exact;
            graph = after;
        }
        Ok(graph)
    };
    let common = rules(COMMON, pass(&FOLD_CONSTANTS, graph)?)?;
    for branch in BRANCHES {
        pass(&REMOVE_DEAD, &rules(branch, common.clone())?)?;
    }
    Ok((counts, all_exact))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_decoders_keep_their_results(decoder in decoders()) {
        let graph = decoder.graph().unwrap();
        let held = held_to_the_interpreter(&graph, &decoder.weights(&graph), &decoder.steps());
        prop_assert!(held.is_ok(), "{}", held.unwrap_err());
    }
}

#[test]
fn every_rule_applies_to_a_plain_decoder() {
    let decoder = Decoder::plain(7);
    let graph = decoder.graph().unwrap();
    let (counts, exact) =
        held_to_the_interpreter(&graph, &decoder.weights(&graph), &decoder.steps()).unwrap();
    // Two layers: the rows move up through head, norm, and o, add, norm, gate, up, silu, mul, down, add. On a device
    // o and down add, the norms go into qkv and head, and into gate and up.
    assert_eq!(counts, [11, 2, 2, 2, 2, 0, 4, 4, 3, 2, 2]);
    assert!(exact);
}

/// Checkpoint tensors as the interpreter takes them.
fn weights(stored: &[checkpoints::Stored], dtype: DType) -> Weights {
    let value = |bytes: &[u8]| match dtype {
        DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        DType::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        _ => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    };
    let tensor = |t: &checkpoints::Stored| {
        Tensor::float(dtype, t.shape.clone(), t.bytes.chunks_exact(dtype.size()).map(value).collect())
    };
    stored.iter().map(|t| (t.name.clone(), tensor(t))).collect()
}

/// A ragged prefill, then a step that continues one sequence and starts another.
fn steps(vocab: i32) -> Vec<Batch> {
    let sequence = |slot, start, n: i32, rows: &[usize]| BatchSequence {
        slot,
        start,
        tokens: (0..n).map(|i| (i * 7 + slot as i32 * 3 + start as i32) % vocab).collect(),
        rows: rows.to_vec(),
    };
    vec![
        Batch::new(vec![sequence(0, 0, 5, &[4]), sequence(1, 0, 2, &[])]),
        Batch::new(vec![sequence(1, 2, 3, &[0, 2]), sequence(0, 5, 1, &[0]), sequence(2, 0, 1, &[])]),
    ]
}

#[test]
fn imported_checkpoints_keep_their_logits() {
    let rows = [
        (json!({}), DType::BF16, Options::default(), true),
        (json!({"tie_word_embeddings": true, "vocab_size": 53}), DType::F16, Options::default(), true),
        (
            json!({"attention_bias": true, "mlp_bias": true, "num_hidden_layers": 3}),
            DType::F32,
            Options { kv_dtype: Some(DType::BF16), ..Options::default() },
            true,
        ),
        (
            json!({"num_key_value_heads": 1, "num_hidden_layers": 1, "head_dim": 10}),
            DType::F32,
            Options { dtype: Some(DType::BF16), ..Options::default() },
            true,
        ),
        // Deep and narrow: the merged gate and up projection is cut into fewer K slices than its parts.
        (
            json!({"hidden_size": 2048, "head_dim": 16, "intermediate_size": 2100}),
            DType::BF16,
            Options::default(),
            false,
        ),
    ];
    for (change, dtype, options, want_exact) in rows {
        let config = checkpoints::config(change.clone());
        let stored = checkpoints::tensors(&config, dtype);
        let checkpoint = checkpoints::Dir::new(&config, &stored).open().unwrap();
        let imported = import(&checkpoint, &options).unwrap();
        let steps = steps(config["vocab_size"].as_i64().unwrap() as i32);
        let (counts, exact) =
            held_to_the_interpreter(&imported.graph, &weights(&stored, dtype), &steps).unwrap();
        let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
        let on_device = [2 * layers, layers + 1, layers, layers];
        let all = [&[11, layers, layers, layers, layers, 0, 2 * layers][..], &on_device].concat();
        assert_eq!(counts, all, "{change}");
        assert_eq!(exact, want_exact, "{change}");
    }
}
