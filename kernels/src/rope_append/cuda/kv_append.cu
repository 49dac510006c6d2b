// k and v rounded into the paged cache: one token per block in x, its heads over y.
// Macros: K, V; KV_ELEMENT; HEADS, 0, as no queries stand before the keys; KV_HEADS, HEAD_DIM; BLOCK positions of BLOCK_BYTES
// bytes over all layers; VEC, 1, 2 or 4: 2 VEC divides HEAD_DIM; THREADS.
#include "rope_append.cuh"
using namespace lathe;

constexpr int SLOTS = HEAD_DIM / (2 * VEC);

template <class T>
__device__ __forceinline__ void read(const T* x, float (&y)[VEC]) {
    auto a = *reinterpret_cast<const Vec<T, VEC>*>(x);
#pragma unroll
    for (int i = 0; i < VEC; i++) y[i] = to_f32(a.at[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_append(const K* k, const V* v, u8* cache, const int* row_sequence, const Sequence* sequences,
              const int* blocks) {
    let_next_start();
    int unit = blockIdx.y * THREADS + threadIdx.x;
    int row = blockIdx.x, head = unit / SLOTS, first = unit % SLOTS * 2 * VEC, second = first + VEC;
    if (head >= 2 * KV_HEADS) return;
    wait_for_previous();
    float y[VEC], z[VEC];
    if (head < KV_HEADS) {
        const K* from = k + (u64(row) * KV_HEADS + head) * HEAD_DIM;
        read(from + first, y);
        read(from + second, z);
    } else {
        const V* from = v + (u64(row) * KV_HEADS + head - KV_HEADS) * HEAD_DIM;
        read(from + first, y);
        read(from + second, z);
    }
    append(cache, row, head, first, second, y, z, row_sequence, sequences, blocks);
}
