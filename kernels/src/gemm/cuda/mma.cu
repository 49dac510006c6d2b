// y[m, COLUMNS] = epilogue(x[m, K] * W^T) on tensor cores: features are the rows of mma.m16n8k16, tokens its columns.
// Contract: mod.rs. One kernel for all row counts; what differs is the tile and whether a tile's K slices are summed by
// different warps at once (PARALLEL == SLICES) or by the same warps in turn (PARALLEL == 1).
// Macros beside gemm.cuh's: ELEMENT, K, SLICES, PARALLEL, TILE_FEATURES, TILE_TOKENS, WARP_FEATURES, WARP_TOKENS,
// DEPTH (of a stage), STAGES, PASS_TOKENS (whose sums shared memory holds at once), GROUP (see tile_of_block), MIN_BLOCKS
// (per multiprocessor); HELD_ROWS (rows of x that a block norms and holds whole, or 0) with NORM_THREADS of the norm's
// own kernel; ROPE where a tile is rotated and stored as rope_append does, EXPERTS where its rows are those of one of many
// weights, each with its header's macros.
#include "gemm.cuh"
#if HELD_ROWS
#include "rms_norm.cuh"
#endif
#if ROPE
#include "rope_append.cuh"
#endif
#if EXPERTS
#include "expert_gemm.cuh"
#endif

namespace lathe {

enum : int { WARPS_F = TILE_FEATURES / WARP_FEATURES, WARPS_T = TILE_TOKENS / WARP_TOKENS };
enum : int { THREADS = 32 * PARALLEL * WARPS_F * WARPS_T };
enum : int { FRAGMENTS_F = WARP_FEATURES / 16, FRAGMENTS_T = WARP_TOKENS / 8 };
enum : int { SLICE_K = K / SLICES, SLICE_STEPS = (SLICE_K + DEPTH - 1) / DEPTH };
enum : int { STEPS = SLICE_STEPS * (SLICES / PARALLEL) };
// Columns of one pair of fragments along K.
enum : int { PAIR = 32 };
// Depth of the last stage, where stages do not divide K.
enum : int { LAST_DEPTH = K % DEPTH == 0 ? DEPTH : K % DEPTH };
static_assert(PARALLEL == 1 || PARALLEL == SLICES, "slices are folded left");
static_assert(SLICES == 1 || SLICE_K % DEPTH == 0, "a stage lies in one slice");
static_assert(TILE_TOKENS % PASS_TOKENS == 0 && PASS_TOKENS % WARP_TOKENS == 0, "a warp's sums leave in one pass");
static_assert(STAGES >= 2 && DEPTH % PAIR == 0 && TILE_FEATURES % 16 == 0 && TILE_TOKENS % 8 == 0);

constexpr bool power_of_two(int x) { return (x & (x - 1)) == 0; }
// A stage is copied in chunks of 16 bytes, chunk c by thread c % THREADS. With powers of two everywhere, where chunk
// i * THREADS + t comes from is a constant for i plus a place for t: a thread keeps one pointer.
static_assert(power_of_two(THREADS) && power_of_two(DEPTH) && power_of_two(TILE_FEATURES) && power_of_two(TILE_TOKENS));

// W in fragment order: a warp's 16 x 16 tile is 512 bytes in a row, a row of tiles is one stream along K.
struct Weights {
    enum : int { TILES = TILE_FEATURES / 16, DEEP = DEPTH / 16, RUN = DEEP * 32 };
    enum : int { ALL_TILES = (ROWS + 15) / 16, ALL_DEEP = (K + 15) / 16 };
    enum : int { CHUNKS = PARALLEL * TILES * RUN, STAGE_BYTES = CHUNKS * 16 };
    const u8* from;
    int tile;

