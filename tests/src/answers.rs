//! One answer: a small model, requests of many kinds, and ways to compute the same positions.

use std::path::PathBuf;
use std::sync::OnceLock;

use lathe_api::{Engine, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource};
use lathe_cpu::CpuEngine;
use lathe_cuda::CudaEngine;
use rand::{Rng, SeedableRng};

use crate::drive::{Answer, Conditions, Request, compile, run, token};

/// An engine that shows its KV cache.
pub trait Subject: Engine {
    /// The bytes of a block of a cache group; `None` where there is no such block.
    fn kv_block(&mut self, group: usize, block: u32) -> Option<Vec<u8>>;
}

impl Subject for CpuEngine {
    fn kv_block(&mut self, group: usize, block: u32) -> Option<Vec<u8>> {
        self.block(group, block).map(<[u8]>::to_vec)
    }
}

impl Subject for CudaEngine {
    fn kv_block(&mut self, group: usize, block: u32) -> Option<Vec<u8>> {
        self.block(group, block).ok()
    }
}

/// Shapes of a small Llama whose attention crosses leaves and whose GEMMs have K slices.
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "DTYPE",
  "hidden_size": 1024, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 6,
  "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 611, "max_position_embeddings": 1024,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
}"#;

/// A plan of it with made-up weights, compiled once per test program.
///
/// # Panics
/// When it does not compile.
pub fn plan(dtype: &str, kv: &str, target: &str) -> PathBuf {
    compiled(&format!("{dtype}-{kv}-{target}"), &CONFIG.replace("DTYPE", dtype), kv, target)
}

/// As `plan` with bf16 weights and cache, its two layers of these types (`sliding` or `full`), sliding ones with a window
/// of 64 positions.
///
/// # Panics
/// When it does not compile.
pub fn windowed(types: [&str; 2], target: &str) -> PathBuf {
    let layers = types.map(|t| format!("\"{t}_attention\"")).join(", ");
    let fields = format!("\"sliding_window\": 64, \"layer_types\": [{layers}], \"architectures\"");
    let config = CONFIG.replace("DTYPE", "bfloat16").replace("\"architectures\"", &fields);
    let config = config.replace("LlamaForCausalLM", "MistralForCausalLM");
    compiled(&format!("{}-{target}", types.join("-")), &config, "bf16", target)
}

fn compiled(name: &str, config_text: &str, kv: &str, target: &str) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path();
    let out = dir.join(format!("{name}.plan"));
    if !out.exists() {
        let config = dir.join(format!("{name}.json"));
        std::fs::write(&config, config_text).unwrap();
        let config = config.to_str().unwrap();
        let args = [
            "--config",
            config,
            "--synthetic-weights",
            "7",
            "--target",
            target,
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
pub fn mixed() -> Vec<Request> {
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

/// Every request by itself.
///
/// # Panics
/// When scheduler or engine refuse one.
pub fn alone(engine: &mut dyn Engine, requests: &[Request]) -> Vec<Answer> {
    requests
        .iter()
        .map(|r| run(engine, std::slice::from_ref(r), &[0], &Conditions::default()).unwrap().0.remove(0))
        .collect()
}

/// Holds answers against what they must be.
///
/// # Panics
/// At the first request that differs.
pub fn same(want: &[Answer], got: &[Answer], how: &str) {
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        assert_eq!(w, g, "request {i} answers otherwise {how}");
    }
}

/// Computes `ids` in one sequence, `chunk` positions at a time, and returns the bytes of its blocks and the logits of
/// the last position.
///
/// # Panics
/// When the engine refuses a step.
pub fn kv_of(engine: &mut dyn Subject, ids: &[u32], chunk: usize, beside: bool) -> (Vec<u8>, Vec<f32>) {
    let info = engine.info().clone();
    let room = ids.len() as u32;
    engine.bind(Slot(0), SlotState { prompt: ids, ..SlotState::default() }).unwrap();
    engine.bind(Slot(1), SlotState { prompt: ids, ..SlotState::default() }).unwrap();
    let (mut out, mut logits) = (StepOutput::default(), Vec::new());
    let (mut neighbour, vocab) = (0, engine.info().vocab_size);
    for start in (0..ids.len()).step_by(chunk) {
        let len = chunk.min(ids.len() - start);
        let mut step = StepPlan::with_capacity(0, 0, 0, 0, info.groups.len());
        // A decoding neighbour in blocks of its own.
        if beside {
            step.tokens.push(TokenSource::Literal(token(neighbour, vocab)));
            step.positions.push(neighbour as u32);
            neighbour += 1;
            let (blocks_start, blocks_len) = step.push_own_blocks(&info, 1, room, neighbour as u32 - 1);
            step.seqs.push(SeqStep {
                slot: Slot(1),
                q_start: 0,
                q_len: 1,
                kv_len: neighbour as u32,
                blocks_start,
                blocks_len,
                adapter: None,
            });
        }
        let q_start = step.tokens.len() as u32;
        step.tokens.extend(ids[start..start + len].iter().map(|id| TokenSource::Literal(*id)));
        step.positions.extend((start..start + len).map(|p| p as u32));
        let (blocks_start, blocks_len) = step.push_own_blocks(&info, 0, room, start as u32);
        step.seqs.push(SeqStep {
            slot: Slot(0),
            q_start,
            q_len: len as u32,
            kv_len: (start + len) as u32,
            blocks_start,
            blocks_len,
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
    let n_blocks = room.div_ceil(info.block_tokens);
    let bytes = (0..n_blocks).flat_map(|b| engine.kv_block(0, b).unwrap_or_default()).collect();
    (bytes, logits)
}
