// out = FUNCTION(a, b), in f32, rounded once.
// Macros: FUNCTION, add or mul of lathe.cuh; A, B, OUT; COLS; THREADS; VEC, a power of two that divides COLS.
#include "lathe.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(THREADS) binary(const A* a, const B* b, OUT* out) {
    let_next_start();
    int start = (int(blockIdx.y) * THREADS + int(threadIdx.x)) * VEC;
    if (start >= COLS) return;
    wait_for_previous();
    u64 from = u64(blockIdx.x) * COLS + start;
    auto v = *reinterpret_cast<const Vec<A, VEC>*>(a + from);
    auto w = *reinterpret_cast<const Vec<B, VEC>*>(b + from);
    Vec<OUT, VEC> y;
#pragma unroll
    for (int i = 0; i < VEC; i++) y.at[i] = from_f32<OUT>(FUNCTION(to_f32(v.at[i]), to_f32(w.at[i])));
    *reinterpret_cast<Vec<OUT, VEC>*>(out + from) = y;
}
