// y[m, COLUMNS] = epilogue(x[m, K] * W^T) in f32 without tensor cores, W row-major. Contract: mod.rs. A thread sums one
// feature for PER_THREAD tokens, by fused multiply-adds over ascending k.
// Macros beside gemm.cuh's: K, SLICES, PER_THREAD; EXPERTS where the rows are those of one of many weights, with its
// header's macros.
#include "gemm.cuh"
#if EXPERTS
#include "expert_gemm.cuh"
#endif

namespace lathe {

enum : int { TILE_FEATURES = 64, GROUPS = 4, THREADS = TILE_FEATURES * GROUPS, TILE_TOKENS = GROUPS * PER_THREAD };
enum : int { DEPTH = 32, SLICE_K = K / SLICES, STRIDE = TILE_FEATURES + 4 };

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    gemm(const float* x, const float* weight, const float* bias, const OUT* residual, OUT* y, int m
#if EXPERTS
         ,
         const int* order, const int* starts
#endif
    ) {
    // One float of padding: the threads of a warp read one column of different rows.
    __shared__ float w[TILE_FEATURES][DEPTH + 1];
    __shared__ float rows[TILE_TOKENS][DEPTH];
    __shared__ __align__(16) float sums[TILE_TOKENS * STRIDE];
    let_next_start();
    wait_for_previous();
#if EXPERTS
    Group group = group_of_block<TILE_TOKENS>(starts, blockIdx.y);
    if (group.expert == EXPERTS) return;
    Tile tile = {group.token, int(blockIdx.x) * TILE_FEATURES};
    Listed out = {y, order + group.first};
    weight += u64(group.expert) * ROWS * K;
    if (BIAS) bias += group.expert * ROWS;
    m = group.count;
    auto row_of = [&](int token) { return out.order[token] / SHARE; };
#else
    Tile tile = tile_of_block<TILE_FEATURES, TILE_TOKENS, 16>(blockIdx.x, m);
    Dense out = {y};
    auto row_of = [](int token) { return token; };
#endif
    int feature = threadIdx.x % TILE_FEATURES, first = threadIdx.x / TILE_FEATURES * PER_THREAD;

    float total[PER_THREAD];
    // Adding to -0 keeps every bit of the first slice, 0 would turn its -0 into 0.
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) total[j] = -0.0f;
    for (int slice = 0; slice < SLICES; ++slice) {
        float sum[PER_THREAD] = {};
        int end = (slice + 1) * SLICE_K;
        for (int k = slice * SLICE_K; k < end; k += DEPTH) {
            for (int i = threadIdx.x; i < TILE_FEATURES * DEPTH; i += THREADS) {
                int row = tile.feature + i / DEPTH, column = k + i % DEPTH;
                w[i / DEPTH][i % DEPTH] = row < ROWS && column < K ? weight[u64(row) * K + column] : 0.0f;
            }
            for (int i = threadIdx.x; i < TILE_TOKENS * DEPTH; i += THREADS) {
                int row = tile.token + i / DEPTH, column = k + i % DEPTH;
                rows[i / DEPTH][i % DEPTH] = row < m && column < K ? x[u64(row_of(row)) * K + column] : 0.0f;
            }
            __syncthreads();
            int depth = end - k < DEPTH ? end - k : DEPTH;
            for (int i = 0; i < depth; ++i)
#pragma unroll
                for (int j = 0; j < PER_THREAD; ++j) sum[j] = __fmaf_rn(rows[first + j][i], w[feature][i], sum[j]);
            __syncthreads();
        }
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) total[j] = add(total[j], sum[j]);
    }
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) sums[(first + j) * STRIDE + feature] = total[j];
    __syncthreads();
    finish<EPILOGUE, TILE_FEATURES, TILE_TOKENS, STRIDE, THREADS>(sums, tile.token, tile.feature, m, bias, residual,
                                                                  out);
}

}  // namespace lathe