    static __device__ constexpr int tile_of(int chunk) { return chunk / RUN % TILES; }
    // Where a tile of the block lies, in tiles from its first: with rotation the second half is half a head on.
    static __device__ constexpr int place(int tile) {
#if ROPE
        return tile % (TILES / 2) + tile / (TILES / 2) * (HEAD_DIM / 32);
#else
        return tile;
#endif
    }
    static __device__ constexpr u64 offset(int chunk) {
        return u64(place(tile_of(chunk))) * ALL_DEEP * 512 + chunk / RUN / TILES * (SLICE_K / 16 * 512) + chunk % RUN * 16;
    }

    __device__ __forceinline__ Weights(const u8* base, int feature)
        : from(base + u64(feature / 16) * ALL_DEEP * 512 + offset(threadIdx.x)),
          tile(feature / 16 + tile_of(threadIdx.x)) {}

    // Issues the copies of K columns `k..k + DEPTH` of each slice.
    __device__ __forceinline__ void copy(u32 stage, int k) const {
        const u8* source = from + u64(k / 16) * 512;
#pragma unroll
        for (int i = 0; i < CHUNKS; i += THREADS) {
            if (CHUNKS % THREADS != 0 && i + threadIdx.x >= CHUNKS) break;
            bool valid = ALL_TILES % TILES == 0 || tile + tile_of(i) < ALL_TILES;
            if (K % DEPTH != 0) valid = valid && k / 16 + int(i + threadIdx.x) % RUN / 32 < ALL_DEEP;
            cp_async16(stage + (i + threadIdx.x) * 16, source + offset(i), valid);
        }
    }

    // The A fragment of one tile of a stage; other weight formats decode here.
    static __device__ __forceinline__ void fragment(u32 (&a)[4], u32 stage, int slice, int tile, int deep, int lane) {
        load_shared16(a, stage + ((slice * TILES + tile) * DEEP + deep) * 512 + lane * 16);
    }
};

#if HELD_ROWS
// x whole and normed: HELD_ROWS rows behind the ring, swizzled like a stage's, then the sums of squares. What a thread
// copies it also norms.
struct Rows {
    enum : int { WIDE = K / 8, WARPS = THREADS / 32, ROW_WARPS = NORM_THREADS / 32, STAGE_BYTES = 0 };
    // Chunks of a row that a thread takes: a warp stands for every WARPS-th of the norm's own kernel.
    enum : int { TURNS = (ROW_WARPS + WARPS - 1) / WARPS, RUNS = (WIDE + NORM_THREADS - 1) / NORM_THREADS };
    enum : int { TOGETHER = HELD_ROWS < 8 ? HELD_ROWS : 8 };
    static_assert(K % PAIR == 0 && power_of_two(HELD_ROWS) && HELD_ROWS <= TILE_TOKENS, "swizzling stays in a row");

    __device__ __forceinline__ Rows(const ELEMENT*, int, int) {}
    __device__ __forceinline__ void copy(u32, int) const {}

