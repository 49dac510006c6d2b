//! The faults, by family.

use lathe_device::{Arg, Extent};
use lathe_kernels::cuda::Launches;

use super::attention::{FEATURED, MIXED, PLAIN, PLAIN_FEATURED, WIDE};
use super::experts::EXPERT;
use super::fused::FUSED;
use super::gemm::{F32, RESIDUAL, RING, SHALLOW, SLICES};
use super::rms_norm::NORM;
use super::row_by_row::{COLUMNS, HEAD_NORM, LAYER_NORM, ROW_NORM};
use super::rows::{EMBEDDING, GATHER, ROPE};
use super::sampling::SAMPLE;
use super::{Case, Change, Class, Mutant};

pub(super) const fn text(
    case: &'static Case,
    class: Class,
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
) -> Mutant {
    Mutant { name, class, case, change: Change::Text(edits) }
}

pub(super) const fn host(
    case: &'static Case,
    class: Class,
    name: &'static str,
    change: fn(&mut Launches),
) -> Mutant {
    Mutant { name, class, case, change: Change::Host(change) }
}

/// Sets a macro of the kernels for which `of` holds.
pub(super) fn define(
    launches: &mut Launches,
    name: &str,
    value: &str,
    of: impl Fn(&[(&'static str, String)]) -> bool,
) {
    for source in launches.stages.iter_mut().map(|s| &mut s.source).filter(|s| of(&s.defines)) {
        source.defines.iter_mut().filter(|d| d.0 == name).for_each(|d| d.1 = value.into());
    }
}

/// All of them.
pub const MUTANTS: &[&[Mutant]] =
    &[GEMM, GEMM_F32, EXPERT, ATTENTION, ATTENTION_F32, RMS_NORM, ROWS, SAMPLING, FUSED, ROW_BY_ROW];

const GEMM: &[Mutant] = &[
    text(
        &RING,
        Class::Barrier,
        "no barrier before a stage is read",
        &[("cp_async_wait<STAGES - 2>();\n            __syncthreads();", "cp_async_wait<STAGES - 2>();")],
    ),
    text(
        &RING,
        Class::Barrier,
        "no barrier before sums take the ring's place",
        &[("__syncthreads();\n    float* tile_sums", "float* tile_sums")],
    ),
    text(
        &RING,
        Class::Barrier,
        "no barrier between sums and their rounding",
        &[(
            "            }\n            __syncthreads();\n        }\n        finish<",
            "            }\n        }\n        finish<",
        )],
    ),
    text(
        &RING,
        Class::CopyWait,
        "one stage too few is waited for",
        &[("cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();")],
    ),
    text(
        &RING,
        Class::Commit,
        "no commit in the loop",
        &[("cp_async_commit();\n            write =", "write =")],
    ),
    text(
        &RING,
        Class::Stage,
        "reads begin at the second stage",
        &[("u32 read = 0,", "u32 read = STAGE_BYTES,")],
    ),
    text(
        &RING,
        Class::Stage,
        "writes go to the stage that is read",
        &[("weights.copy(ring + write, next * DEPTH);", "weights.copy(ring + read, next * DEPTH);")],
    ),
    text(&RING, Class::Fragment, "lanes of the weights swap", &[("lane * 16);", "(lane ^ 1) * 16);")]),
    text(
        &RING,
        Class::Fragment,
        "the halves of B swap",
        &[("{b[t][2 * half], b[t][2 * half + 1]}", "{b[t][2 * half + 1], b[t][2 * half]}")],
    ),
    text(
        &RING,
        Class::Fragment,
        "ldmatrix takes rows by quads",
        &[("first + lane % 8,", "first + lane / 4,")],
    ),
    text(
        &RING,
        Class::Predicate,
        "a token more is copied",
        &[("return token_of(i) < left;", "return token_of(i) <= left;")],
    ),
    text(
        &RING,
        Class::Bounds,
        "a tile of weights more is copied",
        &[("tile + tile_of(i) < ALL_TILES;", "tile + tile_of(i) <= ALL_TILES;")],
    ),
    text(
        &RING,
        Class::Bounds,
        "columns past K are copied",
        &[("valid && column < K;", "valid && column <= K;")],
    ),
    text(
        &RING,
        Class::Bounds,
        "a row more is stored",
        &[("token0 + token >= m ||", "token0 + token > m ||")],
    ),
    text(
        &RING,
        Class::Misaligned,
        "16 bytes are read at a multiple of 8",
        &[("lane * 16);", "lane * 16 + 8);")],
    ),
    text(
        &RING,
        Class::Dependent,
        "x is not waited for",
        &[(
            "    wait_for_previous();\n#endif\n#pragma unroll\n    for (int i = 0; i < STAGES - 1; ++i) {",
            "#endif\n#pragma unroll\n    for (int i = 0; i < STAGES - 1; ++i) {",
        )],
    ),
    host(&RING, Class::SharedBounds, "the ring is 128 bytes short", |l| l.stages[0].shared_bytes -= 128),
    host(&RING, Class::Launch, "a column of blocks is missing", |l| {
        if let Extent::Sum { terms, .. } = &mut l.stages[0].grid[0] {
            terms[0].times -= 1;
        }
    }),
    host(&RING, Class::Launch, "x and weight swap", |l| l.stages[0].args.swap(0, 1)),
    text(
        &SLICES,
        Class::Order,
        "slices are folded from the last to the first",
        &[("w.slice == slice)", "w.slice == PARALLEL - 1 - slice)")],
    ),
    text(
        &SLICES,
        Class::Barrier,
        "no barrier between slices",
        &[(
            "            }\n            __syncthreads();\n        }\n        finish<",
            "            }\n        }\n        __syncthreads();\n        finish<",
        )],
    ),
    text(
        &SLICES,
        Class::Zeroing,
        "a slice begins with the sums of the one before",
        &[("fill(sums, 0.0f);", "if (round == 0) fill(sums, 0.0f);")],
    ),
    text(
        &SLICES,
        Class::Fold,
        "the last slice replaces the others",
        &[("add(total[f][t][j], sums[f][t][j])", "sums[f][t][j]")],
    ),
    host(&SLICES, Class::Slices, "two slices where there are four", |l| {
        define(l, "SLICES", "2", |d| d.contains(&("PARALLEL", "1".into())));
    }),
    text(
        &SHALLOW,
        Class::Undefined,
        "chunks past K and past the last token are not zeroed",
        &[("cp_async16(to, at, valid);", "if (valid) cp_async16(to, at);")],
    ),
    text(
        &RING,
        Class::Barrier,
        "the barrier comes after a stage is written again",
        &[
            ("cp_async_wait<STAGES - 2>();\n            __syncthreads();", "cp_async_wait<STAGES - 2>();"),
            (
                "cp_async_commit();\n            write =",
                "cp_async_commit();\n            __syncthreads();\n            write =",
            ),
        ],
    ),
    text(
        &RING,
        Class::CopyWait,
        "the wait comes after the barrier",
        &[(
            "cp_async_wait<STAGES - 2>();\n            __syncthreads();",
            "__syncthreads();\n            cp_async_wait<STAGES - 2>();",
        )],
    ),
    text(
        &RING,
        Class::Commit,
        "the commit comes before the copies",
        &[
            ("int next = i + STAGES - 1;", "int next = i + STAGES - 1;\n            cp_async_commit();"),
            ("cp_async_commit();\n            write =", "write ="),
        ],
    ),
    text(
        &RESIDUAL,
        Class::Update,
        "the residual of another thread is added while that replaces it",
        &[("(residual + first + column);", "(residual + ((first + column) ^ 16));")],
    ),
];

const GEMM_F32: &[Mutant] = &[
    text(
        &F32,
        Class::Barrier,
        "no barrier before a stage is read",
        &[("            __syncthreads();\n            int depth", "            int depth")],
    ),
    text(
        &F32,
        Class::Barrier,
        "no barrier before a stage is written again",
        &[("sum[j]);\n            __syncthreads();", "sum[j]);")],
    ),
    text(
        &F32,
        Class::Predicate,
        "rows past the end are read",
        &[("row < m && column < K", "row <= m && column < K")],
    ),
    text(
        &F32,
        Class::Undefined,
        "a quarter of the rows of a stage is written",
        &[(
            "for (int i = threadIdx.x; i < TILE_TOKENS * DEPTH; i += THREADS) {",
            "for (int i = threadIdx.x; i < TILE_TOKENS * DEPTH / 4; i += THREADS) {",
        )],
    ),
    text(
        &F32,
        Class::Bounds,
        "biases of features past the end are read",
        &[("if (ROWS % 4 == 0 || at < ROWS)", "if (ROWS % 4 == 0 || at <= ROWS)")],
    ),
];

const ATTENTION: &[Mutant] = &[
    text(
        &MIXED,
        Class::CopyWait,
        "one stage too few is waited for",
        &[("cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();")],
    ),
    text(
        &MIXED,
        Class::Barrier,
        "no barrier before a stage is read",
        &[("cp_async_wait<STAGES - 2>();\n            __syncthreads();", "cp_async_wait<STAGES - 2>();")],
    ),
    text(
        &MIXED,
        Class::Commit,
        "parts past the last leaf commit nothing",
        &[(
            "        if (leaf < end) walk.load(slot, leaf, part % (2 * PARTS));\n        cp_async_commit();",
            "        if (leaf < end) walk.load(slot, leaf, part % (2 * PARTS)), cp_async_commit();",
        )],
    ),
    text(
        &MIXED,
        Class::Stage,
        "the ring has a stage less for reads",
        &[("slot = slot + 1 == STAGES ? 0 : slot + 1;", "slot = slot + 2 == STAGES ? 0 : slot + 1;")],
    ),
    text(
        &MIXED,
        Class::Mask,
        "rows see the position after their own",
        &[("position <= rows.last[row] &&", "position <= rows.last[row] + 1 &&")],
    ),
    text(
        &MIXED,
        Class::Mask,
        "a leaf that is seen in part counts as whole",
        &[(
            "whole_end = (position_of(s, row0) + 1) / LEAF;",
            "whole_end = (position_of(s, row0) + LEAF) / LEAF;",
        )],
    ),
    text(
        &MIXED,
        Class::Slot,
        "block tables begin at the step's first",
        &[("blocks + s.blocks_start, first_position", "blocks, first_position")],
    ),
    text(
        &MIXED,
        Class::Slot,
        "the block before is read",
        &[("any ? blocks[position / BLOCK] : 0", "any ? blocks[max(0, position / BLOCK - 1)] : 0")],
    ),
    text(
        &MIXED,
        Class::Head,
        "heads of a group are apart",
        &[("HEADS + kv_head * GROUP + row % GROUP)", "HEADS + row % GROUP * KV_HEADS + kv_head)")],
    ),
    text(
        &MIXED,
        Class::Bounds,
        "queries past the end are read",
        &[("bool valid = row0 + row < s.q_len * GROUP;", "bool valid = true;")],
    ),
    text(
        &MIXED,
        Class::Fragment,
        "keys of ldmatrix swap",
        &[("lane / 8 % 2 * 16;", "(lane / 8 % 2 ^ 1) * 16;")],
    ),
    text(
        &MIXED,
        Class::Fragment,
        "values are not transposed",
        &[("ldmatrix4_transposed(b, values + lane", "ldmatrix4(b, values + lane")],
    ),
    text(
        &MIXED,
        Class::Misaligned,
        "ldmatrix takes rows at multiples of 8",
        &[("values + lane % 16 * PITCH + lane / 16 * 16)", "values + lane % 16 * PITCH + lane / 16 * 8)")],
    ),
    text(
        &MIXED,
        Class::Zeroing,
        "scores begin with those of the leaf before",
        &[
            (
                "    int slot = 0;\n    for (int leaf",
                "    int slot = 0;\n    float sc[2 * TILES][4] = {};\n    for (int leaf",
            ),
            ("        float sc[2 * TILES][4] = {};\n#pragma unroll", "#pragma unroll"),
        ],
    ),
    text(
        &MIXED,
        Class::Fold,
        "the last leaf replaces the others",
        &[("total[i] = fold_value(total[i], leaf[i], f.before[i / 2], f.of[i / 2]);", "total[i] = leaf[i];")],
    ),
    text(
        &MIXED,
        Class::Update,
        "all leaves of a sequence leave their result in one place",
        &[("row0, leaf - seen, column", "row0, 0, column")],
    ),
    text(
        &MIXED,
        Class::Undefined,
        "maxima and sums of leaves are not left",
        &[("if (column == 0 && lane_id() % 4 == 0)", "if (column == 1 && lane_id() % 4 == 0)")],
    ),
    text(
        &MIXED,
        Class::Barrier,
        "no barrier between the factors of leaves and their use",
        &[(
            "        __syncthreads();\n        if (column < HEAD_DIM)\n#pragma unroll 8",
            "        if (column < HEAD_DIM)\n#pragma unroll 8",
        )],
    ),
    text(
        &MIXED,
        Class::Dependent,
        "the fold does not wait for the leaves",
        &[(
            "    wait_for_previous();\n    Sequence s = sequences[blockIdx.x];\n    if (s.q_len != 1) return;",
            "    Sequence s = sequences[blockIdx.x];\n    if (s.q_len != 1) return;",
        )],
    ),
    text(
        &MIXED,
        Class::Dependent,
        "decode does not wait for q",
        &[("    wait_for_previous();\n    int rows = sequences", "    int rows = sequences")],
    ),
    host(&MIXED, Class::SharedBounds, "shared memory lacks the maxima", |l| {
        l.stages.iter_mut().filter(|s| s.entry == "attention_split").for_each(|s| s.shared_bytes -= 256);
    }),
    host(&MIXED, Class::Launch, "half of the workspace", |l| l.workspaces[0].floats /= 2),
    host(&MIXED, Class::Launch, "a block less of prefill", |l| {
        let prefill = l.stages.iter_mut().filter(|s| s.entry == "attention_prefill");
        // Two tiles of rows need two; the planned grid has room to spare.
        prefill.for_each(|s| s.grid[0] = Extent::fixed(1));
    }),
    host(&MIXED, Class::Launch, "chunks are left out", |l| {
        l.stages.retain(|s| s.entry != "attention_prefill")
    }),
    text(
        &WIDE,
        Class::Barrier,
        "no barrier between warps that share weights",
        &[(
            "            __syncthreads();\n            if (works) {\n#pragma unroll\n                for (int k = 0; k < LEAF / 16; k++)\n                    ldmatrix4",
            "            if (works) {\n#pragma unroll\n                for (int k = 0; k < LEAF / 16; k++)\n                    ldmatrix4",
        )],
    ),
    text(
        &WIDE,
        Class::Undefined,
        "one warp of a pair leaves no maxima",
        &[("if (works && lane % 4 == 0) {", "if (works && share == 0 && lane % 4 == 0) {")],
    ),
    text(
        &WIDE,
        Class::Predicate,
        "rows past the end are stored",
        &[(
            "        int row = row0 + lane_id() / 4 + 8 * i;\n        if (row >= s.q_len * GROUP) continue;",
            "        int row = row0 + lane_id() / 4 + 8 * i;",
        )],
    ),
    host(&WIDE, Class::SharedBounds, "shared memory is 64 bytes short", |l| {
        l.stages.iter_mut().filter(|s| s.entry == "attention_prefill").for_each(|s| s.shared_bytes -= 64);
    }),
    text(
        &MIXED,
        Class::Undefined,
        "positions past the end are not zeroed",
        &[(
            "cp_async16(to + row * PITCH + piece * 16, from + row * (HEAD_DIM * 2) + piece * 16, valid);",
            "if (valid) cp_async16(to + row * PITCH + piece * 16, from + row * (HEAD_DIM * 2) + piece * 16);",
        )],
    ),
    text(
        &FEATURED,
        Class::Mask,
        "a window of one position more",
        &[("max(0, position - WINDOW + 1)", "max(0, position - WINDOW)")],
    ),
    text(
        &FEATURED,
        Class::Mask,
        "a window of one position less",
        &[("max(0, position - WINDOW + 1)", "max(0, position - WINDOW + 2)")],
    ),
    text(
        &FEATURED,
        Class::Mask,
        "a window of whole leaves",
        &[("max(0, position - WINDOW + 1)", "max(0, position - WINDOW + 1) / LEAF * LEAF")],
    ),
    text(
        &FEATURED,
        Class::Mask,
        "all rows of a tile see the window of the first",
        &[(
            "bool seen = position <= rows.last[row] && (WINDOW == 0 || position >= rows.first[row]);",
            "bool seen = position <= rows.last[row];",
        )],
    ),
    text(
        &FEATURED,
        Class::Score,
        "dots are capped before they are scaled",
        &[(
            "    float s = mul(dot, scale);\n    if constexpr (SOFTCAP > 0.0f) s = softcap_fast(s, SOFTCAP);\n    return s;",
            "    return mul(softcap_fast(dot, SOFTCAP), scale);",
        )],
    ),
    text(
        &FEATURED,
        Class::Score,
        "scores are not capped",
        &[("if constexpr (SOFTCAP > 0.0f) s = softcap_fast(s, SOFTCAP);", "")],
    ),
    text(
        &FEATURED,
        Class::Fold,
        "values keep their scale when the sink is folded in",
        &[("return mul(before, __fdiv_rn(1.0f, sum));", "return __fdiv_rn(1.0f, sum);")],
    ),
    text(
        &FEATURED,
        Class::Fold,
        "the sink's sum is nothing",
        &[(
            "fold_one(max, sum, sinks[head], 1.0f, before, of);",
            "fold_one(max, sum, sinks[head], 0.0f, before, of);",
        )],
    ),
    text(
        &FEATURED,
        Class::Head,
        "the sink of another head",
        &[("fold_one(max, sum, sinks[head],", "fold_one(max, sum, sinks[head / GROUP],")],
    ),
    text(
        &FEATURED,
        Class::Barrier,
        "no barrier before the maximum of all leaves is read",
        &[("before[0] = max;\n        __syncthreads();", "before[0] = max;")],
    ),
    host(&FEATURED, Class::Launch, "the fold takes queries for sinks", |l| {
        let folds = l.stages.iter_mut().filter(|s| s.entry == "attention_fold");
        folds.for_each(|s| s.args[4] = Arg::Input(0));
    }),
];

const ATTENTION_F32: &[Mutant] = &[
    text(
        &PLAIN_FEATURED,
        Class::Mask,
        "a window of one position more",
        &[("max(0, position - WINDOW + 1)", "max(0, position - WINDOW)")],
    ),
    text(
        &PLAIN_FEATURED,
        Class::Mask,
        "a window of whole leaves",
        &[("max(0, position - WINDOW + 1)", "max(0, position - WINDOW + 1) / LEAF * LEAF")],
    ),
    text(
        &PLAIN_FEATURED,
        Class::Score,
        "dots are capped before they are scaled",
        &[(
            "score = mul(dot, scale);\n            if constexpr (SOFTCAP > 0.0f) score = softcap_portable(score, SOFTCAP);",
            "score = mul(softcap_portable(dot, SOFTCAP), scale);",
        )],
    ),
    text(
        &PLAIN_FEATURED,
        Class::Fold,
        "values keep their scale when the sink is folded in",
        &[("total[c] = mul(total[c], before);", "total[c] = mul(total[c], 1.0f);")],
    ),
    text(&PLAIN_FEATURED, Class::Head, "the sink of another head", &[("sinks[head]", "sinks[head / GROUP]")]),
    text(
        &PLAIN,
        Class::Barrier,
        "no barrier between warps' maxima and the block's",
        &[("partial[0][warp] = largest;\n        __syncthreads();", "partial[0][warp] = largest;")],
    ),
    text(
        &PLAIN,
        Class::Barrier,
        "no barrier between warps' sums of weights and the block's",
        &[("partial[1][warp] = leaf_sum;\n        __syncthreads();", "partial[1][warp] = leaf_sum;")],
    ),
    text(
        &PLAIN,
        Class::Undefined,
        "the last element of the query is not read",
        &[(
            "for (int d = threadIdx.x; d < HEAD_DIM; d += THREADS) query",
            "for (int d = threadIdx.x; d < HEAD_DIM - 1; d += THREADS) query",
        )],
    ),
    text(
        &PLAIN,
        Class::Mask,
        "a row does not see itself",
        &[("first <= key && key <= position;", "first <= key && key < position;")],
    ),
    text(
        &PLAIN,
        Class::Dependent,
        "q is not waited for",
        &[("    wait_for_previous();\n    int index", "    int index")],
    ),
    text(&PLAIN, Class::Predicate, "padding rows are not left out", &[("if (index < 0) return;", "")]),
];

const RMS_NORM: &[Mutant] = &[
    text(
        &NORM,
        Class::Barrier,
        "no barrier between warps' sums and the block's",
        &[("= x;\n    __syncthreads();", "= x;")],
    ),
    text(
        &NORM,
        Class::Update,
        "all warps leave their sum in one place",
        &[("partial[threadIdx.x / 32] = x;", "partial[0] = x;")],
    ),
    text(
        &NORM,
        Class::Undefined,
        "sums of warps that are not there are added",
        &[("lane < THREADS / 32 ? partial[lane] : 0.0f", "partial[lane]")],
    ),
    text(
        &NORM,
        Class::SharedBounds,
        "warps leave their sums 32 places apart",
        &[("partial[threadIdx.x / 32] = x;", "partial[threadIdx.x] = x;")],
    ),
    text(
        &NORM,
        Class::Bounds,
        "elements past the row are stored",
        &[("if (start + j < H) *", "if (start + j <= H) *")],
    ),
    text(
        &NORM,
        Class::Bounds,
        "elements past the row are read",
        &[("if (start + j < H) v =", "if (start + j <= H) v =")],
    ),
    text(
        &NORM,
        Class::Order,
        "the butterfly begins with neighbours",
        &[(
            "for (int distance = 16; distance > 0; distance /= 2)",
            "for (int distance = 1; distance < 32; distance *= 2)",
        )],
    ),
    text(
        &NORM,
        Class::Dependent,
        "x is not waited for",
        &[(
            "    wait_for_previous();\n    u64 row = u64(blockIdx.x) * H;\n#pragma unroll\n    for (int c = 0; c < PER_THREAD; c++) load",
            "    u64 row = u64(blockIdx.x) * H;\n#pragma unroll\n    for (int c = 0; c < PER_THREAD; c++) load",
        )],
    ),
    host(&NORM, Class::Bounds, "vectors twice as wide as what divides a row", |l| {
        define(l, "VEC", "8", |_| true)
    }),
    host(&NORM, Class::Launch, "a row more", |l| {
        if let Extent::Sum { constant, .. } = &mut l.stages[0].grid[0] {
            *constant = 1;
        }
    }),
    host(&NORM, Class::Launch, "input and output swap", |l| l.stages[0].args.swap(0, 2)),
    text(
        &NORM,
        Class::Barrier,
        "a warp passes the barrier by",
        &[("= x;\n    __syncthreads();", "= x;\n    if (threadIdx.x >= 32) __syncthreads();")],
    ),
    text(
        &NORM,
        Class::Barrier,
        "half of a warp passes the barrier by",
        &[("= x;\n    __syncthreads();", "= x;\n    if (threadIdx.x >= 16) __syncthreads();")],
    ),
    text(
        &NORM,
        Class::Barrier,
        "threads without elements end before the sums",
        &[(
            "c++) load(x + row, chunk_start(c), v[c]);",
            "c++) load(x + row, chunk_start(c), v[c]);\n    if (chunk_start(0) >= H) return;",
        )],
    ),
    text(
        &NORM,
        Class::Barrier,
        "half of a warp adds up the whole warp",
        &[("    x = warp_sum(x);\n", "    if (lane < 16) x = warp_sum(x);\n")],
    ),
];

const ROWS: &[Mutant] = &[
    text(
        &ROPE,
        Class::Padding,
        "padding rows write the first sequence's keys and values",
        &[("if (index < 0) return;", "if (index < 0) index = 0;")],
    ),
    text(&ROPE, Class::Bounds, "padding rows look their sequence up", &[("if (index < 0) return;", "")]),
    text(
        &ROPE,
        Class::Slot,
        "slots begin at the end of the sequence",
        &[("sequence.kv_len - sequence.q_len + row", "sequence.kv_len + row")],
    ),
    text(
        &ROPE,
        Class::Slot,
        "block tables begin at the step's first",
        &[("blocks[sequence.blocks_start + position / BLOCK]", "blocks[position / BLOCK]")],
    ),
    text(
        &ROPE,
        Class::Head,
        "values go where keys do",
        &[("((head - HEADS) * BLOCK", "((head - HEADS) % KV_HEADS * BLOCK")],
    ),
    text(
        &ROPE,
        Class::Fragment,
        "halves of whole heads rotate together",
        &[("first + ROTARY / 2", "first + HEAD_DIM / 2")],
    ),
    text(
        &ROPE,
        Class::Dependent,
        "qkv is not waited for",
        &[(
            "    wait_for_previous();\n    if (head >= ALL_HEADS) return;",
            "    if (head >= ALL_HEADS) return;",
        )],
    ),
    host(&ROPE, Class::Launch, "sequences and their table of blocks swap", |l| l.stages[0].args.swap(6, 7)),
    text(
        &EMBEDDING,
        Class::Fragment,
        "the second pair of a row is another row's",
        &[("share[2]", "share[1]")],
    ),
    text(
        &EMBEDDING,
        Class::Bounds,
        "rows of the step before count from 1",
        &[("drawn[-1 - token]", "drawn[-token]")],
    ),
    text(&EMBEDDING, Class::Predicate, "tiles past the row are read", &[("if (tile >= TILES) return;", "")]),
    text(
        &EMBEDDING,
        Class::Dependent,
        "ids of the step before are not waited for",
        &[("    wait_for_previous();\n    u32 id", "    u32 id")],
    ),
    text(&GATHER, Class::Bounds, "a word past the row is copied", &[("column >= WORDS", "column > WORDS")]),
    text(
        &GATHER,
        Class::Dependent,
        "x is not waited for",
        &[("    wait_for_previous();\n    out", "    out")],
    ),
    host(&GATHER, Class::Launch, "the last block of a row is missing", |l| {
        l.stages[0].grid[1] = Extent::fixed(1);
    }),
    text(
        &ROPE,
        Class::Slot,
        "all rows of a chunk go to one slot",
        &[("- sequence.q_len + row - sequence.q_start;", "- sequence.q_len;")],
    ),
];

const SAMPLING: &[Mutant] = &[
    text(
        &SAMPLE,
        Class::Barrier,
        "no barrier between warps' sums and the block's",
        &[("s.warps[warp] = upto;\n    __syncthreads();", "s.warps[warp] = upto;")],
    ),
    text(
        &SAMPLE,
        Class::Barrier,
        "no barrier before the cut is known",
        &[("    __syncthreads();\n    edge = s.edge;", "    edge = s.edge;")],
    ),
    text(
        &SAMPLE,
        Class::Update,
        "bins are counted without atomic operations",
        &[("atomicAdd(&s.count[at], 1u);", "s.count[at]++;")],
    ),
    text(
        &SAMPLE,
        Class::Update,
        "draws of one slot are counted without atomic operations",
        &[("atomicAdd(counts + u64(p.slot) * VOCAB + id, 1u);", "counts[u64(p.slot) * VOCAB + id] += 1;")],
    ),
    text(&SAMPLE, Class::Undefined, "bins are not cleared", &[("s.count[i] = s.low[i]", "s.low[i]")]),
    text(&SAMPLE, Class::Bounds, "logits past the row are read", &[("if (start < VOCAB) v =", "v =")]),
    text(
        &SAMPLE,
        Class::Dependent,
        "report does not wait for draw",
        &[("    wait_for_previous();\n    int r = blockIdx.x, tid", "    int r = blockIdx.x, tid")],
    ),
    text(
        &SAMPLE,
        Class::Dependent,
        "draw does not wait for the logits",
        &[("    wait_for_previous();\n    int r = blockIdx.x;", "    int r = blockIdx.x;")],
    ),
    text(
        &SAMPLE,
        Class::Barrier,
        "no barrier between clearing the list and filling it",
        &[(
            "if (tid == 0) s.n_listed = 0;\n    __syncthreads();\n    each_run",
            "if (tid == 0) s.n_listed = 0;\n    each_run",
        )],
    ),
    text(
        &SAMPLE,
        Class::Barrier,
        "no barrier after the sums of warps are read",
        &[("__shfl_sync(~0u, warps_upto, 31)};\n    __syncthreads();", "__shfl_sync(~0u, warps_upto, 31)};")],
    ),
];

const ROW_BY_ROW: &[Mutant] = &[
    text(
        &LAYER_NORM,
        Class::Fold,
        "the mean is not taken away",
        &[("mul(mul(add(to_f32(v[c][i]), -mean), inverse)", "mul(mul(to_f32(v[c][i]), inverse)")],
    ),
    text(
        &LAYER_NORM,
        Class::Predicate,
        "elements past the row count in the variance",
        &[("if (chunk_start(c) + i < H) squares", "squares")],
    ),
    text(
        &LAYER_NORM,
        Class::Fragment,
        "the bias is another column's",
        &[("add(scaled, to_f32(b[c][i]))", "add(scaled, to_f32(b[c][i ^ 1]))")],
    ),
    text(
        &LAYER_NORM,
        Class::Head,
        "a group takes the weights of another",
        &[("blockIdx.x % WEIGHT_ROWS", "(blockIdx.x + 1) % WEIGHT_ROWS")],
    ),
    text(
        &LAYER_NORM,
        Class::Barrier,
        "both sums lie in one place",
        &[("block_sum<1>(squares)", "block_sum<0>(squares)")],
    ),
    text(
        &HEAD_NORM,
        Class::Head,
        "keys take the queries' weights",
        &[("? q_norm : k_norm", "? q_norm : q_norm")],
    ),
    text(
        &HEAD_NORM,
        Class::Head,
        "values are normalised",
        &[("bool norms = first_head < HEADS + KV_HEADS;", "bool norms = true;")],
    ),
    text(
        &HEAD_NORM,
        Class::Order,
        "the norm comes after the rotation",
        &[
            (
                "        if (norms) {\n            const float* w",
                "        if (norms && share.rotates()) {\n            const float* t = table + u64(positions[row]) * ROTARY;\n            rotate(y, z, t + share.first, t + share.second);\n        }\n        if (norms) {\n            const float* w",
            ),
            ("            if (share.rotates()) {", "            if (false) {"),
        ],
    ),
    text(
        &ROW_NORM,
        Class::Barrier,
        "no barrier between warps' sums and the row's",
        &[("= x;\n    __syncthreads();", "= x;")],
    ),
    text(
        &ROW_NORM,
        Class::Fold,
        "a row's sum is its first warp's",
        &[("lane < THREADS / 32 ? partial[lane] : 0.0f", "lane < 1 ? partial[lane] : 0.0f")],
    ),
    text(
        &COLUMNS,
        Class::Fragment,
        "rows are as far apart as the columns are many",
        &[("u64(blockIdx.x) * STRIDE + start", "u64(blockIdx.x) * COLS + start")],
    ),
    text(
        &COLUMNS,
        Class::Dependent,
        "columns are read before the wait",
        &[
            ("    wait_for_previous();\n", ""),
            ("    Vec<OUT, VEC> y;\n", "    wait_for_previous();\n    Vec<OUT, VEC> y;\n"),
        ],
    ),
];
