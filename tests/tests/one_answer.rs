//! The promise of one answer: bits of tokens, logprobs and KV do not depend on company, chunks, threads or preemption.

use std::path::PathBuf;
use std::sync::OnceLock;

use lathe_api::{Engine, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource};
use lathe_cpu::{CpuEngine, Isa};
use lathe_tests::drive::{Answer, Conditions, Request, compile, load, run, token};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Shapes of a small Llama whose attention crosses leaves and whose GEMMs have K slices.
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "DTYPE",
  "hidden_size": 1024, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 6,
  "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 611, "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
}"#;

fn plan(dtype: &str, kv: &str) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path();
    let out = dir.join(format!("{dtype}-{kv}.plan"));
    if !out.exists() {
        let config = dir.join(format!("{dtype}-{kv}.json"));
        std::fs::write(&config, CONFIG.replace("DTYPE", dtype)).unwrap();
        let config = config.to_str().unwrap();
        let args = [
            "--config",
            config,
            "--synthetic-weights",
            "7",
            "--kv-cache",
            kv,
            "--max-batch",
            "16",
            "--max-seq-len",
            "512",
            "--max-num-tokens",
            "256",
            "--kv-tokens",
            "6144",
        ];
        compile(&args, &out).unwrap();
    }
    out
}

/// 64 requests of many kinds.
fn mixed() -> Vec<Request> {
    let mut rng = rand::rngs::SmallRng::seed_from_u64(3);
    (0..64u64)
        .map(|i| {
            let len = match i % 8 {
                0 => 1,
                1 => 127,
                2 => 128,
                3 => 129,
                4 => rng.random_range(260..330),
                _ => rng.random_range(2..90),
            };
            Request {
                prompt: (0..len).map(|p| token(i * 1000 + p, 611)).collect(),
                // Some answers grow over block borders, so that a tight pool must preempt.
                max_new: if i % 4 == 1 { 70 } else { rng.random_range(1..24) },
                params: SamplingParams {
                    temperature: [0.0, 0.7, 1.0, 1.3][(i % 4) as usize],
                    top_k: [0, 5, 40][(i % 3) as usize],
                    top_p: [1.0, 0.9][(i % 2) as usize],
                    min_p: if i % 5 == 0 { 0.02 } else { 0.0 },
                    repetition_penalty: if i % 7 == 0 { 1.2 } else { 1.0 },
                    presence_penalty: if i % 6 == 0 { 0.5 } else { 0.0 },
                    frequency_penalty: if i % 9 == 0 { 0.3 } else { 0.0 },
                    seed: i * 77,
                    choice: (i % 3) as u32,
                },
                top_logprobs: Some((i % 6) as u8),
                score_prompt: i % 10 == 3,
            }
        })
        .collect()
}

fn alone(engine: &mut CpuEngine, requests: &[Request]) -> Vec<Answer> {
    requests
        .iter()
        .map(|r| run(engine, std::slice::from_ref(r), &[0], &Conditions::default()).unwrap().0.remove(0))
        .collect()
}

fn same(want: &[Answer], got: &[Answer], how: &str) {
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        assert_eq!(w, g, "request {i} answers otherwise {how}");
    }
}

#[test]
fn company_chunks_threads_and_preemption_do_not_show() {
    let plan = plan("bfloat16", "bf16");
    let requests = mixed();
    let want = alone(&mut load(&plan, 1, None).unwrap(), &requests);
    assert!(want.iter().zip(&requests).all(|(a, r)| a.tokens.len() == r.max_new as usize));
    assert!(
        want.iter()
            .zip(&requests)
            .all(|(a, r)| a.prompt.len() == if r.score_prompt { r.prompt.len() - 1 } else { 0 })
    );
    // Answers that were all alike would hide everything.
    assert!(want.iter().flat_map(|a| &a.tokens).collect::<std::collections::BTreeSet<_>>().len() > 50);

    let mut order: Vec<usize> = (0..requests.len()).collect();
    let mut rng = rand::rngs::SmallRng::seed_from_u64(9);
    for threads in [1, 2] {
        let mut engine = load(&plan, threads, None).unwrap();
        for chunk in [Some(1), Some(7), Some(64), None] {
            order.shuffle(&mut rng);
            let conditions = Conditions { chunk, arrivals_per_step: 3, ..Conditions::default() };
            let (got, _) = run(&mut engine, &requests, &order, &conditions).unwrap();
            same(&want, &got, &format!("in company, chunk {chunk:?}, {threads} threads"));
        }
        let conditions = Conditions { n_blocks: Some(24), ..Conditions::default() };
        let (got, preemptions) = run(&mut engine, &requests, &order, &conditions).unwrap();
        assert!(preemptions > 0, "no preemption was forced");
        same(&want, &got, &format!("after preemption, {threads} threads"));
    }
}