    static __device__ __forceinline__ u32 place(int row, int wide) {
        int turn = WIDE % 8 == 4 ? row / 2 % 4 : row % 8;
        return (row * WIDE + (wide ^ turn)) * 16;
    }
    static __device__ __forceinline__ int warp_of(int turn) { return turn * WARPS + threadIdx.x / 32; }
    static __device__ __forceinline__ int chunk(int turn, int run) {
        return run * NORM_THREADS + warp_of(turn) * 32 + threadIdx.x % 32;
    }
    static __device__ __forceinline__ bool exists(int turn, int run) {
        return warp_of(turn) < ROW_WARPS && chunk(turn, run) < WIDE;
    }
    template <class F>
    static __device__ __forceinline__ void for_each_chunk(F f) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn)
#pragma unroll
            for (int run = 0; run < RUNS; ++run)
                if (exists(turn, run)) f(turn, run, chunk(turn, run));
    }

    using Run = Vec<ELEMENT, 8>;
    using Share = Run[TURNS][RUNS];
    static __device__ __forceinline__ void load_weight(Share& share, const ELEMENT* weight) {
        for_each_chunk([&](int turn, int run, int chunk) {
            share[turn][run] = *reinterpret_cast<const Run*>(weight + chunk * 8);
        });
    }

    // Rows past the last become zeros.
    static __device__ __forceinline__ void hold(u32 held, const ELEMENT* x, int left) {
#pragma unroll 1
        for (int row = 0; row < HELD_ROWS; ++row)
            for_each_chunk([&](int, int, int chunk) {
                cp_async16(held + place(row, chunk), x + u64(row) * K + chunk * 8, row < left);
            });
    }

    static __device__ __forceinline__ void norm(u8* held, const Share& weight, float eps) {
        float* partial = reinterpret_cast<float*>(held + HELD_ROWS * K * 2);
        int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int first = 0; first < HELD_ROWS; first += TOGETHER) {
#pragma unroll 1
            for (int turn = 0; turn < TURNS; ++turn) {
                float sums[TOGETHER] = {};
#pragma unroll
                for (int run = 0; run < RUNS; ++run) {
                    if (!exists(turn, run)) continue;
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i) {
                        Run x = *reinterpret_cast<const Run*>(held + place(first + i, chunk(turn, run)));
                        sums[i] = add_squares(sums[i], x.at);
                    }
                }
                warp_sums(sums);
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i)
                    if (lane == 0 && warp_of(turn) < ROW_WARPS) partial[(first + i) * ROW_WARPS + warp_of(turn)] = sums[i];
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int first = 0; first < HELD_ROWS; first += TOGETHER) {
            float inverse[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i)
                inverse[i] = lane < ROW_WARPS ? partial[(first + i) * ROW_WARPS + lane] : 0.0f;
            warp_sums(inverse);
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) inverse[i] = inverse_rms(inverse[i], K, eps);
            for_each_chunk([&](int turn, int run, int chunk) {
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i) {
                    Run* at = reinterpret_cast<Run*>(held + place(first + i, chunk));
                    Run y = *at;
#pragma unroll
                    for (int j = 0; j < 8; ++j) y.at[j] = normed(y.at[j], inverse[i], weight[turn][run].at[j]);
                    *at = y;
                }
            });
        }
    }

    // As below; tokens past the held ones read some held row, their sums are dropped.
    static __device__ __forceinline__ void fragments(u32 (&b)[4], u32 held, int slice, int column, int first, int t,
                                                     int pair, int lane) {
        int row = (first + t * 8 + lane % 8) % HELD_ROWS;
        ldmatrix4(b, held + place(row, (slice * SLICE_K + column) / 8 + pair * 4 + lane / 8));
    }
};
#else
// x, row-major: a stage holds TILE_TOKENS rows of DEPTH elements per slice, 16-byte chunks swizzled by row so that eight
// rows of one chunk lie in different banks.
struct Rows {
    enum : int { WIDE = DEPTH / 8, CHUNKS = PARALLEL * TILE_TOKENS * WIDE, STAGE_BYTES = CHUNKS * 16 };
#if EXPERTS
    // Rows lie anywhere: one pointer for each chunk that this thread copies, null past the last row.
    enum : int { COPIES = (CHUNKS + THREADS - 1) / THREADS };
    const ELEMENT* base;
    const ELEMENT* from[COPIES];
#else
    const ELEMENT* from;
    int left;  // tokens from this thread's first row to the end
#endif

