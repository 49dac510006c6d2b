// y = x / sqrt(mean(x^2) + eps) * w per row, alone or after a residual add; a group of a row is a row here. See mod.rs for
// the order of summation. Macros: row.cuh.
#include "row.cuh"
using namespace lathe;

__device__ __forceinline__ void norm(const ELEMENT (&x)[PER_THREAD][CHUNK], const WEIGHT (&w)[PER_THREAD][CHUNK],
                                     float eps, ELEMENT* out) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) sum = add_squares(sum, x[c]);
    float inverse = inverse_rms(block_sum<0>(sum), H, eps);
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) {
        ELEMENT y[CHUNK];
#pragma unroll
        for (int i = 0; i < CHUNK; i++) y[i] = normed(x[c][i], inverse, w[c][i]);
        store(out, chunk_start(c), y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const ELEMENT* x, const WEIGHT* weight, ELEMENT* out, float eps) {
    let_next_start();
    WEIGHT w[PER_THREAD][CHUNK];
    ELEMENT v[PER_THREAD][CHUNK];
    load_weight(weight, w);
    wait_for_previous();
    u64 row = u64(blockIdx.x) * H;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) load(x + row, chunk_start(c), v[c]);
    norm(v, w, eps, out + row);
}

// `sum` may be the residual's own bytes: a thread writes only what it has read itself.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rms_norm(const float* delta, const ELEMENT* residual, const WEIGHT* weight, ELEMENT* sum, ELEMENT* out,
                 float eps) {
    let_next_start();
    WEIGHT w[PER_THREAD][CHUNK];
    ELEMENT v[PER_THREAD][CHUNK];
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
