//! The self-test of a mixture of experts: no question that another correct engine may answer otherwise.

mod checkpoints;

use checkpoints::architectures::with;
use checkpoints::{Dir, config, tensors};
use lathe_compiler::checkpoint::Checkpoint;
use lathe_compiler::import::import;
use lathe_compiler::options::{Options, Silent};
use lathe_compiler::pipeline::compile;
use lathe_compiler::self_test::question::Question;
use lathe_numerics::DType;
use lathe_plan::Plan;
use serde_json::json;

const EXPERTS: usize = 4;
const ROUTER: &str = "model.layers.0.block_sparse_moe.gate.weight";

/// A Mixtral of two layers. `router` gives the factor of each expert's row of the first router, and the row that it is taken
/// from.
fn mixtral(router: [(usize, f32); EXPERTS]) -> Checkpoint {
    let config = with(
        &config(json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"})),
        &json!({"hidden_size": 32, "num_local_experts": EXPERTS, "num_experts_per_tok": 1}),
    );
    let mut held = tensors(&config, DType::F32);
    let number = |element: &[u8; 4]| f32::from_le_bytes(*element);
    for tensor in held.iter_mut().filter(|t| t.name.contains("experts")) {
        // Experts that say much: a choice shows in the logits.
        let elements = tensor.bytes.as_chunks_mut::<4>().0;
        elements.iter_mut().for_each(|e| *e = (number(e) * 16.0).to_le_bytes());
    }
    let tensor = held.iter_mut().find(|t| t.name == ROUTER).unwrap();
    let rows: Vec<Vec<f32>> = tensor
        .bytes
        .chunks_exact(tensor.bytes.len() / EXPERTS)
        .map(|row| row.as_chunks::<4>().0.iter().map(number).collect())
        .collect();
    let changed = router.iter().flat_map(|&(row, factor)| rows[row].iter().map(move |x| x * factor));
    tensor.bytes = changed.flat_map(f32::to_le_bytes).collect();
    Dir::new(&config, &held).open().unwrap()
}

fn plan_of(checkpoint: &Checkpoint) -> (Plan, Option<usize>) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { output: folder.path().join("p.plan"), ..Options::default() };
    let imported = import(checkpoint, &options).unwrap();
    let outcome = compile(imported, checkpoint.tensors.as_ref(), &options, &Silent).unwrap();
    (Plan::open(&options.output).unwrap(), outcome.self_test_tokens)
}

fn answer(checkpoint: &Checkpoint, tokens: &[u32], ids: &[u32]) -> Vec<f32> {
    let graph = import(checkpoint, &Options::default()).unwrap().graph;
    Question::new(&graph, checkpoint.tensors.as_ref(), tokens, ids).unwrap().answer().unwrap()
}

#[test]
fn no_question_hangs_on_a_router_that_is_nearly_undecided() {
    // Experts 0 and 1 are chosen by nearly the same row: a rounding of 1e-5 decides between them.
    let router = |first: f32| [(0, first), (0, 1.0), (2, 1.0), (3, 1.0)];
    let (checkpoint, rounded) = (mixtral(router(1.00001)), mixtral(router(0.99999)));
    let (plan, n_tokens) = plan_of(&checkpoint);
    let test = plan.self_test().unwrap();
    let apart = |tokens: &[u32]| {
        let (a, b) = (answer(&checkpoint, tokens, &test.ids), answer(&rounded, tokens, &test.ids));
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max)
    };
    let vocab = plan.card().vocab_size;
    let spread: Vec<u32> = (0..4).map(|i| i * vocab / 4).collect();
    let apart_if_spread = apart(&spread);
    assert!(apart_if_spread > 2.0 * test.tolerance, "{apart_if_spread}, {}", test.tolerance);
    assert_eq!((test.token_ids.len(), n_tokens), (4, Some(4)));
    assert!(apart(&test.token_ids) < 0.1 * test.tolerance, "{:?}", test.token_ids);
    assert_eq!(test.logits, answer(&checkpoint, &test.token_ids, &test.ids));
}

#[test]
fn a_router_that_never_decides_leaves_the_plan_without_a_question() {
    let (plan, n_tokens) = plan_of(&mixtral([(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]));
    assert_eq!((plan.self_test(), n_tokens), (None, Some(0)));
}