    static __device__ constexpr int token_of(int chunk) { return chunk / WIDE % TILE_TOKENS; }
    static __device__ constexpr u64 offset(int chunk) {
        return u64(token_of(chunk)) * K + chunk / WIDE / TILE_TOKENS * SLICE_K + chunk % WIDE * 8;
    }
    static __device__ __forceinline__ u32 place(int row, int wide) {
        int turn = WIDE == 4 ? row / 2 % 4 : row % 8;
        return (row * WIDE + (wide ^ turn)) * 16;
    }

#if EXPERTS
    __device__ __forceinline__ Rows(const ELEMENT* x, const int* order, int token, int m) : base(x) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            int chunk = i * THREADS + threadIdx.x, at = token + token_of(chunk);
            bool valid = (CHUNKS % THREADS == 0 || chunk < CHUNKS) && at < m;
            int column = chunk / WIDE / TILE_TOKENS * SLICE_K + chunk % WIDE * 8;
            from[i] = valid ? x + u64(order[at] / SHARE) * K + column : nullptr;
        }
    }
    __device__ __forceinline__ bool has(int i) const { return from[i / THREADS] != nullptr; }
    __device__ __forceinline__ const ELEMENT* source(int i, int k) const { return has(i) ? from[i / THREADS] + k : base; }
#else
    __device__ __forceinline__ Rows(const ELEMENT* base, int token, int m)
        : from(base + u64(token) * K + offset(threadIdx.x)), left(m - token - token_of(threadIdx.x)) {}
    __device__ __forceinline__ bool has(int i) const { return token_of(i) < left; }
    __device__ __forceinline__ const ELEMENT* source(int i, int k) const { return from + k + offset(i); }
#endif

    __device__ __forceinline__ void copy(u32 stage, int k) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; i += THREADS) {
            int chunk = i + threadIdx.x;
            if (CHUNKS % THREADS != 0 && chunk >= CHUNKS) break;
            u32 to = stage + place(chunk / WIDE, chunk % WIDE);
            bool valid = has(i);
            int column = k + chunk % WIDE * 8;
            const ELEMENT* at = source(i, k);
            if constexpr (K % 8 == 0) {
                if (K % DEPTH != 0) valid = valid && column < K;
                cp_async16(to, at, valid);
            } else {
                u32 words[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    u32 lo = valid && column + 2 * j < K ? at[2 * j].bits : 0;
                    u32 hi = valid && column + 2 * j + 1 < K ? at[2 * j + 1].bits : 0;
                    words[j] = lo | hi << 16;
                }
                store_shared16(to, words);
            }
        }
    }

    // B fragments of 8 tokens and 32 columns: two of them.
    static __device__ __forceinline__ void fragments(u32 (&b)[4], u32 stage, int slice, int, int first, int t,
                                                     int pair, int lane) {
        ldmatrix4(b, stage + place(slice * TILE_TOKENS + first + lane % 8, pair * 4 + lane / 8) + t * (8 * WIDE * 16));
    }
};
#endif

using Sums = float[FRAGMENTS_F][FRAGMENTS_T][4];

template <class F>
__device__ __forceinline__ void for_each_sum(F f) {
#pragma unroll
    for (int i = 0; i < FRAGMENTS_F; ++i)
#pragma unroll
        for (int t = 0; t < FRAGMENTS_T; ++t)
#pragma unroll
            for (int j = 0; j < 4; ++j) f(i, t, j);
}
__device__ __forceinline__ void fill(Sums& sums, float x) {
    for_each_sum([&](int f, int t, int j) { sums[f][t][j] = x; });
}

struct Warp {
    int lane, slice, feature, token;
};

__device__ __forceinline__ void multiply(Sums& sums, const Warp& w, u32 weights, u32 rows, int column, int pairs) {
#pragma unroll
    for (int pair = 0; pair < DEPTH / PAIR; ++pair) {
        if (K % DEPTH != 0 && pair >= pairs) break;
        u32 b[FRAGMENTS_T][4];
#pragma unroll
        for (int t = 0; t < FRAGMENTS_T; ++t) Rows::fragments(b[t], rows, w.slice, column, w.token, t, pair, w.lane);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int f = 0; f < FRAGMENTS_F; ++f) {
                u32 a[4];
                Weights::fragment(a, weights, w.slice, w.feature / 16 + f, pair * 2 + half, w.lane);
#pragma unroll
                for (int t = 0; t < FRAGMENTS_T; ++t) {
                    u32 two[2] = {b[t][2 * half], b[t][2 * half + 1]};
                    mma<ELEMENT>(sums[f][t], a, two);
                }
            }
        }
    }
}

