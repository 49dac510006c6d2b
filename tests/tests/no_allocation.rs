//! After load the step path allocates nothing: steps of every kind under a counting allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use lathe_api::{
    Engine, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource, Wanted,
};
use lathe_cpu::CpuEngine;
use lathe_tests::drive::{compile, load, token};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
}"#;

#[test]
fn steps_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (config, plan) = (dir.path().join("config.json"), dir.path().join("small.plan"));
    std::fs::write(&config, CONFIG).unwrap();
    let args = ["--config", config.to_str().unwrap(), "--synthetic-weights", "1", "--max-batch", "4"];
    compile(&args, &plan).unwrap();
    let mut engine = load(&plan, 2, None).unwrap();
    let (mut step, mut out) = (StepPlan::with_capacity(512, 4, 8, 64, 1), StepOutput::with_capacity(32));
    let prompts: Vec<Vec<u32>> =
        (0..4).map(|s| (0..100).map(|i| token(s * 500 + i, 1000)).collect()).collect();

    // The test runner's own threads allocate now and then; a step that does would do so in every run.
    let counts = [(); 3].map(|()| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        serve(&mut engine, &prompts, &mut step, &mut out);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert!(counts.contains(&0), "{counts:?} allocations on the step path");
}

/// A prefill of four sequences, then decodes; every sampling feature.
fn serve(engine: &mut CpuEngine, prompts: &[Vec<u32>], step: &mut StepPlan, out: &mut StepOutput) {
    let bias = [(5, 1.0), (9, -2.0)];
    for slot in 0..4 {
        let state =
            SlotState { prompt: &prompts[slot as usize], output: &[], logit_bias: &bias, stop_ids: &[2] };
        engine.bind(Slot(slot), state).unwrap();
    }
    for round in 0..40u32 {
        step.clear();
        for slot in 0..4u32 {
            let (start, len) = if round == 0 { (0, 100) } else { (99 + round, 1) };
            let q_start = step.tokens.len() as u32;
            for p in start..start + len {
                let known = prompts[slot as usize].get(p as usize).map(|id| TokenSource::Literal(*id));
                step.tokens.push(known.unwrap_or(TokenSource::Row(slot)));
                step.positions.push(p);
            }
            let blocks_start = step.blocks[0].len() as u32;
            step.blocks[0].extend(slot * 5..slot * 5 + 5);
            step.seqs.push(SeqStep {
                slot: Slot(slot),
                q_start,
                q_len: len,
                kv_len: start + len,
                blocks_start,
                blocks_len: 5,
                adapter: None,
            });
            step.rows.push(SampleRow {
                row: q_start + len - 1,
                slot: Slot(slot),
                position: start + len,
                wanted: Wanted::Sample,
                params: SamplingParams {
                    temperature: slot as f32 * 0.5,
                    top_k: slot * 20,
                    top_p: 0.9,
                    repetition_penalty: 1.1,
                    seed: 5,
                    ..SamplingParams::default()
                },
                top_logprobs: Some(5),
                suppress_stops: round < 10,
            });
        }
        let ticket = engine.submit(step).unwrap();
        engine.sample(ticket, None).unwrap();
        engine.collect(ticket, out).unwrap();
        assert_eq!(out.rows.len(), 4);
    }
}
