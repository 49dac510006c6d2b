// Causal grouped-query attention over the paged cache, 16-bit, by tensor cores; the order of summation is in mod.rs.
// Entries: `attention_decode` for sequences of few rows, or `attention_split` and `attention_fold`; `attention_prefill`
// for the others. Both walk leaves of 128 positions in stages of COLS columns: K's stages, then V's.
// Macros: ELEMENT of q, cache and output; HEADS, KV_HEADS, HEAD_DIM; COLS, a multiple of 16 that divides HEAD_DIM; BLOCK
// positions of BLOCK_BYTES bytes over all layers; WINDOW positions that a row sees, 0 for all; SOFTCAP of the scores, 0.0f
// for none; SINKS if there are any, 1 or 0; MAX_LEAVES that a row sees.
#include "lathe.cuh"
#include "step.cuh"
using namespace lathe;

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int LEAF = 128;
constexpr int STAGES = 3;
// Stages of K, and of V, in a leaf.
constexpr int PARTS = HEAD_DIM / COLS;
// Shared rows are an odd number of 16-byte pieces apart, so that `ldmatrix` meets no bank twice.
constexpr int PIECES = COLS / 8;
constexpr int PITCH = 16 * (PIECES | 1);
constexpr int STAGE_BYTES = LEAF * PITCH;
constexpr int Q_PIECES = HEAD_DIM / 8;
constexpr int Q_PITCH = 16 * (Q_PIECES | 1);
constexpr int P_PITCH = 16 * (LEAF / 8 + 1);
// Tiles of 16 rows (query, head of the group) that the decode kernel takes of a sequence.
constexpr int DECODE_TILES = (GROUP + 15) / 16;
// Blocks of decode that registers leave room for on a multiprocessor.
constexpr int DECODE_BLOCKS = HEAD_DIM > 128 ? 2 : 3;
// Warps that share 16 rows of prefill: one has no registers for a wide head.
constexpr int PREFILL_SHARE = HEAD_DIM > 128 ? 2 : 1;
constexpr int PREFILL_ROWS = 16 * WARPS / PREFILL_SHARE;
// A last parameter of the kernels that write rows, where there are sinks: one per head.
#if SINKS
#define SINKS_PARAMETER , const float* sinks
#else
#define SINKS_PARAMETER
constexpr const float* sinks = nullptr;
#endif
#define ABSENT __uint_as_float(0xff800000u)  // minus infinity

extern __shared__ __align__(16) u8 shared_memory[];

// What a lane knows of rows `lane / 4` and `lane / 4 + 8` of its warp's 16: which positions they see.
struct Rows {
    int first[2], last[2];
};

// Softmax state of the same rows over the leaves so far.
struct State {
    float max[2], sum[2];
};

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / 32; }

__device__ __forceinline__ int first_seen(int position) {
    return WINDOW == 0 ? 0 : max(0, position - WINDOW + 1);
}

// Row `row` of the sequence's (query, head of the group) pairs; rows past its end see nothing.
__device__ __forceinline__ int position_of(const Sequence& s, int row) {
    return row < s.q_len * GROUP ? s.kv_len - s.q_len + row / GROUP : -1;
}

__device__ __forceinline__ int last_row(const Sequence& s, int row0, int rows) {
    return min(row0 + rows, s.q_len * GROUP) - 1;
}

__device__ __forceinline__ u64 element_of(const Sequence& s, int kv_head, int row) {
    return (u64(s.q_start + row / GROUP) * HEADS + kv_head * GROUP + row % GROUP) * HEAD_DIM;
}

__device__ __forceinline__ Rows rows_of(const Sequence& s, int row0) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows.last[i] = position_of(s, row0 + lane_id() / 4 + 8 * i);
        rows.first[i] = first_seen(rows.last[i]);
    }
    return rows;
}

// Starts loading `ROWS` rows of q; rows past the end become zero.
template <int ROWS>
__device__ __forceinline__ void load_q(u32 to, const ELEMENT* q, const Sequence& s, int kv_head, int row0) {
    for (int i = threadIdx.x; i < ROWS * Q_PIECES; i += THREADS) {
        int row = i / Q_PIECES, piece = i % Q_PIECES;
        bool valid = row0 + row < s.q_len * GROUP;
        const ELEMENT* from = q + (valid ? element_of(s, kv_head, row0 + row) + piece * 8 : 0);
        cp_async16(to + row * Q_PITCH + piece * 16, from, valid);
    }
}