#if ROPE
// Where rotated queries, keys and values go, and what says so.
struct Heads {
    OUT* q;
    const int* positions;
    const float* table;
    u8* cache;
    const int* row_sequence;
    const Sequence* sequences;
    const int* blocks;
};

// A tile of whole pairs of a head, the second elements behind the first; see gemm.cuh.
template <class, int TILE, int TOKENS, int STRIDE, int>
__device__ __forceinline__ void finish(const float* sums, int token0, int first, int m, const float* bias, const OUT*,
                                       const Heads& to) {
    constexpr int WIDTH = TILE / 2, VECS = WIDTH / 4, HALF = HEAD_DIM / 2;
    static_assert(ROWS % HEAD_DIM == 0 && HALF % WIDTH == 0 && WIDTH % 16 == 0, "a tile lies in one head");
    int head = first / HEAD_DIM;
    for (int i = threadIdx.x; i < TOKENS * VECS; i += THREADS) {
        int token = i / VECS, column = i % VECS * 4, row = token0 + token, at = first % HEAD_DIM + column;
        if (row >= m) continue;
        float y[4], z[4];
        sums4(y, sums + token * STRIDE, column, first, bias);
        sums4(z, sums + token * STRIDE, WIDTH + column, first + HALF - WIDTH, bias);
        if (head < HEADS + KV_HEADS) {
            const float* turns = to.table + u64(to.positions[row]) * HEAD_DIM + at;
            rotate(y, z, turns, turns + HALF);
        }
        if (head < HEADS) {
            OUT* q = to.q + (u64(row) * HEADS + head) * HEAD_DIM + at;
            store4(q, y);
            store4(q + HALF, z);
        } else {
            append(to.cache, row, head, at, at + HALF, y, z, to.row_sequence, to.sequences, to.blocks);
        }
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    gemm(const ELEMENT* x, const u8* weight, const float* bias, const OUT* residual, OUT* y, int m
#if HELD_ROWS
         ,
         const ELEMENT* norm_weight, float eps
#endif
#if ROPE
         ,
         const int* positions, const float* table, u8* cache, const int* row_sequence, const Sequence* sequences,
         const int* blocks
#endif
#if EXPERTS
         ,
         const int* order, const int* starts
#endif
    ) {
    extern __shared__ __align__(128) u8 shared[];
    constexpr int STAGE_BYTES = Weights::STAGE_BYTES + Rows::STAGE_BYTES;
    // Four floats of padding: the lanes of a fragment's store hit different banks.
    constexpr int STRIDE = TILE_FEATURES + 4;

    let_next_start();
#if EXPERTS
    // Which weight it is depends on what the launches before have made.
    wait_for_previous();
    Group group = group_of_block<TILE_TOKENS>(starts, blockIdx.y);
    if (group.expert == EXPERTS) return;
    Tile tile = {group.token, int(blockIdx.x) * TILE_FEATURES};
    Listed out = {y, order + group.first};
    weight += u64(group.expert) * (Weights::ALL_TILES * Weights::ALL_DEEP * 512);
    if (BIAS) bias += group.expert * ROWS;
    m = group.count;
    Rows rows(x, out.order, tile.token, m);
#else
    Tile tile = tile_of_block<TILE_FEATURES, TILE_TOKENS, GROUP>(blockIdx.x, m);
#if ROPE
    tile.feature = tile.feature / HEAD_DIM * HEAD_DIM + tile.feature % HEAD_DIM / 2;
    Heads out = {y, positions, table, cache, row_sequence, sequences, blocks};
#else
    Dense out = {y};
#endif
    Rows rows(x, tile.token, m);
#endif
    Weights weights(weight, tile.feature);
    Warp w;
    w.lane = threadIdx.x % 32;
    int warp = threadIdx.x / 32;
    w.feature = warp % WARPS_F * WARP_FEATURES;
    w.token = warp / WARPS_F % WARPS_T * WARP_TOKENS;
    w.slice = warp / (WARPS_F * WARPS_T);
    u32 ring = shared_address(shared);

    // Weights are constant: they are on their way before the launch that makes x has ended.
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i)
        if (i < STEPS) weights.copy(ring + i * STAGE_BYTES, i * DEPTH);
#if HELD_ROWS
    Rows::Share norm;
    Rows::load_weight(norm, norm_weight);
#endif
#if !EXPERTS
    wait_for_previous();
#endif
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
        if (i < STEPS) rows.copy(ring + i * STAGE_BYTES + Weights::STAGE_BYTES, i * DEPTH);
        cp_async_commit();
    }

#if HELD_ROWS
    u8* held = shared + STAGES * STAGE_BYTES;
    Rows::hold(shared_address(held), x + u64(tile.token) * K, m - tile.token);
    cp_async_commit();
    cp_async_wait<0>();
    Rows::norm(held, norm, eps);
#endif

    Sums sums, total;
    // Adding to -0 keeps every bit of the first slice, 0 would turn its -0 into 0.
    fill(total, -0.0f);
    u32 read = 0, write = (STAGES - 1) * STAGE_BYTES;
    int i = 0;
#pragma unroll 1
    for (int round = 0; round < SLICES / PARALLEL; ++round) {
        fill(sums, 0.0f);
#pragma unroll 1
        for (int end = i + SLICE_STEPS; i < end; ++i) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            int next = i + STAGES - 1;
            if (next < STEPS) {
                weights.copy(ring + write, next * DEPTH);
                rows.copy(ring + write + Weights::STAGE_BYTES, next * DEPTH);
            }
            cp_async_commit();
            write = write == (STAGES - 1) * STAGE_BYTES ? 0 : write + STAGE_BYTES;
            int pairs = i + 1 < STEPS ? DEPTH / PAIR : (LAST_DEPTH + PAIR - 1) / PAIR;
#if HELD_ROWS
            multiply(sums, w, ring + read, ring + STAGES * STAGE_BYTES, i * DEPTH, pairs);
#else
            multiply(sums, w, ring + read, ring + read + Weights::STAGE_BYTES, i * DEPTH, pairs);
#endif
            read = read == (STAGES - 1) * STAGE_BYTES ? 0 : read + STAGE_BYTES;
        }
        for_each_sum([&](int f, int t, int j) { total[f][t][j] = add(total[f][t][j], sums[f][t][j]); });
    }

    cp_async_wait<0>();
    __syncthreads();
    float* tile_sums = reinterpret_cast<float*>(shared);
#pragma unroll 1
    for (int pass = 0; pass < TILE_TOKENS; pass += PASS_TOKENS) {
        bool mine = PASS_TOKENS == TILE_TOKENS || w.token / PASS_TOKENS * PASS_TOKENS == pass;
#pragma unroll
        for (int slice = 0; slice < PARALLEL; ++slice) {
            if (mine && (PARALLEL == 1 || w.slice == slice)) {
                float* corner = tile_sums + (w.token - pass + w.lane % 4 * 2) * STRIDE + w.feature + w.lane / 4;
                for_each_sum([&](int f, int t, int j) {
                    float* at = corner + (t * 8 + j % 2) * STRIDE + f * 16 + j / 2 * 8;
                    *at = slice == 0 ? total[f][t][j] : add(*at, total[f][t][j]);
                });
            }
            __syncthreads();
        }
        finish<EPILOGUE, TILE_FEATURES, PASS_TOKENS, STRIDE, THREADS>(tile_sums, tile.token + pass, tile.feature, m, bias,
                                                                      residual, out);
        if (PASS_TOKENS < TILE_TOKENS) __syncthreads();
    }
}

}  // namespace lathe
