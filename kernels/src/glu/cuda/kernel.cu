// out = act(gate) * up, in f32, rounded once.
// Macros: ACTIVATION, a function of lathe.cuh; IN, OUT; COLS; STRIDE elements between rows of gate and up; THREADS; VEC, a power of two that divides both.
#include "lathe.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(THREADS) glu(const IN* gate, const IN* up, OUT* out) {
    let_next_start();
    int start = (int(blockIdx.y) * THREADS + int(threadIdx.x)) * VEC;
    if (start >= COLS) return;
    wait_for_previous();
    u64 from = u64(blockIdx.x) * STRIDE + start;
    auto g = *reinterpret_cast<const Vec<IN, VEC>*>(gate + from);
    auto u = *reinterpret_cast<const Vec<IN, VEC>*>(up + from);
    Vec<OUT, VEC> y;
#pragma unroll
    for (int i = 0; i < VEC; i++) y.at[i] = from_f32<OUT>(mul(ACTIVATION(to_f32(g.at[i])), to_f32(u.at[i])));
    *reinterpret_cast<Vec<OUT, VEC>*>(out + u64(blockIdx.x) * COLS + start) = y;
}