// The leaves of a sequence that a block walks, and the ring of stages.
struct Walk {
    const u8* head;     // K of the block's head in cache block 0
    const int* blocks;  // of the sequence
    int first, end;     // positions that the block's rows see
    u32 ring;           // shared address

    // Starts loading part `part` (K's, then V's) of a leaf; positions that no row sees become zero. A warp takes 16
    // positions, which lie in one cache block, at a time.
    __device__ __forceinline__ void load(int slot, int leaf, int part) const {
        constexpr u64 V_BYTES = u64(KV_HEADS) * BLOCK * HEAD_DIM * 2;
        const u8* column = head + (part < PARTS ? part * COLS * 2 : V_BYTES + (part - PARTS) * COLS * 2);
        int low = first - leaf * LEAF, high = end - leaf * LEAF;
#pragma unroll
        for (int g = 0; g < LEAF / 16 / WARPS; g++) {
            int row0 = (g * WARPS + warp_id()) * 16, position = leaf * LEAF + row0;
            bool any = row0 < high && (WINDOW == 0 || row0 + 16 > low);
            u64 block = any ? blocks[position / BLOCK] : 0;
            const u8* from = column + block * BLOCK_BYTES + position % BLOCK * (HEAD_DIM * 2);
            u32 to = ring + slot * STAGE_BYTES + row0 * PITCH;
#pragma unroll
            for (int i = 0; i < 16 * PIECES / 32; i++) {
                int row = (lane_id() + 32 * i) / PIECES, piece = (lane_id() + 32 * i) % PIECES;
                bool valid = row0 + row < high && (WINDOW == 0 || row0 + row >= low);
                cp_async16(to + row * PITCH + piece * 16, from + row * (HEAD_DIM * 2) + piece * 16, valid);
            }
        }
    }
};

// Scores of 16 rows of q (at `q`) and the 16-position tiles [0, TILES) at `keys`, over the columns of one stage, on top
// of `s`: ascending d.
template <int TILES>
__device__ __forceinline__ void scores(float (&s)[2 * TILES][4], u32 q, u32 keys) {
    int lane = lane_id();
    u32 from_q = q + lane % 16 * Q_PITCH + lane / 16 * 16;
    u32 from_k = keys + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
        u32 a[4];
        ldmatrix4(a, from_q + k * 32);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            u32 b[4];
            ldmatrix4(b, from_k + t * 16 * PITCH + k * 32);
            mma<ELEMENT>(s[2 * t], a, {b[0], b[1]});
            mma<ELEMENT>(s[2 * t + 1], a, {b[2], b[3]});
        }
    }
}

__device__ __forceinline__ float score(float dot, float scale) {
    float s = mul(dot, scale);
    if constexpr (SOFTCAP > 0.0f) s = softcap_fast(s, SOFTCAP);
    return s;
}

