// Rotation of pairs, and runs of elements on their way out.
#pragma once
#include "lathe.cuh"

namespace lathe {

// Rotates (y, z) pair by pair, unfused; cosines and sines from `cosines` and `sines` on.
template <int N>
__device__ __forceinline__ void rotate(float (&y)[N], float (&z)[N], const float* cosines, const float* sines) {
    auto c = *reinterpret_cast<const Vec<float, N>*>(cosines);
    auto s = *reinterpret_cast<const Vec<float, N>*>(sines);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float a = y[i], b = z[i];
        y[i] = __fsub_rn(mul(a, c.at[i]), mul(b, s.at[i]));
        z[i] = add(mul(b, c.at[i]), mul(a, s.at[i]));
    }
}

template <class T, int N>
__device__ __forceinline__ void store_run(T* to, const float (&x)[N]) {
    Vec<T, N> y;
#pragma unroll
    for (int i = 0; i < N; i++) y.at[i] = from_f32<T>(x[i]);
    *reinterpret_cast<Vec<T, N>*>(to) = y;
}

// Where a thread's share of a head lies: two runs of RUN elements, which rotate together in the first TURNED.
template <int RUN, int TURNED>
struct Share {
    int first, second;
    __device__ __forceinline__ explicit Share(int slot) {
        constexpr int TURNING = TURNED / (2 * RUN);
        bool turns = slot < TURNING;
        first = turns ? slot * RUN : TURNED + (slot - TURNING) * 2 * RUN;
        second = turns ? first + TURNED / 2 : first + RUN;
    }
    __device__ __forceinline__ bool rotates() const { return first < TURNED / 2; }
};

}  // namespace lathe
