// out = y_0 w_0 + y_1 w_1 + ... (+ sigmoid(gate) * shared) (+ residual), left to right in f32, one rounding.
// Macros: IN, OUT, COLS, CHOICES, SHARED (0 or 1), RESIDUAL (0 or 1), THREADS, VEC (1 or 4, divides COLS).
#include "lathe.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(THREADS)
    combine(const IN* y, const float* weights, const OUT* residual, const float* shared, const float* gate, OUT* out) {
    let_next_start();
    int start = (int(blockIdx.y) * THREADS + int(threadIdx.x)) * VEC;
    if (start >= COLS) return;
    wait_for_previous();
    u64 row = blockIdx.x, at = row * COLS + start;
    float sum[VEC];
#pragma unroll
    for (int j = 0; j < CHOICES; ++j) {
        auto part = *reinterpret_cast<const Vec<IN, VEC>*>(y + (row * CHOICES + j) * COLS + start);
        float weight = weights[row * CHOICES + j];
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            float term = mul(to_f32(part.at[i]), weight);
            sum[i] = j == 0 ? term : add(sum[i], term);
        }
    }
    if (SHARED) {
        float scale = __fdiv_rn(1.0f, add(1.0f, exp_portable(-gate[row])));
        auto part = *reinterpret_cast<const Vec<float, VEC>*>(shared + at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum[i] = add(sum[i], mul(scale, part.at[i]));
    }
    if (RESIDUAL) {
        auto part = *reinterpret_cast<const Vec<OUT, VEC>*>(residual + at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum[i] = add(sum[i], to_f32(part.at[i]));
    }
    Vec<OUT, VEC> z;
#pragma unroll
    for (int i = 0; i < VEC; ++i) z.at[i] = from_f32<OUT>(sum[i]);
    *reinterpret_cast<Vec<OUT, VEC>*>(out + at) = z;
}
