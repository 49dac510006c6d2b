//! The plan's tables, as flat data: no graph, no pointers, nothing that plans.
//!
//! Every struct here is one bincode value inside a section; FORMAT.md names the section of each.

use bincode::{Decode, Encode};
pub use lathe_device::{Arg, DeviceLaunch, Extent, StepTable, Symbol as StepSymbol, Term, When};
use lathe_numerics::DType;
use serde::Serialize;

/// What the model is and how it was compiled: section `CARD`.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize)]
pub struct ModelCard {
    /// Name for people: the hub id, or family and size where the checkpoint was opened as a directory.
    pub name: String,
    /// Architecture as the checkpoint names it, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// Parameters in the checkpoint.
    pub n_parameters: u64,
    /// Columns of the logits; ids at or above the tokenizer's vocabulary are never sampled by name but may occur.
    pub vocab_size: u32,
    /// Beginning-of-sequence id, where the checkpoint names one.
    pub bos_id: Option<u32>,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// Sampling defaults from generation_config.json; `None` fields mean the API's own default.
    pub generation: GenerationDefaults,
    /// Longest context that the checkpoint was made for.
    pub max_position: u32,
    /// Limits that the memory plan was made for.
    pub limits: Limits,
    /// Version of the compiler that wrote the plan.
    pub producer: String,
    /// Summation rules (`lathe_numerics::ContractId`).
    pub contract: u32,
    /// Compile flags that reproduce this plan, without paths of input and output.
    pub flags: Vec<String>,
    /// Compiler passes that moved logits within a bound, each with its count and bound; empty when all were exact.
    pub numeric_passes: Vec<String>,
    /// Hash over the source checkpoint's config and its tensors' names, types and shapes (BLAKE3).
    #[serde(serialize_with = "as_hex")]
    pub source_hash: [u8; 32],
}

/// Sampling defaults that travel with a model.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode, Serialize)]
#[allow(missing_docs)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// Upper bounds that fix all memory but the KV pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Limits {
    /// Sequences in a step (bound of `s`).
    pub max_batch: u32,
    /// Tokens in a step (bound of `t`).
    pub max_num_tokens: u32,
    /// Rows of logits in a step (bound of `r`).
    pub max_sample_rows: u32,
    /// Positions of one sequence, prompt and answer together.
    pub max_seq_len: u32,
    /// KV positions that the pool holds unless the user says otherwise at load.
    pub kv_tokens: u64,
}

/// Programs and their memory: section `PROG`.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize)]
pub struct Program {
    /// Role: `decoder` now.
    pub name: String,
    /// What it runs on.
    pub target: Target,
    /// Rank of `n_ranks`; 0 of 1 now.
    pub rank: u32,
    /// Devices that share the model.
    pub n_ranks: u32,
    /// Symbols with the bounds for which this variant is valid; indices are `Expr` term symbols.
    pub symbols: Vec<Symbol>,
    /// Activations, all inside one arena.
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena; buffers whose lifetimes do not meet share bytes.
    pub arena_bytes: u64,
    /// Bytes that each worker thread needs beside the arena.
    pub scratch_bytes: u64,
    /// KV state by group; one block table per group.
    pub cache_groups: Vec<CacheGroup>,
    /// Kernels in order.
    pub launches: Vec<Launch>,
    /// `f32[r, vocab_size]`.
    pub logits: Operand,
    /// Device code that the launches name; empty for the CPU.
    pub modules: Vec<Module>,
    /// Draws tokens from the logits, in order; empty for the CPU, whose engine draws. `Arg::Input(0)` is the logits.
    pub sampling: Vec<DeviceLaunch>,
}

/// One compiled device source. At least one of the two forms is there.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Module {
    /// Family, variant and what it is specialised on.
    pub name: String,
    /// Machine code for the program's architecture.
    pub cubin: Option<Blob>,
    /// PTX text, for the emulator and, where the user allows it, for newer devices.
    pub ptx: Option<Blob>,
    /// Its kernels.
    pub entries: Vec<Entry>,
}

/// Bytes in section `CODE`. Equal bytes are stored once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Blob {
    /// Byte offset in `CODE`, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    #[serde(serialize_with = "as_hex")]
    pub hash: [u8; 32],
}

/// A kernel of a module and what the compiler said of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Entry {
    /// Name of the `__global__` function.
    pub name: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of spilled registers, stores and loads.
    pub spill_bytes: u32,
    /// Bytes of local memory per thread.
    pub stack_bytes: u32,
    /// Static shared memory per block.
    pub shared_bytes: u32,
}

/// Hardware that a program was compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Target {
    /// Any CPU: launches name kernels, the engine picks the ISA. Never holds code.
    Cpu,
    /// One CUDA architecture, e.g. `sm_80`.
    Cuda {
        /// Architecture with its suffix.
        arch: String,
    },
}

/// A size that is known when a step is made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Symbol {
    /// `t` tokens, `s` sequences, `r` rows to sample.
    pub name: String,
    /// Smallest value, inclusive.
    pub min: u64,
    /// Largest value, inclusive.
    pub max: u64,
}

/// `constant + sum(coefficient * symbol)`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Expr {
    /// Value with all symbols at zero.
    pub constant: u64,
    /// Pairs of symbol index and coefficient.
    pub terms: Vec<(u32, u64)>,
}

/// One activation matrix, dense and row-major in the arena: `dtype[rows, cols]`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Buffer {
    /// The IR value's name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Rows in terms of symbols.
    pub rows: Expr,
    /// Columns.
    pub cols: u64,
    /// Byte offset in the arena, a multiple of 64.
    pub offset: u64,
}

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Place {
    /// Index into `Program::buffers`.
    Buffer(u32),
    /// Index into the weight table.
    Weight(u32),
    /// Given with each step.
    Input(Input),
    /// A layer of a cache group.
    Cache {
        /// Index into `Program::cache_groups`.
        group: u32,
        /// Index into `CacheGroup::layers`.
        layer: u32,
    },
}

