// Rotary embedding by itself: one token per block in x, its heads over y. Unfused f32 and one rounding.
// Macros: IN, OUT; HEADS, HEAD_DIM, ROTARY; VEC, 1, 2 or 4: 2 VEC divides HEAD_DIM and ROTARY; THREADS.
#include "rotate.cuh"
using namespace lathe;

constexpr int SLOTS = HEAD_DIM / (2 * VEC);

extern "C" __global__ void __launch_bounds__(THREADS)
    rope(const IN* x, const int* positions, const float* table, OUT* out) {
    let_next_start();
    int unit = blockIdx.y * THREADS + threadIdx.x;
    int row = blockIdx.x, head = unit / SLOTS;
    Share<VEC, ROTARY> share(unit % SLOTS);
    if (head >= HEADS) return;
    wait_for_previous();
    u64 start = (u64(row) * HEADS + head) * HEAD_DIM;
    auto a = *reinterpret_cast<const Vec<IN, VEC>*>(x + start + share.first);
    auto b = *reinterpret_cast<const Vec<IN, VEC>*>(x + start + share.second);
    float y[VEC], z[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) y[i] = to_f32(a.at[i]), z[i] = to_f32(b.at[i]);
    if (share.rotates()) {
        const float* turns = table + u64(positions[row]) * ROTARY;
        rotate(y, z, turns + share.first, turns + share.second);
    }
    store_run(out + start + share.first, y);
    store_run(out + start + share.second, z);
}