// Scales and caps scores of positions `start ..`, hides what a row does not see unless all see all, and gives the largest of
// each row.
template <int TILES>
__device__ __forceinline__ void mask(float (&s)[2 * TILES][4], float (&largest)[2], const Rows& rows, int start,
                                     bool all, float scale) {
#pragma unroll
    for (int t = 0; t < 2 * TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[t][i] = score(s[t][i], scale);
    if (!all) {
        int column = start + lane_id() % 4 * 2;
#pragma unroll
        for (int t = 0; t < 2 * TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int position = column + t * 8 + i % 2, row = i / 2;
                bool seen = position <= rows.last[row] && (WINDOW == 0 || position >= rows.first[row]);
                if (!seen) s[t][i] = ABSENT;
            }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float m = ABSENT;
#pragma unroll
        for (int t = 0; t < 2 * TILES; t++) m = fmaxf(m, fmaxf(s[t][2 * row], s[t][2 * row + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        largest[row] = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    }
}

// exp(score - largest), rounded: the A fragments of the weights. A row that sees nothing gets zeros.
template <int TILES>
__device__ __forceinline__ void weigh(u32 (&p)[TILES][4], const float (&s)[2 * TILES][4], const float (&largest)[2]) {
    float m[2] = {largest[0] == ABSENT ? 0.0f : largest[0], largest[1] == ABSENT ? 0.0f : largest[1]};
#pragma unroll
    for (int t = 0; t < 2 * TILES; t++)
#pragma unroll
        for (int row = 0; row < 2; row++)
            p[t / 2][t % 2 * 2 + row] = pack<ELEMENT>(exp_fast(__fsub_rn(s[t][2 * row], m[row])),
                                                      exp_fast(__fsub_rn(s[t][2 * row + 1], m[row])));
}

// acc[16 rows][16 columns] += weights of the 16 positions at `values`' rows times their columns.
__device__ __forceinline__ void value_step(float (&lo)[4], float (&hi)[4], const u32 (&p)[4], u32 values) {
    int lane = lane_id();
    u32 b[4];
    ldmatrix4_transposed(b, values + lane % 16 * PITCH + lane / 16 * 16);
    mma<ELEMENT>(lo, p, {b[0], b[1]});
    mma<ELEMENT>(hi, p, {b[2], b[3]});
}

// True if a lane holds an infinity or NaN.
template <int PAIRS>
__device__ __forceinline__ bool any_not_finite(const float (&acc)[PAIRS][2][4]) {
    float zero = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS * 8; i++) zero = __fmaf_rn(acc[i / 8][i / 4 % 2][i % 4], 0.0f, zero);
    return __any_sync(~0u, zero != 0.0f);
}

// `value_step` over a leaf for each row by itself, with zeros for the values that the row does not see: zero times an
// infinity would be NaN.
template <int SHARE, int PAIRS>
__device__ __forceinline__ void values_by_row(float (&acc)[PAIRS][2][4], const u32 (&p)[LEAF / 16][4], u32 values,
                                              int share, const Rows& rows, int start) {
    int lane = lane_id();
#pragma unroll 1
    for (int r = 0; r < 16; r++) {
        int first = __shfl_sync(~0u, r < 8 ? rows.first[0] : rows.first[1], r % 8 * 4) - start - lane % 4 * 2;
        int last = __shfl_sync(~0u, r < 8 ? rows.last[0] : rows.last[1], r % 8 * 4) - start - lane % 4 * 2;
        float own[PAIRS][2][4] = {};
#pragma unroll
        for (int k = 0; k < LEAF / 16; k++) {
            u32 seen[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = k * 16 + half * 8;
                seen[half] = (first <= at && at <= last ? 0xffffu : 0u) |
                             (first <= at + 1 && at + 1 <= last ? 0xffff0000u : 0u);
            }
#pragma unroll
            for (int c = 0; c < PAIRS; c++) {
                int pair = c * SHARE + share;
                if (pair >= COLS / 16) continue;
                u32 b[4];
                ldmatrix4_transposed(b, values + (k * 16 + lane % 16) * PITCH + pair * 32 + lane / 16 * 16);
                mma<ELEMENT>(own[c][0], p[k], {b[0] & seen[0], b[1] & seen[1]});
                mma<ELEMENT>(own[c][1], p[k], {b[2] & seen[0], b[3] & seen[1]});
            }
        }
#pragma unroll
        for (int i = 0; i < PAIRS * 8; i++)
            if (lane / 4 + i % 4 / 2 * 8 == r) acc[i / 8][i / 4 % 2][i % 4] = own[i / 8][i / 4 % 2][i % 4];
    }
}

// The state after a leaf, and what the accumulators before it and of it are multiplied with.
struct Factors {
    float before[2], of[2];
    bool absent[2];
};

__device__ __forceinline__ void fold_one(float& max, float& sum, float leaf_max, float leaf_sum, float& before,
                                         float& of) {
    float m = fmaxf(max, leaf_max);
    before = exp_fast(__fsub_rn(max, m));
    of = exp_fast(__fsub_rn(leaf_max, m));
    sum = add(mul(sum, before), mul(leaf_sum, of));
    max = m;
}

__device__ __forceinline__ float fold_value(float total, float of_leaf, float before, float of) {
    return add(mul(total, before), mul(of_leaf, of));
}

// What a row's values are multiplied with at the end, after the leaf of the sink where there is one.
__device__ __forceinline__ float last_factor(float max, float sum, const float* sinks, int head) {
    if constexpr (!SINKS) return __fdiv_rn(1.0f, sum);
    float before, of;
    fold_one(max, sum, sinks[head], 1.0f, before, of);
    return mul(before, __fdiv_rn(1.0f, sum));
}

// Sums the rounded weights by the instruction that weighs values, over a column of ones, and folds the leaf in. A leaf
// that a row does not see changes nothing.
__device__ __forceinline__ Factors sum_and_fold(State& state, float (&sum)[4], const u32 (&p)[LEAF / 16][4],
                                                const float (&largest)[2]) {
    u32 one = pack<ELEMENT>(1.0f, 1.0f);
#pragma unroll
    for (int k = 0; k < LEAF / 16; k++) mma<ELEMENT>(sum, p[k], {one, one});
    Factors f;
#pragma unroll
    for (int row = 0; row < 2; row++) {
        f.absent[row] = largest[row] == ABSENT;
        if (!f.absent[row])
            fold_one(state.max[row], state.sum[row], largest[row], sum[2 * row], f.before[row], f.of[row]);
    }
    return f;
}

__device__ __forceinline__ void fold_tile(float (&total)[4], const float (&leaf)[4], const Factors& f) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (!f.absent[i / 2]) total[i] = fold_value(total[i], leaf[i], f.before[i / 2], f.of[i / 2]);
}

// Rounds 8 columns of 16 rows out; `column` is that of the first.
__device__ __forceinline__ void store_tile(ELEMENT* out, const Sequence& s, int kv_head, int row0, int column,
                                           const float (&total)[4], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row0 + lane_id() / 4 + 8 * i;
        if (row >= s.q_len * GROUP) continue;
        ELEMENT* to = out + element_of(s, kv_head, row) + column + lane_id() % 4 * 2;
        *reinterpret_cast<u32*>(to) = pack<ELEMENT>(mul(total[2 * i], factors[i]), mul(total[2 * i + 1], factors[i]));
    }
}

__device__ __forceinline__ const u8* head_of(const u8* cache, int kv_head) {
    return cache + u64(kv_head) * BLOCK * HEAD_DIM * 2;
}

// A leaf's result of one row: HEAD_DIM values, the largest score, the sum, padding to 16 bytes.
constexpr int PARTIAL = HEAD_DIM + 4;

// `leaf` counts from the first that the row sees.
__device__ __forceinline__ u64 partial_of(int sequence, int head, int leaf) {
    return ((u64(sequence) * HEADS + head) * MAX_LEAVES + leaf) * PARTIAL;
}

// Leaves 8 columns from `column` on, the `tile`-th of the stage, of a leaf's result for `attention_fold`.
__device__ __forceinline__ void store_partial(float* partials, int sequence, int kv_head, int row0, int leaf,
                                              int column, int tile, const float (&acc)[4], const float (&largest)[2],
                                              const float (&sum)[4]) {
    if (tile >= COLS / 8) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row0 + lane_id() / 4 + 8 * i;
        if (row >= GROUP) continue;
        float* to = partials + partial_of(sequence, kv_head * GROUP + row, leaf);
        *reinterpret_cast<float2*>(to + column + lane_id() % 4 * 2) = make_float2(acc[2 * i], acc[2 * i + 1]);
        if (column == 0 && lane_id() % 4 == 0)
            *reinterpret_cast<float2*>(to + HEAD_DIM) = make_float2(largest[i], sum[2 * i]);
    }
}