/// Data that every step brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Input {
    /// `i32[t]`: token ids.
    Tokens,
    /// `i32[t]`: absolute positions.
    Positions,
    /// `i32[r]`: indices of the token rows whose logits are wanted.
    SampleRows,
}

/// A matrix region: `dtype[rows, cols]` starting at column `col_offset`, rows `row_stride` elements apart.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Operand {
    /// Where it lies.
    pub place: Place,
    /// Element type; equals the place's.
    pub dtype: DType,
    /// Rows in terms of symbols. For a weight: its own first extent, constant.
    pub rows: Expr,
    /// Columns that are touched.
    pub cols: u64,
    /// Elements between the starts of two rows.
    pub row_stride: u64,
    /// First column.
    pub col_offset: u64,
}

/// One kernel call.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize)]
pub struct Launch {
    /// Kernel family, e.g. `gemm`; the engine knows its operands and parameters.
    pub kernel: String,
    /// The IR value that it computes, for reports and layer-by-layer checks.
    pub node: String,
    /// Read operands in the kernel's documented order.
    pub inputs: Vec<Operand>,
    /// Written operands.
    pub outputs: Vec<Operand>,
    /// Named parameters in ascending order of name.
    pub params: Vec<(String, Param)>,
    /// How a device does it, in order; empty for the CPU, whose engine knows its kernels.
    pub device: Vec<DeviceLaunch>,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize)]
pub enum Param {
    /// Count or size.
    Int(u64),
    /// Real number.
    Float(f32),
    /// Choice by name, e.g. an epilogue.
    Name(String),
}

/// Most cache groups of a program: a model has one or two windows.
pub const MAX_CACHE_GROUPS: usize = 8;

/// State that outlives a step.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct CacheGroup {
    /// Shape of the state.
    pub kind: CacheKind,
    /// True if recomputing a prefix gives the same bits, so that preemption may recompute instead of swapping out.
    pub replay_exact: bool,
    /// Bytes of one block over all layers of the group.
    pub bytes_per_block: u64,
    /// Layers in order.
    pub layers: Vec<CacheLayer>,
}

/// Kinds of state. Only `Paged` runs today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum CacheKind {
    /// Keys and values per position in blocks.
    Paged {
        /// Positions per block.
        block: u32,
        /// Positions that a row sees, its own included; blocks that no row to come sees are free again. `None` is all.
        window: Option<u32>,
    },
    /// One compressed vector per position (multi-head latent attention).
    Latent {
        /// Positions per block.
        block: u32,
        /// Elements per position.
        width: u32,
    },
    /// A state of fixed size per sequence.
    Recurrent {
        /// Bytes per sequence.
        bytes: u64,
    },
    /// Keys and values of an encoder, written once.
    Cross {
        /// Positions per block.
        block: u32,
    },
}

/// One layer's keys and values inside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs)]
pub struct CacheLayer {
    pub kv_heads: u32,
    pub head_dim: u32,
    pub dtype: DType,
    /// Byte offset of this layer in a block.
    pub offset: u64,
}

/// A stored weight: section `WTAB`; bytes in section `WDAT`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Weight {
    /// Name from the IR. Unique together with `layout`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Logical extents, `[n]` or `[n, k]`.
    pub shape: Vec<u64>,
    /// Order of the elements.
    pub layout: Layout,
    /// Byte offset in `WDAT`, a multiple of 64.
    pub offset: u64,
    /// Bytes, padding of the layout included.
    pub bytes: u64,
    /// BLAKE3 of the bytes.
    #[serde(serialize_with = "as_hex")]
    pub hash: [u8; 32],
}

/// Order of a weight's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize)]
pub enum Layout {
    /// Dense, last extent fastest.
    RowMajor,
    /// Panels of 16 rows (`lathe_kernels` gemm): bf16 `[n/16][k/2][16][2]`, f16 and f32 `[n/16][k][16]`, zero-padded.
    Panel16,
    /// Tiles of 16 rows by 16 columns of 2-byte elements in the order of the A fragment of `mma.m16n8k16`:
    /// `[n/16][k/16][32 lanes][8]`, zero-padded. Lane `4 g + q` holds columns `2q, 2q+1` of rows `g` and `g + 8`, then
    /// columns `2q+8, 2q+9` of the same rows.
    Mma16,
}

/// What the text side needs: section `TEXT`; the tokenizer itself is section `TOKN`, the bytes of tokenizer.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct TextConfig {
    /// Chat templates by name; the one named `default` is used unless a request asks for tools.
    pub chat_templates: Vec<(String, String)>,
    /// Special token spellings as the templates know them: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
    pub special_tokens: Vec<(String, String)>,
    /// `clean_up_tokenization_spaces` of tokenizer_config.json.
    pub clean_up_spaces: bool,
}

/// A question with its answer: section `TEST`. The interpreter's logits for a few positions.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize)]
pub struct SelfTest {
    /// Prompt.
    pub token_ids: Vec<u32>,
    /// Positions whose logits are given.
    pub positions: Vec<u32>,
    /// Vocabulary ids whose logits are given at every position.
    pub ids: Vec<u32>,
    /// `f32[positions, ids]`.
    pub logits: Vec<f32>,
    /// Largest allowed absolute difference.
    pub tolerance: f32,
}

/// Lower-case hexadecimal, as BLAKE3's tools print it.
pub fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

fn as_hex<S: serde::Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(hash))
}
