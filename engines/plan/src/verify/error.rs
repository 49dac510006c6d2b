//! One variant per way of not making sense.

use lathe_numerics::DType;

/// What does not hold. `at` names program, launch and operand.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)] // The message of each variant says what its fields are.
pub enum VerifyError {
    #[error("limit {name} is {value}; possible are 1 to {most}")]
    Limit { name: &'static str, value: u64, most: u64 },
    #[error(
        "the plan follows numeric contract {found}, this build follows {known}; recompile with this version"
    )]
    Contract { found: u32, known: u32 },
    #[error("vocabulary of {vocab_size} entries is not within 1 to 2^31")]
    Vocabulary { vocab_size: u32 },
    #[error("special id {id} is not below 2^31")]
    SpecialId { id: u32 },
    #[error("sampling default {name} is not a finite number of at least 0")]
    Default { name: &'static str },
    #[error("{what} {name} is there twice")]
    TextTwice { what: &'static str, name: String },

    #[error("weight {name} is there twice with layout {layout}")]
    WeightTwice { name: String, layout: &'static str },
    #[error("weight {name}: layout {layout} holds no {dtype}{shape:?}")]
    WeightShape { name: String, layout: &'static str, dtype: DType, shape: Vec<u64> },
    #[error("weight {name} has {bytes} bytes, its layout has {want}")]
    WeightBytes { name: String, bytes: u64, want: u64 },
    #[error("weight {name} at {offset} is not a multiple of 64")]
    WeightAlignment { name: String, offset: u64 },
    #[error("weight {name} ends at {end}, the weights end at {data_bytes}")]
    WeightRange { name: String, end: u128, data_bytes: u64 },
    #[error("weights {first} and {second} share bytes")]
    WeightOverlap { first: String, second: String },

    #[error("the plan has no program")]
    NoProgram,
    #[error("program {program} is there twice for its target and rank")]
    ProgramTwice { program: String },
    #[error("program {program} is for rank {rank} of {n_ranks}")]
    Rank { program: String, rank: u32, n_ranks: u32 },
    #[error("program {program}: {what} of {bytes} bytes is beyond any machine")]
    Size { program: String, what: &'static str, bytes: u64 },
    #[error("program {program}: symbols are not t, s, r")]
    SymbolNames { program: String },
    #[error("program {program}: symbol {symbol} is {min} to {max}, the limit is {limit}")]
    SymbolBounds { program: String, symbol: &'static str, min: u64, max: u64, limit: u64 },
    #[error("{at}: rows use a symbol that is not there, twice or out of order, or a number beyond 2^40")]
    Expression { at: String },

    #[error("{at}: {cols} columns; possible are 1 to 2^40")]
    BufferCols { at: String, cols: u64 },
    #[error("{at} at {offset} is not a multiple of 64")]
    BufferAlignment { at: String, offset: u64 },
    #[error("{at} ends at {end}, the arena at {arena}")]
    BufferRange { at: String, end: u128, arena: u64 },

    #[error("{at}: blocks of {block} positions; possible are 16, 32, 64, 128")]
    CacheBlock { at: String, block: u32 },
    #[error("{at}: {what} is zero or beyond 2^40")]
    CacheExtent { at: String, what: &'static str },
    #[error("{at}: {dtype} keys and values")]
    CacheDType { at: String, dtype: DType },
    #[error("{at} at {offset} is not a multiple of 64")]
    CacheAlignment { at: String, offset: u64 },
    #[error("{at} ends at {end}, the block at {bytes_per_block}")]
    CacheRange { at: String, end: u128, bytes_per_block: u64 },
    #[error("{at}: layers {first} and {second} share bytes")]
    CacheOverlap { at: String, first: usize, second: usize },
    #[error("program {program}: {count} cache groups; {most} are the most")]
    CacheCount { program: String, count: usize, most: usize },
    #[error("{at} has blocks of {block} positions, others have {other}")]
    CacheBlocksDiffer { at: String, block: u32, other: u32 },
    #[error("{at} sees {window} positions, its cache group keeps {kept}")]
    CacheWindow { at: String, window: String, kept: u32 },

    #[error("{at}: no kernel is named")]
    KernelName { at: String },
    #[error("{at}: {count} operands; at most {most} are possible")]
    OperandCount { at: String, count: usize, most: usize },
    #[error("{at}: parameter {name} is not in ascending order")]
    ParamOrder { at: String, name: String },
    #[error("{at}: parameter {name} is not finite")]
    ParamValue { at: String, name: String },

    #[error("{at}: {kind} {index} is not there")]
    OperandPlace { at: String, kind: &'static str, index: u32 },
    #[error("{at} is read as {dtype} and is {place}")]
    OperandDType { at: String, dtype: DType, place: DType },
    #[error("{at}: rows {row_stride} elements apart hold columns {col_offset} and {cols} on")]
    OperandStride { at: String, row_stride: u64, col_offset: u64, cols: u64 },
    #[error("{at} reaches beyond its buffer")]
    OperandRange { at: String },
    #[error("{at} is not the whole weight")]
    WeightPart { at: String },
    #[error("{at} has not the input's shape")]
    InputShape { at: String },
    #[error("{at} gives extents to a cache")]
    CacheShape { at: String },
    #[error("{at} cannot be written")]
    OutputPlace { at: String },
    #[error("{at} shares bytes with another output of its launch")]
    OutputsOverlap { at: String },
    #[error("{at} shares bytes with an input of its launch")]
    OutputOverInput { at: String },
    #[error("{at} is read before it is written, or after its bytes were overwritten")]
    ReadUnwritten { at: String },
    #[error("program {program}: the logits are not f32[r, {vocab_size}]")]
    LogitsShape { program: String, vocab_size: u32 },

    #[error("{at}: a CPU program has {what}; its engine knows its kernels")]
    DeviceOnCpu { at: String, what: &'static str },
    #[error("{at}: neither machine code nor PTX is there")]
    ModuleEmpty { at: String },
    #[error("{at}: kernel name {entry:?} is empty or there twice")]
    EntryName { at: String, entry: String },
    #[error("{at}: code at {offset} is not a multiple of 64")]
    BlobAlignment { at: String, offset: u64 },
    #[error("{at}: {bytes} bytes at {offset} are not within the code's {code_bytes}")]
    BlobRange { at: String, offset: u64, bytes: u64, code_bytes: u64 },
    #[error("modules {first} and {second} share some bytes of code")]
    BlobOverlap { first: String, second: String },
    #[error("{at} does not match its hash")]
    BlobHash { at: String },
    #[error("{at} is stored twice")]
    BlobTwice { at: String },
    #[error("{at}: PTX is not text")]
    PtxText { at: String },

    #[error("{at}: no device launch does it")]
    NoDeviceLaunch { at: String },
    #[error("{at}: there are steps in which no device launch does it")]
    StepsWithoutLaunch { at: String },
    #[error("{at}: module {module} is not there")]
    LaunchModule { at: String, module: u32 },
    #[error("{at}: module {module} has no such kernel")]
    LaunchEntry { at: String, module: u32 },
    #[error("{at}: blocks of {block} threads; possible are multiples of 32 up to 1024")]
    LaunchBlock { at: String, block: u32 },
    #[error("{at}: {bytes} bytes of shared memory per block; at most {most} are possible")]
    LaunchShared { at: String, bytes: u64, most: u64 },
    #[error("{at}: {registers} registers per block; at most {most} are possible")]
    LaunchRegisters { at: String, registers: u64, most: u64 },
    #[error("{at}: the grid divides by zero")]
    GridDivisor { at: String },
    #[error("{at}: the grid is to be filled with {per_sm} blocks per multiprocessor, {most} at most")]
    GridFill { at: String, per_sm: u32, most: u32 },
    #[error("{at}: the grid is larger than 2^31 - 1 by 65535 by 65535, or than 2^32 blocks")]
    GridSize { at: String },
    #[error("{at}: {count} arguments; at most {most} are possible")]
    ArgCount { at: String, count: usize, most: usize },
    #[error("{at}: argument {way} {index} is not there")]
    ArgOperand { at: String, way: &'static str, index: u32 },
    #[error("{at} is not all of an f32 buffer with one row per token, sequence or sampled row")]
    WorkspaceShape { at: String },
    #[error("{at}: weight {weight} has layout {layout}, which its target's kernels do not read")]
    WeightLayout { at: String, weight: String, layout: &'static str },

    #[error("self-test id {id} is not below the vocabulary of {vocab_size}")]
    SelfTestId { id: u32, vocab_size: u32 },
    #[error("self-test prompt of {length} ids; possible are 1 to {max_seq_len}")]
    SelfTestLength { length: usize, max_seq_len: u32 },
    #[error("self-test position {position} is not within its prompt of {length}")]
    SelfTestPosition { position: u32, length: usize },
    #[error("self-test has {logits} logits for {positions} positions and {ids} ids")]
    SelfTestLogits { positions: usize, ids: usize, logits: usize },
    #[error("self-test logits or tolerance are not finite")]
    SelfTestValue,
}
