// Rotary embedding of q and k, q rounded out, k and v rounded into the paged cache: one token per block in x, its heads
// over y. Unfused f32 and one rounding, the bits of the CPU's kernel.
// Macros: ELEMENT of q, KV_ELEMENT; HEADS, KV_HEADS, HEAD_DIM, ROTARY; BLOCK positions of BLOCK_BYTES bytes over all
// layers; VEC, 1, 2 or 4: 2 VEC divides HEAD_DIM and ROTARY; THREADS.
#include "rope_append.cuh"
using namespace lathe;

// A thread's share of a head: two runs of VEC elements, which rotate together below ROTARY.
constexpr int SLOTS = HEAD_DIM / (2 * VEC);
constexpr int ROTATING = ROTARY / (2 * VEC);
constexpr int ALL_HEADS = HEADS + 2 * KV_HEADS;

extern "C" __global__ void __launch_bounds__(THREADS)
    rope_append(const float* qkv, const int* positions, const float* table, u8* cache, ELEMENT* q,
                const int* row_sequence, const Sequence* sequences, const int* blocks) {
    let_next_start();
    int unit = blockIdx.y * THREADS + threadIdx.x;
    int row = blockIdx.x, head = unit / SLOTS, slot = unit % SLOTS;
    bool rotates = head < HEADS + KV_HEADS && slot < ROTATING;
    int first = slot < ROTATING ? slot * VEC : ROTARY + (slot - ROTATING) * 2 * VEC;
    int second = slot < ROTATING ? first + ROTARY / 2 : first + VEC;
    wait_for_previous();
    if (head >= ALL_HEADS) return;

    const float* x = qkv + (u64(row) * ALL_HEADS + head) * HEAD_DIM;
    auto a = *reinterpret_cast<const Vec<float, VEC>*>(x + first);
    auto b = *reinterpret_cast<const Vec<float, VEC>*>(x + second);
    float y[VEC], z[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) y[i] = a.at[i], z[i] = b.at[i];
    if (rotates) {
        const float* turns = table + u64(positions[row]) * ROTARY;
        rotate(y, z, turns + first, turns + second);
    }
    if (head < HEADS) {
        ELEMENT* to = q + (u64(row) * HEADS + head) * HEAD_DIM;
        store_run(to + first, y);
        store_run(to + second, z);
        return;
    }
    append(cache, row, head, first, second, y, z, row_sequence, sequences, blocks);
}
