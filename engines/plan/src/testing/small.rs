//! A plan of one decoder layer that is small and uses every kind of operand. It is valid; what an engine makes of
//! the weights' values (a repeating byte pattern) is noise.

use std::path::Path;

use lathe_numerics::DType;
use lathe_numerics::contract::CONTRACT;

use crate::error::PlanError;
use crate::operand::{ROWS, TOKENS};
use crate::schema::{
    Buffer, CacheGroup, CacheKind, CacheLayer, Expr, GenerationDefaults, Input, Launch, Layout, Limits,
    ModelCard, Operand, Param, Program, SelfTest, Symbol, Target, TextConfig, Weight,
};
use crate::writer::{PlanWriter, Tables, WeightSpec};

const HIDDEN: u64 = 32;
const HEADS: u64 = 2;
const KV_HEADS: u64 = 1;
const HEAD_DIM: u64 = 16;
const INNER: u64 = 48;
const VOCAB: u32 = 40;
const MAX_TOKENS: u64 = 8;
const MAX_SEQ: u64 = 64;

/// The weights of `small_tables`, in order.
pub fn small_weights() -> Vec<WeightSpec> {
    let (vocab, qkv) = (u64::from(VOCAB), (HEADS + 2 * KV_HEADS) * HEAD_DIM);
    [
        ("embed", DType::BF16, vec![vocab, HIDDEN], Layout::Panel16),
        ("norm.0", DType::BF16, vec![HIDDEN], Layout::RowMajor),
        ("qkv.0", DType::BF16, vec![qkv, HIDDEN], Layout::Panel16),
        ("rope", DType::F32, vec![MAX_SEQ, HEAD_DIM], Layout::RowMajor),
        ("o.0", DType::BF16, vec![HIDDEN, HEADS * HEAD_DIM], Layout::Panel16),
        ("norm.1", DType::BF16, vec![HIDDEN], Layout::RowMajor),
        ("gate_up.0", DType::BF16, vec![2 * INNER, HIDDEN], Layout::Panel16),
        ("down.0", DType::BF16, vec![HIDDEN, INNER], Layout::Panel16),
        ("norm.2", DType::BF16, vec![HIDDEN], Layout::RowMajor),
    ]
    .into_iter()
    .map(|(name, dtype, shape, layout)| WeightSpec { name: name.into(), dtype, shape, layout })
    .collect()
}

/// Bytes for a weight: half-precision values near 1, whatever the dtype says.
pub fn small_weight_bytes(weight: &Weight) -> Vec<u8> {
    (0..weight.bytes).map(|i| if i % 2 == 1 { 0x3c } else { (i % 61) as u8 }).collect()
}

/// The tables of the small plan; `weights` are those of a writer that was given `small_weights`.
pub fn small_tables(weights: &[Weight]) -> Tables {
    let card = ModelCard {
        name: "small".into(),
        architecture: "LlamaForCausalLM".into(),
        n_parameters: 10_000,
        vocab_size: VOCAB,
        bos_id: Some(1),
        eos_ids: vec![2, 3],
        generation: GenerationDefaults { temperature: Some(0.6), top_p: Some(0.9), ..Default::default() },
        max_position: 128,
        limits: Limits {
            max_batch: 4,
            max_num_tokens: MAX_TOKENS as u32,
            max_sample_rows: 4,
            max_seq_len: MAX_SEQ as u32,
            kv_tokens: 256,
        },
        producer: "lathe 0.1.0".into(),
        contract: CONTRACT.0,
        flags: ["--max-batch", "4", "--max-num-tokens", "8", "--max-seq-len", "64"].map(String::from).into(),
        numeric_passes: vec!["merge-qkv 1 times, numeric within 2e-2".into()],
        source_hash: [0x5a; 32],
    };
    let test = SelfTest {
        token_ids: vec![1, 5, 9],
        positions: vec![0, 2],
        ids: vec![0, 7, 39],
        logits: vec![0.5, -1.0, 2.0, 0.25, 0.0, -3.5],
        tolerance: 0.05,
    };
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}".to_string();
    Tables {
        card,
        programs: vec![decoder(weights)],
        code: Vec::new(),
        text: TextConfig {
            chat_templates: vec![("default".into(), template)],
            special_tokens: vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())],
            clean_up_spaces: false,
        },
        tokenizer: Some(
            br#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}"#.to_vec(),
        ),
        self_test: Some(test),
    }
}

