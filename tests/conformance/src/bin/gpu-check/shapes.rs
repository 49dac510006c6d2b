//! The nodes of a decoder layer and of the end of a step, for shapes of models.

use std::collections::BTreeMap;

use anyhow::Result;
use lathe_conformance::draws::GREEDY;
use lathe_conformance::{bytes, code};
use lathe_device::{Answer, DrawParams, MAX_LOGIT_BIAS, MAX_STOP_IDS, Sequence, StepTable, Symbol, Symbols};
use lathe_kernels::cuda::{Source, mma16};
use lathe_kernels::embedding::cuda::TableLayout;
use lathe_kernels::gemm::cuda::{Fused, Tail, fused_launches};
use lathe_kernels::gemm::{Epilogue, stored_rows};
use lathe_kernels::{attention, embedding, gather_rows, gemm, glu, rms_norm, rope_append, sampling};
use lathe_numerics::{Activation, DType};

use crate::nodes::{Buffer, Node};
use crate::{ceilings, wgmma};

/// Architecture whose code travels.
pub const ARCH: &str = "sm_90";
/// Positions of a block of the cache.
const BLOCK: usize = 32;
const DTYPE: DType = DType::BF16;

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub max_rows: u32,
    pub max_seqs: usize,
    pub max_seq_len: usize,
}

/// Llama-3.1-8B.
pub const LLAMA_8B: Shape = Shape {
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    intermediate: 14336,
    vocab: 128_256,
    max_rows: 2048,
    max_seqs: 128,
    max_seq_len: 8192,
};

/// Small enough for the emulator; its projections have K slices.
pub const SMALL: Shape = Shape {
    hidden: 1024,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    intermediate: 96,
    vocab: 611,
    max_rows: 512,
    max_seqs: 32,
    max_seq_len: 512,
};

/// A step: sequences that have `context` positions after it, each with `rows` of its own.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub sequences: usize,
    pub rows: usize,
    pub context: usize,
}

impl Load {
    fn tokens(&self) -> usize {
        self.sequences * self.rows
    }

    fn symbols(&self) -> Symbols {
        let (tokens, sequences) = (self.tokens() as u32, self.sequences as u32);
        Symbols { tokens, sequences, rows: sequences, decode: self.rows == 1, sm_count: 1 }
    }

    fn tables(&self) -> Vec<(StepTable, Buffer)> {
        let pages = self.context.div_ceil(BLOCK);
        let sequence = |s: usize| Sequence {
            q_start: (s * self.rows) as i32,
            q_len: self.rows as i32,
            kv_len: self.context as i32,
            blocks_start: (s * pages) as i32,
        };
        let sequences: Vec<Sequence> = (0..self.sequences).map(sequence).collect();
        let owners: Vec<i32> = (0..self.tokens()).map(|row| (row / self.rows) as i32).collect();
        // Sequences take their blocks in turn, as they would while they grow together.
        let blocks: Vec<i32> =
            (0..self.sequences * pages).map(|at| (at % pages * self.sequences + at / pages) as i32).collect();
        vec![
            (StepTable::RowSequence, Buffer::of(bytes::of_i32(&owners))),
            (StepTable::Sequences, Buffer::of(bytes::of_sequences(&sequences))),
            (StepTable::Blocks, Buffer::of(bytes::of_i32(&blocks))),
        ]
    }
}