#[test]
fn every_dtype_and_path_has_one_answer() {
    let requests: Vec<Request> = mixed().into_iter().step_by(3).collect();
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    for (dtype, kv) in [("bfloat16", "f32"), ("float16", "f16"), ("float32", "f32"), ("float32", "bf16")] {
        let plan = plan(dtype, kv);
        for isa in [Isa::Scalar, Isa::Avx512].into_iter().filter(|i| i.available()) {
            let mut engine = load(&plan, 2, Some(isa)).unwrap();
            let want = alone(&mut engine, &requests);
            let conditions = Conditions { chunk: Some(33), n_blocks: Some(28), ..Conditions::default() };
            let (got, _) = run(&mut engine, &requests, &order, &conditions).unwrap();
            same(&want, &got, &format!("{dtype}, KV {kv}, {isa}"));
        }
    }
}

/// Computes `ids` in one sequence, `chunk` positions at a time, and returns the bytes of its blocks and the logits of
/// the last position.
fn kv_of(plan: &std::path::Path, ids: &[u32], chunk: usize, beside: bool) -> (Vec<u8>, Vec<f32>) {
    let mut engine = load(plan, 2, None).unwrap();
    let block = engine.info().block_tokens as usize;
    let n_blocks = ids.len().div_ceil(block);
    engine.bind(Slot(0), SlotState { prompt: ids, ..SlotState::default() }).unwrap();
    engine.bind(Slot(1), SlotState { prompt: ids, ..SlotState::default() }).unwrap();
    let (mut out, mut logits) = (StepOutput::default(), Vec::new());
    let mut neighbour = 0;
    for start in (0..ids.len()).step_by(chunk) {
        let len = chunk.min(ids.len() - start);
        let mut step = StepPlan::default();
        // A decoding neighbour in blocks of its own.
        if beside {
            step.tokens.push(TokenSource::Literal(token(neighbour, 611)));
            step.positions.push(neighbour as u32);
            neighbour += 1;
            let blocks = neighbour.div_ceil(block as u64) as u32;
            step.blocks.extend((0..blocks).map(|b| n_blocks as u32 + b));
            step.seqs.push(SeqStep {
                slot: Slot(1),
                q_start: 0,
                q_len: 1,
                kv_len: neighbour as u32,
                blocks_start: 0,
                blocks_len: blocks,
                adapter: None,
            });
        }
        let q_start = step.tokens.len() as u32;
        let blocks_start = step.blocks.len() as u32;
        step.tokens.extend(ids[start..start + len].iter().map(|id| TokenSource::Literal(*id)));
        step.positions.extend((start..start + len).map(|p| p as u32));
        step.blocks.extend(0..n_blocks as u32);
        step.seqs.push(SeqStep {
            slot: Slot(0),
            q_start,
            q_len: len as u32,
            kv_len: (start + len) as u32,
            blocks_start,
            blocks_len: n_blocks as u32,
            adapter: None,
        });
        step.rows.push(lathe_api::SampleRow {
            row: q_start + len as u32 - 1,
            slot: Slot(0),
            position: (start + len) as u32,
            wanted: lathe_api::Wanted::Logits,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        });
        let ticket = engine.submit(&step).unwrap();
        engine.sample(ticket, None).unwrap();
        engine.collect(ticket, &mut out).unwrap();
        logits = engine.logits().to_vec();
    }
    let bytes = (0..n_blocks as u32).flat_map(|b| engine.block(b).unwrap().to_vec()).collect();
    (bytes, logits)
}

#[test]
fn kv_bytes_and_logits_of_a_position_do_not_depend_on_the_way_there() {
    for (dtype, kv) in [("bfloat16", "bf16"), ("float32", "f16"), ("float16", "f32")] {
        let plan = plan(dtype, kv);
        let ids: Vec<u32> = (0..300).map(|i| token(i, 611)).collect();
        let (want_kv, want_logits) = kv_of(&plan, &ids[..256], 256, false);
        assert!(want_kv.iter().any(|b| *b != 0));
        for (chunk, beside) in [(1, false), (1, true), (7, false), (64, true), (255, false), (100, true)] {
            let (got_kv, got_logits) = kv_of(&plan, &ids[..256], chunk, beside);
            assert!(want_kv == got_kv, "KV bytes differ: {dtype}, chunk {chunk}, neighbour {beside}");
            assert!(
                want_logits.iter().zip(&got_logits).all(|(a, b)| a.to_bits() == b.to_bits()),
                "logits differ: {dtype}, chunk {chunk}, neighbour {beside}"
            );
        }
    }
}
