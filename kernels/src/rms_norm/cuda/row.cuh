// A row of a norm in the registers of a block, and the block's sums. Order of summation: rms_norm/cuda/mod.rs.
// Macros: ELEMENT; WEIGHT of the norm's weights; H elements per row; WEIGHT_ROWS rows of weights, which the rows take by
// turns; THREADS of the block; VEC, a power of two that divides H, at most 8.
#pragma once
#include "rms_norm.cuh"

namespace lathe {

constexpr int CHUNK = 8;
constexpr int PER_THREAD = (H + CHUNK * THREADS - 1) / (CHUNK * THREADS);

// Eight elements from `start` on, zeros past the row's end.
template <class T>
__device__ __forceinline__ void load(const T* row, int start, T (&x)[CHUNK]) {
    constexpr int N = VEC * sizeof(T) > 16 ? 16 / sizeof(T) : VEC;
#pragma unroll
    for (int j = 0; j < CHUNK; j += N) {
        Vec<T, N> v = {};
        if (start + j < H) v = *reinterpret_cast<const Vec<T, N>*>(row + start + j);
#pragma unroll
        for (int i = 0; i < N; i++) x[j + i] = v.at[i];
    }
}

template <class T>
__device__ __forceinline__ void store(T* row, int start, const T (&x)[CHUNK]) {
    constexpr int N = VEC * sizeof(T) > 16 ? 16 / sizeof(T) : VEC;
#pragma unroll
    for (int j = 0; j < CHUNK; j += N) {
        Vec<T, N> v;
#pragma unroll
        for (int i = 0; i < N; i++) v.at[i] = x[j + i];
        if (start + j < H) *reinterpret_cast<Vec<T, N>*>(row + start + j) = v;
    }
}

// The block's sum, the same bits in every thread. Sums of one kernel have different numbers.
template <int NUMBER>
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < THREADS / 32 ? partial[lane] : 0.0f);
}

__device__ __forceinline__ int chunk_start(int c) { return (c * THREADS + int(threadIdx.x)) * CHUNK; }

// This block's row of the weights.
__device__ __forceinline__ void load_weight(const WEIGHT* weight, WEIGHT (&w)[PER_THREAD][CHUNK]) {
    const WEIGHT* row = weight + int(blockIdx.x % WEIGHT_ROWS) * H;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) load(row, chunk_start(c), w[c]);
}

}  // namespace lathe
