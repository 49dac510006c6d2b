//! Plans from nowhere: what the reader accepts, the engine loads or refuses by name, and runs without harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lathe_api::{
    Engine, EngineError, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan,
    TokenSource, Wanted,
};
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_plan::Plan;
use lathe_plan::testing::mutations;
use lathe_tests::drive::compile;

const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "max_position_embeddings": 32,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2
}"#;

/// Enough for the valid plan many times over; plans that ask for more are refused before anything is allocated.
const MEMORY: u64 = 4 << 20;

#[derive(Debug, Default)]
struct Tally {
    unread: usize,
    plan: usize,
    fit: usize,
    step: usize,
    ran: usize,
}

/// Three tokens, then one more: prefill and decode.
fn use_it(plan: Plan) -> Result<(), EngineError> {
    let options = CpuOptions { threads: 1, memory_limit: Some(MEMORY), ..CpuOptions::default() };
    let mut engine = CpuEngine::load(Arc::new(plan), &options)?;
    let mut out = StepOutput::default();
    engine.bind(Slot(0), SlotState::default())?;
    for (start, len) in [(0, 3), (3, 1)] {
        let row = SampleRow {
            row: len - 1,
            slot: Slot(0),
            position: start + len,
            wanted: Wanted::Sample,
            params: SamplingParams { temperature: 1.0, top_p: 0.9, ..SamplingParams::default() },
            top_logprobs: Some(3),
            suppress_stops: false,
        };
        let step = StepPlan {
            tokens: (start..start + len).map(TokenSource::Literal).collect(),
            positions: (start..start + len).collect(),
            seqs: vec![SeqStep {
                slot: Slot(0),
                q_start: 0,
                q_len: len,
                kv_len: start + len,
                blocks_start: 0,
                blocks_len: 1,
                adapter: None,
            }],
            blocks: vec![vec![0]; engine.info().groups.len()],
            rows: vec![row],
        };
        let ticket = engine.submit(&step)?;
        engine.sample(ticket, None)?;
        engine.collect(ticket, &mut out)?;
    }
    Ok(())
}

#[test]
fn accepted_plans_load_or_are_refused_and_run_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (config, path) = (dir.path().join("config.json"), dir.path().join("small.plan"));
    std::fs::write(&config, CONFIG).unwrap();
    let args = [
        "--config",
        config.to_str().unwrap(),
        "--synthetic-weights",
        "1",
        "--max-batch",
        "2",
        "--max-seq-len",
        "32",
        "--max-num-tokens",
        "8",
        "--kv-tokens",
        "64",
    ];
    compile(&args, &path).unwrap();
    let file = std::fs::read(&path).unwrap();
    use_it(Plan::from_bytes(file.clone()).unwrap()).unwrap();

    let mut tally = Tally::default();
    let mut edits = mutations(&file, 11).unwrap();
    for _ in 0..100_000 {
        let edited = edits.next_file();
        let start = Instant::now();
        match Plan::from_bytes(edited.to_vec()) {
            Err(_) => tally.unread += 1,
            Ok(plan) => match use_it(plan) {
                Ok(()) => tally.ran += 1,
                Err(EngineError::Plan { .. }) => tally.plan += 1,
                Err(EngineError::Fit { .. }) => tally.fit += 1,
                Err(EngineError::Request(_)) => tally.step += 1,
                // A plan that was accepted and then breaks a kernel's rule slipped through the checks at load.
                Err(e @ EngineError::Failed(_)) => panic!("{e}"),
            },
        }
        assert!(start.elapsed() < Duration::from_secs(20), "an edited plan took {:?}", start.elapsed());
    }
    println!("{tally:?}");
    // Edits that never get past the reader, or never break anything, would test nothing.
    assert!(tally.ran > 1_000 && tally.plan > 100 && tally.unread > 1_000, "{tally:?}");
}