// True if the leaves of a sequence go to several blocks: it has more than one block does whole. Several queries would
// need as many times the workspace.
__device__ __forceinline__ bool splits(const Sequence& s, int leaves, int whole) {
    return s.q_len == 1 && leaves > whole;
}

// A block's share of an attention: `16 WARPS / SHARE` rows from `row0` on of sequence `index`, under one key-value head,
// over leaves `blockIdx.z`, `blockIdx.z + gridDim.z` .. where it splits, else over all. SHARE warps have 16 rows in
// common: they divide positions of the scores and columns of the values, and exchange maxima and weights.
template <int SHARE, bool SPLIT>
__device__ __forceinline__ void attend(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences,
                                       int index, int kv_head, int row0, const int* blocks, float* partials,
                                       int whole, float scale, const float* sinks) {
    constexpr int ROWS = 16 * WARPS / SHARE;
    constexpr int TILES = LEAF / 16 / SHARE;
    constexpr int PAIRS = (COLS / 16 + SHARE - 1) / SHARE;
    Sequence s = sequences[index];
    int first_position = first_seen(position_of(s, row0));
    int end_position = position_of(s, last_row(s, row0, ROWS)) + 1;
    int seen = first_position / LEAF, end = (end_position + LEAF - 1) / LEAF;
    bool split = SPLIT && splits(s, end - seen, whole);
    if (SPLIT && !split && blockIdx.z > 0) return;
    int first = SPLIT ? seen + blockIdx.z : seen, step = split ? gridDim.z : 1;
    if (first >= end) return;

    u32 ring = shared_address(shared_memory);
    u32 q_at = ring + STAGES * STAGE_BYTES;
    u32 p_at = q_at + ROWS * Q_PITCH;
    float* maxima = reinterpret_cast<float*>(shared_memory + STAGES * STAGE_BYTES + ROWS * (Q_PITCH + P_PITCH));
    Walk walk = {head_of(cache, kv_head), blocks + s.blocks_start, first_position, end_position, ring};
    load_q<ROWS>(q_at, q, s, kv_head, row0);

    int lane = lane_id(), share = warp_id() % SHARE, group = warp_id() / SHARE;
    row0 += group * 16;
    q_at += group * 16 * Q_PITCH;
    p_at += group * 16 * P_PITCH;
    maxima += group * 16 * SHARE;
    Rows rows = rows_of(s, row0);
    // Leaves of which the warp's rows see something; none past the end.
    int my_first = first_seen(position_of(s, row0)) / LEAF;
    int my_last = position_of(s, last_row(s, row0, 16));
    int my_end = row0 < s.q_len * GROUP ? my_last / LEAF + 1 : 0;
    // Leaves that all of them see whole; what rows past the end do is not kept.
    int whole_first = (first_seen(my_last) + LEAF - 1) / LEAF, whole_end = (position_of(s, row0) + 1) / LEAF;

    // Part `part`, which may lie past 2 PARTS, of the leaf that is walked or of those after it.
    auto load = [&](int slot, int leaf, int part) {
        leaf += part / (2 * PARTS) * step;
        if (leaf < end) walk.load(slot, leaf, part % (2 * PARTS));
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load(i, first, i);

    State state = {{ABSENT, ABSENT}, {0.0f, 0.0f}};
    float total[PARTS][PAIRS][2][4] = {};
    int slot = 0;
    for (int leaf = first; leaf < end; leaf += step) {
        // Waits for the part's stage and starts a later one in the place of the stage before.
        auto next = [&](int part) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            load(slot == 0 ? STAGES - 1 : slot - 1, leaf, part + STAGES - 1);
            u32 at = ring + slot * STAGE_BYTES;
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            return at;
        };
        bool works = my_first <= leaf && leaf < my_end;
        float sc[2 * TILES][4] = {};
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            u32 keys = next(part);
            if (works) scores<TILES>(sc, q_at + part * COLS * 2, keys + share * TILES * 16 * PITCH);
        }
        u32 p[LEAF / 16][4], values;
        float largest[2], sum[4] = {};
        Factors factors;
        bool all = whole_first <= leaf && leaf < whole_end;
        if (works) mask<TILES>(sc, largest, rows, leaf * LEAF + share * TILES * 16, all, scale);
        if constexpr (SHARE == 1) {
            if (works) weigh<TILES>(p, sc, largest);
            if (works) factors = sum_and_fold(state, sum, p, largest);
            values = next(PARTS);
        } else {
            if (works && lane % 4 == 0) {
                maxima[share * 16 + lane / 4] = largest[0];
                maxima[share * 16 + lane / 4 + 8] = largest[1];
            }
            values = next(PARTS);
            if (works) {
#pragma unroll
                for (int i = 0; i < 2 * SHARE; i++)
                    largest[i % 2] = fmaxf(largest[i % 2], maxima[i / 2 * 16 + lane / 4 + i % 2 * 8]);
                u32 mine[TILES][4];
                weigh<TILES>(mine, sc, largest);
                u8* to = shared_memory + (p_at - ring) + lane / 4 * P_PITCH + share * TILES * 32 + lane % 4 * 4;
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        *reinterpret_cast<u32*>(to + i % 2 * 8 * P_PITCH + t * 32 + i / 2 * 16) = mine[t][i];
            }
            __syncthreads();
            if (works) {
#pragma unroll
                for (int k = 0; k < LEAF / 16; k++)
                    ldmatrix4(p[k], p_at + lane % 16 * P_PITCH + lane / 16 * 16 + k * 32);
                factors = sum_and_fold(state, sum, p, largest);
            }
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            if (part > 0) values = next(PARTS + part);
            if (!works) continue;
            float acc[PAIRS][2][4] = {};
#pragma unroll
            for (int k = 0; k < LEAF / 16; k++)
#pragma unroll
                for (int c = 0; c < PAIRS; c++) {
                    int pair = c * SHARE + share;
                    if (pair < COLS / 16) value_step(acc[c][0], acc[c][1], p[k], values + k * 16 * PITCH + pair * 32);
                }
            if (!all && any_not_finite(acc)) values_by_row<SHARE>(acc, p, values, share, rows, leaf * LEAF);
#pragma unroll
            for (int c = 0; c < PAIRS; c++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int column = part * COLS + (c * SHARE + share) * 16 + h * 8;
                    if (split)
                        store_partial(partials, index, kv_head, row0, leaf - seen, column, (c * SHARE + share) * 2 + h,
                                      acc[c][h], largest, sum);
                    else
                        fold_tile(total[part][c][h], acc[c][h], factors);
                }
        }
    }
    if (split) return;
    // Read again: wide heads leave the loop no register to spare.
    s = sequences[index];
    float factors[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = kv_head * GROUP + (row0 + lane / 4 + 8 * i) % GROUP;
        factors[i] = last_factor(state.max[i], state.sum[i], sinks, head);
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int c = 0; c < PAIRS; c++) {
            int pair = c * SHARE + share;
            if (pair >= COLS / 16) continue;
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_tile(out, s, kv_head, row0, part * COLS + pair * 16 + h * 8, total[part][c][h], factors);
        }
}

