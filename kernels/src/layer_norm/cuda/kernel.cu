// y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + bias per row; a group of a row is a row here. The order of both sums
// is that of rms_norm/cuda/mod.rs. Macros: row.cuh; BIAS, 1 where there is one.
#include "row.cuh"
using namespace lathe;

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm(const ELEMENT* x, const WEIGHT* weight,
#if BIAS
                                                                 const WEIGHT* bias,
#endif
                                                                 ELEMENT* out, float eps) {
    let_next_start();
    WEIGHT w[PER_THREAD][CHUNK];
    load_weight(weight, w);
#if BIAS
    WEIGHT b[PER_THREAD][CHUNK];
    load_weight(bias, b);
#endif
    wait_for_previous();
    u64 row = u64(blockIdx.x) * H;
    ELEMENT v[PER_THREAD][CHUNK];
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) {
        load(x + row, chunk_start(c), v[c]);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) sum = add(sum, to_f32(v[c][i]));
    }
    float mean = __fdiv_rn(block_sum<0>(sum), float(H));
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++)
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            float d = add(to_f32(v[c][i]), -mean);
            if (chunk_start(c) + i < H) squares = add(squares, mul(d, d));
        }
    float inverse = inverse_rms(block_sum<1>(squares), H, eps);
#pragma unroll
    for (int c = 0; c < PER_THREAD; c++) {
        ELEMENT y[CHUNK];
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            float scaled = mul(mul(add(to_f32(v[c][i]), -mean), inverse), to_f32(w[c][i]));
#if BIAS
            scaled = add(scaled, to_f32(b[c][i]));
#endif
            y[i] = from_f32<ELEMENT>(scaled);
        }
        store(out + row, chunk_start(c), y);
    }
}
