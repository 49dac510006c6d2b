// The arithmetic of an RMS norm and of its sums, whoever holds the row. Order: rms_norm/cuda/mod.rs.
#pragma once
#include "lathe.cuh"

namespace lathe {

// Sums over the lanes of a warp, the same bits in every lane.
template <int N>
__device__ __forceinline__ void warp_sums(float (&x)[N]) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = add(x[i], __shfl_xor_sync(~0u, x[i], distance));
}
__device__ __forceinline__ float warp_sum(float x) {
    float one[1] = {x};
    warp_sums(one);
    return one[0];
}

// `sum` and the squares of a run.
template <class T, int N>
__device__ __forceinline__ float add_squares(float sum, const T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float v = to_f32(x[i]);
        sum = add(sum, mul(v, v));
    }
    return sum;
}

// What a row of `n` elements with this sum of squares is multiplied by.
__device__ __forceinline__ float inverse_rms(float squares, int n, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(add(__fdiv_rn(squares, float(n)), eps)));
}

template <class T, class W>
__device__ __forceinline__ T normed(T x, float inverse, W weight) {
    return from_f32<T>(mul(mul(to_f32(x), inverse), to_f32(weight)));
}

}  // namespace lathe