// One block per sequence, tile of 16 rows under a key-value head, and share of the leaves.
template <bool SPLIT>
__device__ __forceinline__ void decode(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences,
                                       const int* blocks, float* partials, int whole, float scale,
                                       const float* sinks) {
    let_next_start();
    wait_for_previous();
    int rows = sequences[blockIdx.x].q_len * GROUP, row0 = blockIdx.y % DECODE_TILES * 16;
    if (rows > 16 * DECODE_TILES || row0 >= rows) return;
    attend<WARPS, SPLIT>(q, cache, out, sequences, blockIdx.x, blockIdx.y / DECODE_TILES, row0, blocks, partials,
                         whole, scale, sinks);
}

extern "C" __global__ void __launch_bounds__(THREADS, DECODE_BLOCKS)
    attention_decode(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                     float scale SINKS_PARAMETER) {
    decode<false>(q, cache, out, sequences, blocks, nullptr, 0, scale, sinks);
}

extern "C" __global__ void __launch_bounds__(THREADS, DECODE_BLOCKS)
    attention_split(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                    float* partials, int whole, float scale SINKS_PARAMETER) {
    decode<true>(q, cache, out, sequences, blocks, partials, whole, scale, sinks);
}

// One block per sequence and head: folds what `attention_split` left, a thread per column.
constexpr int FOLD_THREADS = (HEAD_DIM + 31) / 32 * 32;

