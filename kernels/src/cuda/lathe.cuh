// The PTX that kernels use, as functions, and the element types. No CUDA headers: NVRTC needs nothing but this.
#pragma once

namespace lathe {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// 16-bit floats as bits: conversions are explicit, so every rounding is seen.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
__device__ __forceinline__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float to_f32(float x) { return x; }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <>
__device__ __forceinline__ float from_f32<float>(float x) { return x; }

// Two values to one register, `lo` in the lower half.
template <class T>
__device__ __forceinline__ u32 pack(float lo, float hi);
template <>
__device__ __forceinline__ u32 pack<bf16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
template <>
__device__ __forceinline__ u32 pack<f16>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}

// N elements that move as one; at most 16 bytes, the address a multiple of the size.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
    T at[N];
};

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

// 16 bytes from global to shared memory, past the first-level cache; zeros instead where `valid` is false.
__device__ __forceinline__ void cp_async16(u32 shared, const void* global, bool valid = true) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 16 bytes of shared memory, the address a multiple of 16.
__device__ __forceinline__ void load_shared16(u32 (&d)[4], u32 shared) {
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void store_shared16(u32 shared, const u32 (&s)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3])
                 : "memory");
}

// 16 or 8 bytes to global memory as one; the compiler often splits such stores.
__device__ __forceinline__ void store_global16(void* to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
__device__ __forceinline__ void store_global8(void* to, u32 a, u32 b) {
    asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}

// Four 8x8 tiles of 16-bit elements; lane l gives the address of row l % 8 of tile l / 8.
__device__ __forceinline__ void ldmatrix4(u32 (&d)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix4_transposed(u32 (&d)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix2(u32 (&d)[2], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared)
                 : "memory");
}

// d[16, 8] += a[16, 16] * b[16, 8] in f32, the fragments as the PTX manual lays them out (mma.m16n8k16).
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Unfused arithmetic where the contract says so: the compiler would contract a * b + c.
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// 2^x and e^x by the special-function unit; within 2 units in the last place, flushing subnormals.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(mul(x, 1.4426950408889634f)); }

// cap * tanh(x / cap) by the special-function unit, within 3e-7 cap.
__device__ __forceinline__ float softcap_fast(float x, float cap) {
    float e = exp2_fast(mul(fabsf(x), -2.8853900817779268f / cap)), y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(add(1.0f, e)));
    return copysignf(mul(mul(add(1.0f, -e), y), cap), x);
}

// e^x with the bits of numerics/src/exp.rs, which explains the steps.
__device__ __forceinline__ float exp_portable(float x) {
    const float round = 12582912.0f;
    float c = x > 88.0f ? 88.0f : x;
    c = c < -87.0f ? -87.0f : c;
    float t = add(mul(c, 1.44269504088896341f), round);
    float n = add(t, -round);
    float r = add(add(c, -mul(n, 0.693359375f)), -mul(n, -2.12194440e-4f));
    float p = 1.9875691e-4f;
    p = add(mul(p, r), 1.3981999e-3f);
    p = add(mul(p, r), 8.333452e-3f);
    p = add(mul(p, r), 4.1665796e-2f);
    p = add(mul(p, r), 1.6666665e-1f);
    p = add(mul(p, r), 5.0000003e-1f);
    float y = add(add(mul(p, mul(r, r)), r), 1.0f);
    y = mul(y, __uint_as_float((__float_as_uint(t) - __float_as_uint(round) + 127u) << 23));
    y = x < -87.0f ? 0.0f : y;
    return x != x ? x : y;
}
// Activations with the bits of numerics/src/activation.rs: SiLU; GELU by the complementary error function, and its tanh form.
__device__ __forceinline__ float silu_portable(float x) { return __fdiv_rn(x, add(1.0f, exp_portable(-x))); }
__device__ __forceinline__ float gelu_portable(float x) {
    float z = mul(fabsf(x), 0.70710678118654752f);
    float t = __fdiv_rn(1.0f, add(1.0f, mul(0.3275911f, z)));
    float p = 1.0614054f;
    p = add(mul(p, t), -1.453152f);
    p = add(mul(p, t), 1.4214137f);
    p = add(mul(p, t), -0.28449674f);
    p = add(mul(p, t), 0.2548296f);
    float tail = mul(0.5f, mul(mul(p, t), exp_portable(-mul(z, z))));
    float low = mul(fminf(fabsf(x), 3.402823466e38f), tail);
    return x < 0.0f ? -low : add(x, -low);
}
__device__ __forceinline__ float gelu_tanh_portable(float x) {
    float u = mul(0.7978846f, add(x, mul(0.044715f, mul(mul(x, x), x))));
    return __fdiv_rn(x, add(1.0f, exp_portable(-add(u, u))));
}
__device__ __forceinline__ float tanh_portable(float x) {
    float e = exp_portable(mul(-2.0f, fabsf(x)));
    float y = __fdiv_rn(add(1.0f, -e), add(1.0f, e));
    return x < 0.0f ? -y : y;
}
__device__ __forceinline__ float softcap_portable(float x, float cap) {
    return mul(cap, tanh_portable(__fdiv_rn(x, cap)));
}

// (up + 1) * gate * sigmoid(1.702 gate) with gate at most 7 and up within -7..7; bits of numerics/src/gating.rs.
__device__ __forceinline__ float clamped_swiglu(float gate, float up) {
    gate = gate > 7.0f ? 7.0f : gate;
    up = up > 7.0f ? 7.0f : up;
    up = up < -7.0f ? -7.0f : up;
    return mul(add(up, 1.0f), __fdiv_rn(gate, add(1.0f, exp_portable(-mul(1.702f, gate)))));
}

// Programmatic dependent launch: nothing that the launch before writes may be touched before the wait. Weights may.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace lathe
