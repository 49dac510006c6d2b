// Causal grouped-query attention over the paged cache, 16-bit, by tensor cores; the order of summation is in mod.rs.
// Entries: `attention_decode` for sequences of few rows (with `attention_fold` where it splits), `attention_prefill` for
// the others. Both walk leaves of 128 positions in stages of COLS columns: K's stages, then V's.
// Macros: ELEMENT of q, cache and output; HEADS, KV_HEADS, HEAD_DIM; COLS, a multiple of 16 that divides HEAD_DIM; BLOCK
// positions of BLOCK_BYTES bytes over all layers; WINDOW positions that a row sees, 0 for all; MAX_LEAVES that a row sees.
#include "lathe.cuh"
#include "step.cuh"
using namespace lathe;

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int LEAF = 128;
constexpr int STAGES = 3;
// Loads of a stage that are under construction at a time: wide heads leave few registers.
constexpr int LOADS = HEAD_DIM > 128 ? 1 : 8;
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
constexpr int PREFILL_ROWS = 16 * WARPS;
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
    int kv_len;
    u32 ring;  // shared address

    // Starts loading part `part` (K's, then V's) of the leaf at `start`; positions past the end become zero.
    __device__ __forceinline__ void load(int slot, int start, int part) const {
        constexpr u64 V_BYTES = u64(KV_HEADS) * BLOCK * HEAD_DIM * 2;
        const u8* from = head + (part < PARTS ? part * COLS * 2 : V_BYTES + (part - PARTS) * COLS * 2);
        u32 to = ring + slot * STAGE_BYTES;
#pragma unroll LOADS
        for (int j = 0; j < PIECES * LEAF / THREADS; j++) {
            int i = threadIdx.x + j * THREADS;
            int row = i / PIECES, piece = i % PIECES;
            int position = start + row;
            bool valid = position < kv_len;
            u64 block = valid ? blocks[position / BLOCK] : 0;
            u64 at = block * BLOCK_BYTES + (position % BLOCK * HEAD_DIM + piece * 8) * 2;
            cp_async16(to + row * PITCH + piece * 16, valid ? from + at : from, valid);
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

// Scales scores of positions `start ..`, hides what a row does not see, and gives the largest of each row so far.
template <int TILES>
__device__ __forceinline__ void mask(float (&s)[2 * TILES][4], float (&largest)[2], const Rows& rows, int start,
                                     float scale) {
    int column = start + lane_id() % 4 * 2;
#pragma unroll
    for (int t = 0; t < 2 * TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int position = column + t * 8 + i % 2, row = i / 2;
            bool seen = position <= rows.last[row] && (WINDOW == 0 || position >= rows.first[row]);
            s[t][i] = seen ? mul(s[t][i], scale) : ABSENT;
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

// Sum of the rounded weights, by the same instruction: a column of ones.
__device__ __forceinline__ void sum_step(float (&sum)[4], const u32 (&p)[4]) {
    u32 one = pack<ELEMENT>(1.0f, 1.0f);
    mma<ELEMENT>(sum, p, {one, one});
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

// A leaf that a row does not see changes nothing.
__device__ __forceinline__ Factors fold(State& state, const float (&largest)[2], const float (&sum)[4]) {
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
                                           const float (&total)[4], const State& state) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row0 + lane_id() / 4 + 8 * i;
        if (row >= s.q_len * GROUP) continue;
        ELEMENT* to = out + element_of(s, kv_head, row) + column + lane_id() % 4 * 2;
        *reinterpret_cast<u32*>(to) = pack<ELEMENT>(__fdiv_rn(total[2 * i], state.sum[i]),
                                                    __fdiv_rn(total[2 * i + 1], state.sum[i]));
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

// True if the leaves of a sequence go to several blocks. Several queries would need as many times the workspace.
__device__ __forceinline__ bool splits(const Sequence& s, int leaves) { return s.q_len == 1 && leaves > 1; }

// One block per sequence, tile of 16 rows under a key-value head, and share of the leaves. Warps share positions of the
// scores and columns of the values.
template <bool SPLIT>
__device__ __forceinline__ void decode(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences,
                                       const int* blocks, float* partials, float scale) {
    constexpr int MY_TILES = LEAF / 16 / WARPS;
    constexpr int MY_COLS = (COLS / 16 + WARPS - 1) / WARPS;
    u32 ring = shared_address(shared_memory);
    u32 q_at = ring + STAGES * STAGE_BYTES;
    u32 p_at = q_at + 16 * Q_PITCH;
    float* maxima = reinterpret_cast<float*>(shared_memory + STAGES * STAGE_BYTES + 16 * (Q_PITCH + P_PITCH));

    int lane = lane_id(), warp = warp_id();
    int kv_head = blockIdx.y / DECODE_TILES, row0 = blockIdx.y % DECODE_TILES * 16;
    wait_for_previous();
    Sequence s = sequences[blockIdx.x];
    if (s.q_len == 0 || s.q_len * GROUP > 16 * DECODE_TILES || row0 >= s.q_len * GROUP) return;
    Rows rows = rows_of(s, row0);

    int seen = first_seen(position_of(s, row0)) / LEAF;
    int end = (s.kv_len + LEAF - 1) / LEAF;
    bool split = SPLIT && splits(s, end - seen);
    int step = split ? gridDim.z : 1;
    if (!split && blockIdx.z > 0) return;
    int first = seen + blockIdx.z;
    if (first >= end) return;

    Walk walk = {head_of(cache, kv_head), blocks + s.blocks_start, s.kv_len, ring};
    load_q<16>(q_at, q, s, kv_head, row0);
    // Part `part`, which may lie past 2 PARTS, of the leaf that is walked or of those after it.
    auto load = [&](int slot, int leaf, int part) {
        leaf += part / (2 * PARTS) * step;
        if (leaf < end) walk.load(slot, leaf * LEAF, part % (2 * PARTS));
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load(i, first, i);

    State state = {{ABSENT, ABSENT}, {0.0f, 0.0f}};
    float total[PARTS][MY_COLS][2][4] = {};
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
        float sc[2 * MY_TILES][4] = {};
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            u32 keys = next(part);
            scores<MY_TILES>(sc, q_at + part * COLS * 2, keys + warp * MY_TILES * 16 * PITCH);
        }
        float largest[2];
        mask<MY_TILES>(sc, largest, rows, leaf * LEAF + warp * MY_TILES * 16, scale);
        if (lane % 4 == 0) {
            maxima[warp * 16 + lane / 4] = largest[0];
            maxima[warp * 16 + lane / 4 + 8] = largest[1];
        }
        u32 values = next(PARTS);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            largest[row] = ABSENT;
#pragma unroll
            for (int w = 0; w < WARPS; w++) largest[row] = fmaxf(largest[row], maxima[w * 16 + lane / 4 + 8 * row]);
        }
        u32 mine[MY_TILES][4];
        weigh<MY_TILES>(mine, sc, largest);
#pragma unroll
        for (int t = 0; t < MY_TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = lane / 4 + i % 2 * 8, column = (warp * MY_TILES + t) * 16 + i / 2 * 8 + lane % 4 * 2;
                *reinterpret_cast<u32*>(shared_memory + (p_at - ring) + row * P_PITCH + column * 2) = mine[t][i];
            }
        __syncthreads();
        u32 p[LEAF / 16][4];
        float sum[4] = {};
#pragma unroll
        for (int k = 0; k < LEAF / 16; k++) {
            ldmatrix4(p[k], p_at + lane % 16 * P_PITCH + lane / 16 * 16 + k * 32);
            sum_step(sum, p[k]);
        }
        Factors factors;
        if (!split) factors = fold(state, largest, sum);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            if (part > 0) values = next(PARTS + part);
#pragma unroll
            for (int c = 0; c < MY_COLS; c++) {
                int pair = c * WARPS + warp;
                if (pair >= COLS / 16) continue;
                float acc[2][4] = {};
#pragma unroll
                for (int k = 0; k < LEAF / 16; k++)
                    value_step(acc[0], acc[1], p[k], values + k * 16 * PITCH + pair * 32);
                if (!split) {
                    fold_tile(total[part][c][0], acc[0], factors);
                    fold_tile(total[part][c][1], acc[1], factors);
                    continue;
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int row = row0 + lane / 4 + 8 * i;
                    if (row >= GROUP) continue;
                    float* to = partials + partial_of(blockIdx.x, kv_head * GROUP + row, leaf - seen);
                    int column = part * COLS + pair * 16 + lane % 4 * 2;
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        *reinterpret_cast<float2*>(to + column + 8 * h) =
                            make_float2(acc[h][2 * i], acc[h][2 * i + 1]);
                    if (part == 0 && pair == 0 && lane % 4 == 0)
                        *reinterpret_cast<float2*>(to + HEAD_DIM) = make_float2(largest[i], sum[2 * i]);
                }
            }
        }
    }
    if (split) return;
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int c = 0; c < MY_COLS; c++) {
            int pair = c * WARPS + warp;
            if (pair >= COLS / 16) continue;
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_tile(out, s, kv_head, row0, part * COLS + pair * 16 + 8 * h, total[part][c][h], state);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_decode(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                     float scale) {
    let_next_start();
    decode<false>(q, cache, out, sequences, blocks, nullptr, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_split(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                    float* partials, float scale) {
    let_next_start();
    decode<true>(q, cache, out, sequences, blocks, partials, scale);
}

// One block per sequence and head: folds what `attention_split` left, a thread per column.
constexpr int FOLD_THREADS = (HEAD_DIM + 31) / 32 * 32;

extern "C" __global__ void __launch_bounds__(FOLD_THREADS)
    attention_fold(const float* partials, ELEMENT* out, const Sequence* sequences) {
    constexpr int RUN = 128;
    __shared__ float before[RUN], of[RUN], sums[RUN];
    let_next_start();
    wait_for_previous();
    Sequence s = sequences[blockIdx.x];
    if (s.q_len != 1) return;
    int first = first_seen(s.kv_len - 1) / LEAF, end = (s.kv_len + LEAF - 1) / LEAF;
    if (!splits(s, end - first)) return;
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
    if (column < HEAD_DIM)
        out[(u64(s.q_start) * HEADS + blockIdx.y) * HEAD_DIM + column] = from_f32<ELEMENT>(__fdiv_rn(total, sum));
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

// One block per tile of 64 rows (query, head of the group) of a sequence under a key-value head; 16 rows per warp.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_prefill(const ELEMENT* q, const u8* cache, ELEMENT* out, const Sequence* sequences, const int* blocks,
                      int n_sequences, float scale) {
    let_next_start();
    wait_for_previous();
    int sequence, tile, kv_head = blockIdx.y;
    // The last tiles of a sequence see most, so they begin first.
    if (!find_tile(sequences, n_sequences, gridDim.x - 1 - blockIdx.x, sequence, tile)) return;
    Sequence s = sequences[sequence];
    u32 ring = shared_address(shared_memory);
    u32 q_at = ring + STAGES * STAGE_BYTES;
    int tile0 = tile * PREFILL_ROWS, row0 = tile0 + warp_id() * 16;
    Rows rows = rows_of(s, row0);
    int last_row = min(tile0 + PREFILL_ROWS, s.q_len * GROUP) - 1;
    int first = first_seen(position_of(s, tile0)) / LEAF;
    int end = position_of(s, last_row) / LEAF + 1;
    // What the warp's rows see together; none where it is past the end.
    int warp_end = row0 > last_row ? 0 : position_of(s, min(row0 + 15, last_row)) / LEAF + 1;
    int warp_first = row0 > last_row ? end : first_seen(position_of(s, row0)) / LEAF;

    Walk walk = {head_of(cache, kv_head), blocks + s.blocks_start, s.kv_len, ring};
    load_q<PREFILL_ROWS>(q_at, q, s, kv_head, tile0);
    q_at += warp_id() * 16 * Q_PITCH;
    auto load = [&](int slot, int leaf, int part) {
        leaf += part / (2 * PARTS);
        if (leaf < end) walk.load(slot, leaf * LEAF, part % (2 * PARTS));
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load(i, first, i);

    State state = {{ABSENT, ABSENT}, {0.0f, 0.0f}};
    float total[PARTS][COLS / 8][4] = {};
    int slot = 0;
    for (int leaf = first; leaf < end; leaf++) {
        auto next = [&](int part) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            load(slot == 0 ? STAGES - 1 : slot - 1, leaf, part + STAGES - 1);
            u32 at = ring + slot * STAGE_BYTES;
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            return at;
        };
        bool works = warp_first <= leaf && leaf < warp_end;
        float sc[LEAF / 8][4] = {};
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            u32 keys = next(part);
            if (works) scores<LEAF / 16>(sc, q_at + part * COLS * 2, keys);
        }
        u32 p[LEAF / 16][4];
        Factors factors;
        if (works) {
            float largest[2], sum[4] = {};
            mask<LEAF / 16>(sc, largest, rows, leaf * LEAF, scale);
            weigh<LEAF / 16>(p, sc, largest);
#pragma unroll
            for (int k = 0; k < LEAF / 16; k++) sum_step(sum, p[k]);
            factors = fold(state, largest, sum);
        }
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            u32 values = next(PARTS + part);
            if (!works) continue;
            float acc[COLS / 8][4] = {};
#pragma unroll
            for (int k = 0; k < LEAF / 16; k++)
#pragma unroll
                for (int pair = 0; pair < COLS / 16; pair++)
                    value_step(acc[2 * pair], acc[2 * pair + 1], p[k], values + k * 16 * PITCH + pair * 32);
#pragma unroll
            for (int t = 0; t < COLS / 8; t++) fold_tile(total[part][t], acc[t], factors);
        }
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int t = 0; t < COLS / 8; t++)
            store_tile(out, s, kv_head, row0, part * COLS + t * 8, total[part][t], state);
}