// 512 threads a multiprocessor: asked for none, ptxas aims at full occupancy and spills for it.
extern "C" __global__ void __launch_bounds__(FOLD_THREADS, 512 / FOLD_THREADS)
    attention_fold(const float* partials, ELEMENT* out, const Sequence* sequences, int whole SINKS_PARAMETER) {
    constexpr int RUN = 128;
    __shared__ float before[RUN], of[RUN], sums[RUN];
    let_next_start();
    wait_for_previous();
    Sequence s = sequences[blockIdx.x];
    if (s.q_len != 1) return;
    int first = first_seen(s.kv_len - 1) / LEAF, end = (s.kv_len + LEAF - 1) / LEAF;
    if (!splits(s, end - first, whole)) return;
    int leaves = end - first;
    const float* from = partials + partial_of(blockIdx.x, blockIdx.y, 0);
    int column = threadIdx.x;
    float total = 0.0f, max = ABSENT, sum = 0.0f;
    for (int run = 0; run < leaves; run += RUN) {
        int n = min(RUN, leaves - run);
        // The chain of maxima is exact, so lanes of one warp find the factors of all leaves; the chain of sums is not.
        if (threadIdx.x < 32) {
            for (int base = 0; base < n; base += 32) {
                int i = base + threadIdx.x;
                float2 leaf = make_float2(ABSENT, 0.0f);
                if (i < n) leaf = *reinterpret_cast<const float2*>(from + u64(run + i) * PARTIAL + HEAD_DIM);
                float m = leaf.x;
#pragma unroll
                for (int distance = 1; distance < 32; distance *= 2) {
                    float lower = __shfl_up_sync(~0u, m, distance);
                    if (int(threadIdx.x) >= distance) m = fmaxf(m, lower);
                }
                m = fmaxf(m, max);
                float was = __shfl_up_sync(~0u, m, 1);
                if (threadIdx.x == 0) was = max;
                if (i < n) {
                    bool absent = leaf.x == ABSENT;
                    before[i] = absent ? -1.0f : exp_fast(__fsub_rn(was, m));
                    of[i] = exp_fast(__fsub_rn(leaf.x, m));
                    sums[i] = leaf.y;
                }
                max = __shfl_sync(~0u, m, 31);
            }
        }
        __syncthreads();
        if (column < HEAD_DIM)
#pragma unroll 8
            for (int i = 0; i < n; i++) {
                float value = from[u64(run + i) * PARTIAL + column];
                if (before[i] < 0.0f) continue;
                total = fold_value(total, value, before[i], of[i]);
                sum = fold_value(sum, sums[i], before[i], of[i]);
            }
        __syncthreads();
    }
    if constexpr (SINKS) {
        // The maximum is known to the first warp alone.
        if (threadIdx.x == 0) before[0] = max;
        __syncthreads();
        max = before[0];
    }
    if (column < HEAD_DIM)
        out[(u64(s.q_start) * HEADS + blockIdx.y) * HEAD_DIM + column] =
            from_f32<ELEMENT>(mul(total, last_factor(max, sum, sinks, blockIdx.y)));
}

