// Rotation and slots of the cache, whoever holds the projections.
// Macros: KV_ELEMENT; HEADS, KV_HEADS, HEAD_DIM; BLOCK positions of BLOCK_BYTES bytes over all layers.
#pragma once
#include "lathe.cuh"
#include "step.cuh"

namespace lathe {

// Rotates (y, z) pair by pair, unfused; cosines and sines from `cosines` and `sines` on.
template <int N>
__device__ __forceinline__ void rotate(float (&y)[N], float (&z)[N], const float* cosines, const float* sines) {
    auto c = *reinterpret_cast<const Vec<float, N>*>(cosines);
    auto s = *reinterpret_cast<const Vec<float, N>*>(sines);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float a = y[i], b = z[i];
        y[i] = __fsub_rn(mul(a, c.at[i]), mul(b, s.at[i]));
        z[i] = add(mul(b, c.at[i]), mul(a, s.at[i]));
    }
}

template <class T, int N>
__device__ __forceinline__ void store_run(T* to, const float (&x)[N]) {
    Vec<T, N> y;
#pragma unroll
    for (int i = 0; i < N; i++) y.at[i] = from_f32<T>(x[i]);
    *reinterpret_cast<Vec<T, N>*>(to) = y;
}

// Stores elements `first..` and `second..` of a head of a row, a key's or a value's, `head` counted with the queries'.
// Rows of padding have no slot.
template <int N>
__device__ __forceinline__ void append(u8* cache, int row, int head, int first, int second, const float (&y)[N],
                                       const float (&z)[N], const int* row_sequence, const Sequence* sequences,
                                       const int* blocks) {
    int index = row_sequence[row];
    if (index < 0) return;
    Sequence sequence = sequences[index];
    int position = sequence.kv_len - sequence.q_len + row - sequence.q_start;
    u64 block = blocks[sequence.blocks_start + position / BLOCK];
    // K's heads, then V's.
    KV_ELEMENT* to = reinterpret_cast<KV_ELEMENT*>(cache + block * BLOCK_BYTES) +
                     ((head - HEADS) * BLOCK + position % BLOCK) * HEAD_DIM;
    store_run(to + first, y);
    store_run(to + second, z);
}

}  // namespace lathe
