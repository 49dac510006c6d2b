// out = FUNCTION(x), in f32, rounded once.
// Macros: FUNCTION, one of those below; IN, OUT; COLS; STRIDE elements between rows of x; THREADS; VEC, a power of two
// that divides both.
#include "lathe.cuh"
using namespace lathe;

__device__ __forceinline__ float cast(float x, float) { return x; }
__device__ __forceinline__ float scale(float x, float factor) { return mul(x, factor); }
__device__ __forceinline__ float softcap(float x, float cap) { return softcap_portable(x, cap); }
__device__ __forceinline__ float silu(float x, float) { return silu_portable(x); }
__device__ __forceinline__ float gelu(float x, float) { return gelu_portable(x); }
__device__ __forceinline__ float gelu_tanh(float x, float) { return gelu_tanh_portable(x); }

extern "C" __global__ void __launch_bounds__(THREADS) unary(const IN* x, OUT* out, float param) {
    let_next_start();
    int start = (int(blockIdx.y) * THREADS + int(threadIdx.x)) * VEC;
    if (start >= COLS) return;
    wait_for_previous();
    auto v = *reinterpret_cast<const Vec<IN, VEC>*>(x + u64(blockIdx.x) * STRIDE + start);
    Vec<OUT, VEC> y;
#pragma unroll
    for (int i = 0; i < VEC; i++) y.at[i] = from_f32<OUT>(FUNCTION(to_f32(v.at[i]), param));
    *reinterpret_cast<Vec<OUT, VEC>*>(out + u64(blockIdx.x) * COLS + start) = y;
}