// Which sequence and tile of PREFILL_ROWS rows a block does: a scan over the sequences that prefill takes.
__device__ __forceinline__ bool find_tile(const Sequence* sequences, int n, int wanted, int& sequence, int& tile) {
    int lane = lane_id(), before = 0;
    for (int base = 0; base < n; base += 32) {
        int mine = 0;
        if (base + lane < n) {
            int rows = sequences[base + lane].q_len * GROUP;
            mine = rows > 16 * DECODE_TILES ? (rows + PREFILL_ROWS - 1) / PREFILL_ROWS : 0;
        }
        int sum = mine;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            int lower = __shfl_up_sync(~0u, sum, distance);
            if (lane >= distance) sum += lower;
        }
        u32 hits = __ballot_sync(~0u, wanted < before + sum);
        if (hits != 0) {
            int hit = __ffs(hits) - 1;
            sequence = base + hit;
            tile = wanted - before - __shfl_sync(~0u, sum - mine, hit);
            return true;
        }
        before += __shfl_sync(~0u, sum, 31);
    }
    return false;
}

// One block per tile of PREFILL_ROWS rows (query, head of the group) of a sequence under a key-value head.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_prefill(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                      int n_sequences, float scale SINKS_PARAMETER) {
    let_next_start();
    wait_for_previous();
    int index, tile;
    // The last tiles of a sequence see most, so they begin first.
    if (!find_tile(sequences, n_sequences, gridDim.x - 1 - blockIdx.x, index, tile)) return;
    attend<PREFILL_SHARE, false>(q, cache, out, sequences, index, blockIdx.y, tile * PREFILL_ROWS, blocks, nullptr, 0,
                                 scale, sinks);
}