impl Shape {
    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn q(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Bytes of a block of the cache with one layer.
    fn block_bytes(&self) -> usize {
        2 * self.kv_heads * self.head_dim * BLOCK * DTYPE.size()
    }

    fn gemm(&self, m: Symbol, n: usize, k: usize, out: DType, epilogue: Epilogue) -> gemm::cuda::Problem {
        let max_m = if m == Symbol::Rows { self.max_seqs as u32 } else { self.max_rows };
        gemm::cuda::Problem { m, max_m, n, k, dtype: DTYPE, out, epilogue, bias: false }
    }

    fn rope(&self) -> rope_append::cuda::Problem {
        rope_append::cuda::Problem {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.head_dim,
            norm: None,
            dtype: DTYPE,
            kv_dtype: DTYPE,
            block: BLOCK,
            block_bytes: self.block_bytes() as u64,
        }
    }

    /// A projection with what stands before and behind it.
    fn linear(&self, load: &Load, role: &'static str, p: gemm::cuda::Problem, fused: &Fused) -> Result<Node> {
        let rows = load.symbols().get(p.m) as usize;
        let stored = stored_rows(p.n, p.epilogue);
        let weight = Buffer::noise(DTYPE, stored.div_ceil(mma16::TILE) * mma16::tile_row_bytes(p.k) / 2);
        let mut inputs = vec![Buffer::noise(DTYPE, rows * p.k)];
        inputs.extend(fused.norm.map(|_| Buffer::noise(DTYPE, p.k)));
        inputs.push(weight);
        let columns = p.epilogue.columns(p.n);
        let mut output = Buffer::result(p.out, rows * columns);
        let mut written = 0;
        match fused.tail {
            Tail::None => {}
            Tail::Add => inputs.push(Buffer::noise(p.out, rows * p.n)),
            Tail::RopeAppend(_) => {
                inputs.extend(self.rope_inputs(load));
                output = Buffer::result(DTYPE, rows * self.q());
                written = 2 * rows * self.kv_heads * self.head_dim * DTYPE.size();
            }
        }
        // The cache counts as far as it is written.
        let cache = |b: &&Buffer| matches!(fused.tail, Tail::RopeAppend(_)) && b.result.is_some();
        let unread: usize = inputs.iter().filter(cache).map(|b| b.bytes).sum();
        let mut node =
            Node::new("gemm", role, fused_launches(&p, fused)?, load.symbols(), inputs, vec![output]);
        node.bytes = node.bytes - unread as u64 + written as u64;
        node.flops = 2 * (rows * p.n * p.k) as u64;
        if matches!(fused.tail, Tail::RopeAppend(_)) {
            node.tables = load.tables();
        }
        Ok(node)
    }

    /// Positions, table and cache.
    fn rope_inputs(&self, load: &Load) -> [Buffer; 3] {
        let positions: Vec<i32> =
            (0..load.tokens()).map(|row| (load.context - load.rows + row % load.rows) as i32).collect();
        let cache = load.sequences * load.context.div_ceil(BLOCK) * self.block_bytes();
        [
            Buffer::of(bytes::of_i32(&positions)),
            Buffer::noise(DType::F32, load.context * self.head_dim),
            Buffer { result: Some(DTYPE), ..Buffer::zero(cache) },
        ]
    }

    /// The projections of a layer and the head, as the compiler fuses them.
    ///
    /// # Errors
    /// The kernel families'.
    pub fn linears(&self, load: &Load) -> Result<Vec<Node>> {
        let eps = Some(1e-5);
        let (tokens, store) = (Symbol::Tokens, Epilogue::Store);
        let tail = |tail| Fused { norm: None, tail };
        let norm = |tail| Fused { norm: eps, tail };
        let gate_up = 2 * self.intermediate;
        Ok(vec![
            self.linear(
                load,
                "norm-qkv-rope-append",
                self.gemm(tokens, self.qkv(), self.hidden, DType::F32, store),
                &norm(Tail::RopeAppend(self.rope())),
            )?,
            self.linear(
                load,
                "o-residual",
                self.gemm(tokens, self.hidden, self.q(), DTYPE, store),
                &tail(Tail::Add),
            )?,
            self.linear(
                load,
                "norm-gate-up-glu",
                self.gemm(tokens, gate_up, self.hidden, DTYPE, Epilogue::Glu(Activation::Silu)),
                &norm(Tail::None),
            )?,
            self.linear(
                load,
                "down-residual",
                self.gemm(tokens, self.hidden, self.intermediate, DTYPE, store),
                &tail(Tail::Add),
            )?,
            self.linear(
                load,
                "norm-head",
                self.gemm(Symbol::Rows, self.vocab, self.hidden, DType::F32, store),
                &norm(Tail::None),
            )?,
        ])
    }

    /// Attention over a cache of noise.
    ///
    /// # Errors
    /// The kernel family's.
    pub fn attention(&self, load: &Load) -> Result<Node> {
        let p = attention::cuda::Problem {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            dtype: DTYPE,
            kv_dtype: DTYPE,
            block: BLOCK,
            block_bytes: self.block_bytes() as u64,
            max_seq_len: self.max_seq_len,
            max_seqs: self.max_seqs,
            max_tokens: self.max_rows as usize,
            window: None,
            softcap: None,
            sinks: false,
        };
        let rows = load.tokens() * self.q();
        let cache = load.sequences * load.context.div_ceil(BLOCK) * self.block_bytes() / 2;
        let inputs = vec![Buffer::noise(DTYPE, rows), Buffer::noise(DTYPE, cache)];
        let outputs = vec![Buffer::result(DTYPE, rows)];
        let role = if load.rows == 1 { "decode" } else { "prefill" };
        let launches = attention::cuda::launches(&p)?;
        let mut node = Node::new("attention", role, launches, load.symbols(), inputs, outputs);
        node.tables = load.tables();
        // Scores and values of the positions that each row sees.
        let seen: usize = (0..load.rows).map(|row| load.context - load.rows + row + 1).sum();
        node.flops = 4 * (load.sequences * seen * self.q()) as u64;
        Ok(node)
    }

    /// Greedy drawing with logprobs.
    ///
    /// # Errors
    /// The kernel family's.
    pub fn sampling(&self, load: &Load) -> Result<Node> {
        let (rows, vocab) = (load.sequences, self.vocab);
        let p = sampling::cuda::Problem { vocab, max_batch: self.max_seqs, max_rows: self.max_seqs };
        let params = |row: usize| DrawParams {
            slot: row as i32,
            position: 7,
            temperature: [0.0, 0.8][row % 2],
            top_k: 40,
            top_p: 0.9,
            seed: row as u64,
            ..GREEDY
        };
        let params: Vec<DrawParams> = (0..rows).map(params).collect();
        let inputs = vec![Buffer::noise(DType::F32, rows * vocab)];
        let launches = sampling::cuda::launches(&p)?;
        let mut node = Node::new("sampling", "draw", launches, load.symbols(), inputs, vec![]);
        node.tables = vec![
            (StepTable::DrawParams, Buffer::of(bytes::of_draw_params(&params))),
            (StepTable::Masks, Buffer::zero(rows * vocab.div_ceil(32) * 4)),
            (StepTable::Counts, Buffer::zero(self.max_seqs * vocab * 4)),
            (StepTable::Bias, Buffer::zero(self.max_seqs * MAX_LOGIT_BIAS * 8)),
            (StepTable::Stops, Buffer::zero(self.max_seqs * MAX_STOP_IDS * 4)),
            (StepTable::Scores, Buffer::zero(rows * vocab * 4)),
            (StepTable::Answers, Buffer::zero(rows * size_of::<Answer>())),
            (StepTable::Drawn, Buffer::result(DType::F32, rows)),
        ];
        Ok(node)
    }

    /// What is launched by itself where nothing is fused, and the ends of a step.
    ///
    /// # Errors
    /// The kernel families'.
    pub fn others(&self, load: &Load) -> Result<Vec<Node>> {
        let (t, h) = (load.tokens(), self.hidden);
        let symbols = load.symbols();
        let norm = rms_norm::cuda::NormProblem::rows(Symbol::Tokens, h, DTYPE, 1e-5);
        let node = |family, role, launches, inputs, outputs| {
            Node::new(family, role, launches, symbols, inputs, outputs)
        };
        let wide = |n: usize| Buffer::noise(DType::F32, t * n);
        let out = |n: usize| Buffer::result(DTYPE, t * n);
        let mut rope = node(
            "rope_append",
            "rope-append",
            rope_append::cuda::launches(&self.rope())?,
            std::iter::once(wide(self.qkv())).chain(self.rope_inputs(load)).collect(),
            vec![out(self.q())],
        );
        rope.tables = load.tables();
        let gated = glu::cuda::Problem {
            act: Activation::Silu,
            m: Symbol::Tokens,
            cols: self.intermediate,
            stride: self.intermediate,
            dtype: DTYPE,
            out: DTYPE,
        };
        let table =
            embedding::cuda::Problem { vocab: self.vocab, h, dtype: DTYPE, layout: TableLayout::RowMajor };
        let ids: Vec<i32> = (0..t).map(|i| (i * 97 % self.vocab) as i32).collect();
        let mut look_up = node(
            "embedding",
            "embedding",
            embedding::cuda::launches(&table)?,
            vec![Buffer::of(bytes::of_i32(&ids)), Buffer::noise(DTYPE, self.vocab * h)],
            vec![out(h)],
        );
        look_up.tables = vec![(StepTable::Drawn, Buffer::zero(4 * self.max_seqs))];
        look_up.bytes = 2 * (t * h * DTYPE.size()) as u64;
        let last: Vec<i32> = (0..load.sequences).map(|s| ((s + 1) * load.rows - 1) as i32).collect();
        let rows = gather_rows::cuda::launches(&gather_rows::cuda::Problem { cols: h, dtype: DTYPE })?;
        let narrow = |n: usize| Buffer::noise(DTYPE, n);
        Ok(vec![
            node(
                "rms_norm",
                "norm",
                rms_norm::cuda::launches(&norm)?,
                vec![narrow(t * h), narrow(h)],
                vec![out(h)],
            ),
            node(
                "rms_norm",
                "add-norm",
                rms_norm::cuda::add_launches(&norm)?,
                vec![wide(h), narrow(t * h), narrow(h)],
                vec![out(h), out(h)],
            ),
            rope,
            node(
                "glu",
                "glu",
                glu::cuda::launches(&gated)?,
                vec![narrow(t * self.intermediate), narrow(t * self.intermediate)],
                vec![out(self.intermediate)],
            ),
            look_up,
            node(
                "gather_rows",
                "gather-rows",
                rows,
                vec![narrow(t * h), Buffer::of(bytes::of_i32(&last))],
                vec![Buffer::result(DTYPE, load.sequences * h)],
            ),
        ])
    }

    /// Every node.
    ///
    /// # Errors
    /// The kernel families'.
    pub fn all(&self, load: &Load) -> Result<Vec<Node>> {
        let mut all = self.linears(load)?;
        all.push(self.attention(load)?);
        all.push(self.sampling(load)?);
        all.extend(self.others(load)?);
        Ok(all)
    }
}

/// Compiles what a run launches outside of plans, into the cache.
///
/// # Errors
/// NVRTC's.
pub fn prepare() -> Result<()> {
    let mut sources: BTreeMap<Source, ()> = BTreeMap::new();
    for shape in [LLAMA_8B, SMALL] {
        for node in shape.all(&Load { sequences: 1, rows: 1, context: 64 })? {
            sources.extend(node.launches.stages.into_iter().map(|stage| (stage.source, ())));
        }
    }
    sources.insert(ceilings::source(), ());
    sources.insert(wgmma::reference(), ());
    let compiler = code::compiler();
    code::compile(&compiler, &sources.keys().collect::<Vec<_>>(), ARCH)?;
    wgmma::compile(&compiler)?;
    println!("{} sources compiled", sources.len());
    Ok(())
}
