// y = x / sqrt(mean(x^2) + eps) * w per row, alone or after a residual add; see mod.rs for the order of summation.
// Macros: ELEMENT; H elements per row; THREADS of the block; VEC, a power of two that divides H, at most 8.
#include "rms_norm.cuh"
using namespace lathe;

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

// The block's sum, the same bits in every thread.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[32];
    int lane = threadIdx.x % 32;
    x = warp_sum(x);
    if (lane == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < THREADS / 32 ? partial[lane] : 0.0f);
}

__device__ __forceinline__ int chunk_start(int c) { return (c * THREADS + int(threadIdx.x)) * CHUNK; }

__device__ __forceinline__ void load_weight(const ELEMENT* weight, ELEMENT (&w)[PER_THREAD][CHUNK]) {
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) load(weight, chunk_start(c), w[c]);
}

__device__ __forceinline__ void norm(const ELEMENT (&x)[PER_THREAD][CHUNK], const ELEMENT (&w)[PER_THREAD][CHUNK],
                                     float eps, ELEMENT* out) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) sum = add_squares(sum, x[c]);
    float inverse = inverse_rms(block_sum(sum), H, eps);
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) {
        ELEMENT y[CHUNK];
#pragma unroll
        for (int i = 0; i < CHUNK; i++) y[i] = normed(x[c][i], inverse, w[c][i]);
        store(out, chunk_start(c), y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const ELEMENT* x, const ELEMENT* weight, ELEMENT* out, float eps) {
    let_next_start();
    ELEMENT w[PER_THREAD][CHUNK], v[PER_THREAD][CHUNK];
    load_weight(weight, w);
    wait_for_previous();
    u64 row = u64(blockIdx.x) * H;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) load(x + row, chunk_start(c), v[c]);
    norm(v, w, eps, out + row);
}

// `sum` may be the residual's own bytes: a thread writes only what it has read itself.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rms_norm(const float* delta, const ELEMENT* residual, const ELEMENT* weight, ELEMENT* sum, ELEMENT* out,
                 float eps) {
    let_next_start();
    ELEMENT w[PER_THREAD][CHUNK], v[PER_THREAD][CHUNK];
    load_weight(weight, w);
    wait_for_previous();
    u64 row = u64(blockIdx.x) * H;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) {
        float d[CHUNK];
        load(residual + row, chunk_start(c), v[c]);
        load(delta + row, chunk_start(c), d);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v[c][i] = from_f32<ELEMENT>(add(to_f32(v[c][i]), d[i]));
        store(sum + row, chunk_start(c), v[c]);
    }
    norm(v, w, eps, out + row);
}