fn decoder(weights: &[Weight]) -> Program {
    let symbol = |name: &str, max| Symbol { name: name.into(), min: 0, max };
    let mut arena = Arena::default();
    let t = || Expr::symbol(TOKENS);
    let r = || Expr::symbol(ROWS);
    let qkv_cols = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let x = arena.add("x", DType::BF16, t(), HIDDEN, MAX_TOKENS);
    let h = arena.add("h", DType::BF16, t(), HIDDEN, MAX_TOKENS);
    let qkv = arena.add("qkv", DType::F32, t(), qkv_cols, MAX_TOKENS);
    let q = arena.add("q", DType::BF16, t(), HEADS * HEAD_DIM, MAX_TOKENS);
    let a = arena.add("a", DType::BF16, t(), HEADS * HEAD_DIM, MAX_TOKENS);
    // The delta takes the bytes of qkv, which is not read again.
    let d = arena.at(qkv, "delta", DType::F32, t(), HIDDEN);
    let u = arena.add("u", DType::BF16, t(), INNER, MAX_TOKENS);
    let xr = arena.add("x.rows", DType::BF16, r(), HIDDEN, 4);
    let hr = arena.add("h.rows", DType::BF16, r(), HIDDEN, 4);
    let logits = arena.add("logits", DType::F32, r(), u64::from(VOCAB), 4);
    let (buffers, arena_bytes) = (arena.buffers, arena.end);

    let buf = |i: u32| Operand::buffer(i, &buffers[i as usize]);
    let weight = |i: u32| Operand::weight(i, &weights[i as usize]);
    let layer = CacheLayer { kv_heads: 1, head_dim: HEAD_DIM as u32, dtype: DType::BF16, offset: 0 };
    let cache = || Operand::cache(0, 0, &layer);
    let int = |name: &str, v| (name.to_string(), Param::Int(v));
    let eps = || ("eps".to_string(), Param::Float(1e-5));
    let store = || ("epilogue".to_string(), Param::Name("store".into()));
    let launch = |kernel: &str, node: &str, inputs, outputs, params| Launch {
        kernel: kernel.into(),
        node: node.into(),
        inputs,
        outputs,
        params,
        device: vec![],
    };
    let heads = || vec![int("head_dim", HEAD_DIM), int("heads", HEADS), int("kv_heads", KV_HEADS)];
    let mut attention = heads();
    attention.push(("scale".into(), Param::Float(0.25)));
    let silu = vec![int("cols", INNER), ("epilogue".to_string(), Param::Name("silu_mul".into()))];
    let positions = Operand::input(Input::Positions);
    let launches = vec![
        launch("embedding", "x", vec![Operand::input(Input::Tokens), weight(0)], vec![buf(x)], vec![]),
        launch("rms_norm", "h", vec![buf(x), weight(1)], vec![buf(h)], vec![eps()]),
        launch("gemm", "qkv", vec![buf(h), weight(2)], vec![buf(qkv)], vec![store()]),
        launch("rope_append", "q", vec![buf(qkv), positions, weight(3), cache()], vec![buf(q)], heads()),
        launch("attention", "a", vec![buf(q), cache()], vec![buf(a)], attention),
        launch("gemm", "o", vec![buf(a), weight(4)], vec![buf(d)], vec![store()]),
        launch("add_rms_norm", "h.1", vec![buf(d), buf(x), weight(5)], vec![buf(x), buf(h)], vec![eps()]),
        launch("gemm", "u", vec![buf(h), weight(6)], vec![buf(u)], silu),
        launch("gemm", "down", vec![buf(u), weight(7)], vec![buf(d)], vec![store()]),
        launch("add_rms_norm", "h.2", vec![buf(d), buf(x), weight(8)], vec![buf(x), buf(h)], vec![eps()]),
        launch(
            "gather_rows",
            "x.rows",
            vec![buf(x), Operand::input(Input::SampleRows)],
            vec![buf(xr)],
            vec![],
        ),
        launch("rms_norm", "h.rows", vec![buf(xr), weight(8)], vec![buf(hr)], vec![eps()]),
        launch("gemm", "logits", vec![buf(hr), weight(0)], vec![buf(logits)], vec![store()]),
    ];
    let block = 32;
    Program {
        name: "decoder".into(),
        target: Target::Cpu,
        rank: 0,
        n_ranks: 1,
        symbols: vec![symbol("t", MAX_TOKENS), symbol("s", 4), symbol("r", 4)],
        logits: buf(logits),
        buffers,
        arena_bytes,
        scratch_bytes: 1 << 18,
        cache_groups: vec![CacheGroup {
            kind: CacheKind::Paged { block, window: None },
            replay_exact: true,
            bytes_per_block: 2 * u64::from(block) * KV_HEADS * HEAD_DIM * 2,
            layers: vec![layer],
        }],
        launches,
        modules: vec![],
        sampling: vec![],
    }
}

#[derive(Default)]
struct Arena {
    buffers: Vec<Buffer>,
    end: u64,
}

impl Arena {
    fn add(&mut self, name: &str, dtype: DType, rows: Expr, cols: u64, max_rows: u64) -> u32 {
        let offset = self.end;
        self.end = (offset + max_rows * cols * dtype.size() as u64).next_multiple_of(64);
        self.buffers.push(Buffer { name: name.into(), dtype, rows, cols, offset });
        self.buffers.len() as u32 - 1
    }

    fn at(&mut self, over: u32, name: &str, dtype: DType, rows: Expr, cols: u64) -> u32 {
        let offset = self.buffers[over as usize].offset;
        self.buffers.push(Buffer { name: name.into(), dtype, rows, cols, offset });
        self.buffers.len() as u32 - 1
    }
}

/// Writes the small plan to `path`.
pub fn write_small(path: &Path) -> Result<(), PlanError> {
    let writer = PlanWriter::create(path, small_weights(), 1 << 16)?;
    let tables = small_tables(writer.weights());
    for (i, weight) in writer.weights().iter().enumerate() {
        writer.write_weight(i, &small_weight_bytes(weight))?;
    }
    writer.finish(&tables).map(|_| ())
}

/// The bytes of the small plan.
pub fn small_plan() -> Result<Vec<u8>, PlanError> {
    assembled(small_weights(), small_tables)
}

/// A file in memory of these weights, with pattern bytes, and of the tables that `tables` makes for them.
pub(super) fn assembled(
    specs: Vec<WeightSpec>,
    tables: fn(&[Weight]) -> Tables,
) -> Result<Vec<u8>, PlanError> {
    let (mut weights, data_bytes) = crate::writer::place(specs)?;
    for w in &mut weights {
        w.hash = *blake3::hash(&small_weight_bytes(w)).as_bytes();
    }
    super::mutate::assemble(&tables(&weights), &weights, data_bytes)
}
