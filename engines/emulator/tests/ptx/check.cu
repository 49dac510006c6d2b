// Kernels with one fault each, and their repaired twins: NAME_bad and NAME_good. check.ptx is what NVRTC 13.0 makes of
// this file with --gpu-architecture=sm_80 -default-device --std=c++17 -lineinfo; check_dependent.cu needs sm_90.
// Blocks of 64 threads, two warps, unless said otherwise.
using u32 = unsigned int;

#define TWINS(name, params, args)                                                  \
    extern "C" __global__ void name##_bad params { name<false> args; }             \
    extern "C" __global__ void name##_good params { name<true> args; }

__device__ __forceinline__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
// Keeps the compiler from seeing that a barrier's absence lets it move or drop an access.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

// Read after write across warps.
template <bool good>
__device__ void shared_read(const u32* in, u32* out) {
    __shared__ u32 s[64];
    u32 t = threadIdx.x;
    s[t] = in[t];
    if (good) __syncthreads();
    keep_order();
    out[t] = s[63 - t];
}
TWINS(shared_read, (const u32* in, u32* out), (in, out))

// Write after read across warps: the second tile overwrites the first too early.
template <bool good>
__device__ void shared_reuse(const u32* in, u32* out) {
    __shared__ u32 s[64];
    u32 t = threadIdx.x, sum = 0;
    for (int i = 0; i < 4; i++) {
        s[t] = in[t + i];
        __syncthreads();
        sum += s[63 - t];
        if (good) __syncthreads();
        keep_order();
    }
    out[t] = sum;
}
TWINS(shared_reuse, (const u32* in, u32* out), (in, out))

// Lanes of a warp write different values to one address.
template <bool good>
__device__ void lanes_clash(const u32* in, u32* out) {
    __shared__ u32 s[2];
    u32 t = threadIdx.x;
    s[t / 32] = good ? in[t / 32 + 1] : in[t];
    __syncthreads();
    out[t] = s[0];
}
TWINS(lanes_clash, (const u32* in, u32* out), (in, out))

// Halves of a word belong to different warps: no fault unless a byte is shared.
template <bool good>
__device__ void halves(const u32* in, u32* out) {
    __shared__ unsigned short s[66];
    u32 t = threadIdx.x;
    s[t + 1] = (unsigned short)in[t];
    if (t == 32) s[good ? 0 : 32] = 7;
    __syncthreads();
    out[t] = s[t + 1];
}
TWINS(halves, (const u32* in, u32* out), (in, out))

// Device memory within a block.
template <bool good>
__device__ void global_read(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    out[t] = in[t];
    if (good) __syncthreads();
    keep_order();
    out[t + 64] = out[63 - t];
}
TWINS(global_read, (const u32* in, u32* out), (in, out))

// Blocks overlap by one element.
template <bool good>
__device__ void blocks_overlap(const u32* in, u32* out) {
    u32 t = threadIdx.x, n = good ? 64 : 63;
    out[blockIdx.x * n + t] = in[t];
}
TWINS(blocks_overlap, (const u32* in, u32* out), (in, out))

// A block writes what another has only read.
template <bool good>
__device__ void blocks_in_place(const u32* in, u32* out) {
    u32 t = threadIdx.x + 64 * blockIdx.x;
    u32 neighbour = out[good ? t : (t + 1) % 128];
    __syncthreads();
    out[t] = neighbour + in[t];
}
TWINS(blocks_in_place, (const u32* in, u32* out), (in, out))

// The last of four blocks folds what the others left; out[256] counts.
template <bool good>
__device__ void last_block(const u32* in, u32* out) {
    __shared__ u32 last;
    u32 t = threadIdx.x;
    out[64 * blockIdx.x + t] = in[t] + blockIdx.x;
    if (good) __threadfence();
    __syncthreads();
    if (t == 0) last = atomicAdd(out + 256, 1u) == 3;
    __syncthreads();
    if (!last) return;
    __threadfence();
    u32 sum = 0;
    for (int b = 0; b < 4; b++) sum += __ldcg(out + 64 * b + t);
    out[320 + t] = sum;
    if (t == 0) out[256] = 0;
}
TWINS(last_block, (const u32* in, u32* out), (in, out))

// The last block forgets the fence after its atomic operation.
template <bool good>
__device__ void last_block_acquire(const u32* in, u32* out) {
    __shared__ u32 last;
    u32 t = threadIdx.x;
    out[64 * blockIdx.x + t] = in[t] + blockIdx.x;
    __threadfence();
    __syncthreads();
    if (t == 0) last = atomicAdd(out + 256, 1u) == 3;
    __syncthreads();
    if (!last) return;
    if (good) __threadfence();
    keep_order();
    out[320 + t] = out[t] + out[64 + t];
}
TWINS(last_block_acquire, (const u32* in, u32* out), (in, out))

// A plain read beside atomic updates by other blocks.
template <bool good>
__device__ void atomic_read(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    atomicAdd(out + t % 4, in[t]);
    __syncthreads();
    if (!good) out[64 + 64 * blockIdx.x + t] = out[3 - t % 4];
}
TWINS(atomic_read, (const u32* in, u32* out), (in, out))

// Asynchronous copies: not waited for at all.
template <bool good>
__device__ void async_no_wait(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[256];
    u32 t = threadIdx.x;
    copy_async(s + 4 * t, in + 4 * t);
    commit();
    if (good) wait<0>();
    __syncthreads();
    for (int i = 0; i < 4; i++) out[64 * i + t] = s[64 * i + t];
}
TWINS(async_no_wait, (const u32* in, u32* out), (in, out))

// One group too many is left under way.
template <bool good>
__device__ void async_wait_count(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[2][256];
    u32 t = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        copy_async(s[i] + 4 * t, in + 4 * t);
        commit();
    }
    wait<1>();
    __syncthreads();
    out[t] = s[good ? 0 : 1][t];
    wait<0>();
    __syncthreads();
    out[64 + t] = s[1][t];
}
TWINS(async_wait_count, (const u32* in, u32* out), (in, out))

// Waited for, but read by the other warp without a barrier.
template <bool good>
__device__ void async_no_barrier(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[256];
    u32 t = threadIdx.x;
    copy_async(s + 4 * t, in + 4 * t);
    commit();
    if (good) wait<0>();
    __syncthreads();
    if (!good) wait<0>();
    out[t] = s[252 - 4 * t];
}
TWINS(async_no_barrier, (const u32* in, u32* out), (in, out))

// A stage is refilled while the other warp may still read it.
template <bool good>
__device__ void async_reuse(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[256];
    u32 t = threadIdx.x, sum = 0;
    for (int i = 0; i < 3; i++) {
        copy_async(s + 4 * t, in + 4 * t);
        commit();
        wait<0>();
        __syncthreads();
        sum += s[252 - 4 * t];
        if (good) __syncthreads();
        keep_order();
    }
    out[t] = sum;
}
TWINS(async_reuse, (const u32* in, u32* out), (in, out))

// A stage is overwritten while a copy into it is under way.
template <bool good>
__device__ void async_overwrite(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[512];
    u32 t = threadIdx.x;
    copy_async(s + 4 * t, in + 4 * t);
    commit();
    s[(good ? 256 : 0) + 4 * t] = t;
    wait<0>();
    __syncthreads();
    out[t] = s[t] + s[256 + 4 * t];
}
TWINS(async_overwrite, (const u32* in, u32* out), (in, out))

// The predicate of a branch depends on shared memory that nobody wrote.
template <bool good>
__device__ void undefined_branch(const u32* in, u32* out) {
    __shared__ u32 s[128];
    u32 t = threadIdx.x;
    s[t] = in[t];
    if (good) s[t + 64] = 1;
    __syncthreads();
    if (s[127 - t] > 3) {
        out[t] = in[t + 1] * 3;
        __syncthreads();
    }
    out[t + 64] = s[t];
}
TWINS(undefined_branch, (const u32* in, u32* out), (in, out))

// An address depends on shared memory that nobody wrote.
template <bool good>
__device__ void undefined_address(const u32* in, u32* out) {
    __shared__ u32 s[64];
    u32 t = threadIdx.x;
    if (good || t != 5) s[t] = t;
    __syncthreads();
    out[t] = in[s[63 - t] & 63];
}
TWINS(undefined_address, (const u32* in, u32* out), (in, out))

// One element of the result stays undefined, by way of shared memory and arithmetic.
template <bool good>
__device__ void undefined_result(const u32* in, u32* out) {
    __shared__ float s[64];
    u32 t = threadIdx.x;
    if (good || t != 5) s[t] = float(in[t]);
    __syncthreads();
    float x = s[63 - t] * 2.0f + 1.0f;
    x += __shfl_xor_sync(~0u, x, 4);
    out[t] = __float_as_uint(x);
}
TWINS(undefined_result, (const u32* in, u32* out), (in, out))

// Lanes of one warp do not come to the barrier together.
template <bool good>
__device__ void barrier_lanes(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    if (in[t] < 16) {
        out[t] = 1;
        if (!good) __syncthreads();
    }
    __syncthreads();
    out[t + 64] = t;
}
TWINS(barrier_lanes, (const u32* in, u32* out), (in, out))

// Warps wait at different barriers.
template <bool good>
__device__ void barrier_warps(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    if (in[t / 32] == 0) {
        out[t] = 1;
        if (!good) __syncthreads();
        out[t] = 5;
    } else {
        out[t] = 2;
        if (!good) __syncthreads();
        out[t] = 6;
    }
    __syncthreads();
    out[t + 64] = t;
}
TWINS(barrier_warps, (const u32* in, u32* out), (in, out))

// A warp leaves before the barrier.
template <bool good>
__device__ void barrier_exit(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    if (!good && in[t / 32] == 1) return;
    out[t] = in[t];
    __syncthreads();
    out[t + 64] = t;
}
TWINS(barrier_exit, (const u32* in, u32* out), (in, out))

// A named barrier for two of three warps, to which one comes.
template <bool good>
__device__ void barrier_count(const u32* in, u32* out) {
    u32 t = threadIdx.x;
    if (good ? t < 64 : in[t / 32] == 0) asm volatile("bar.sync 1, 64;" ::: "memory");
    out[t] = in[t];
}
TWINS(barrier_count, (const u32* in, u32* out), (in, out))

// Named barriers order producer and consumer; the producer goes on without waiting.
template <bool good>
__device__ void barrier_named(const u32* in, u32* out) {
    __shared__ u32 s[32];
    u32 t = threadIdx.x;
    if (t < 32) {
        s[t] = in[t];
        if (good) {
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.arrive 2, 64;" ::: "memory");
            s[t] = in[t + 1];
        }
    } else {
        asm volatile("bar.sync 2, 64;" ::: "memory");
        out[t - 32] = s[63 - t];
    }
}
TWINS(barrier_named, (const u32* in, u32* out), (in, out))

// ldmatrix of rows that another warp writes.
template <bool good>
__device__ void matrix_read(const u32* in, u32* out) {
    __shared__ __align__(16) u32 s[256];
    u32 t = threadIdx.x, r[4];
    for (int i = 0; i < 4; i++) s[64 * i + t] = in[64 * i + t];
    if (good) __syncthreads();
    keep_order();
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(s + 4 * t))
                 : "memory");
    for (int i = 0; i < 4; i++) out[64 * i + t] = r[i];
}
TWINS(matrix_read, (const u32* in, u32* out), (in, out))

// One column of B is undefined: so is that column of the product, and nothing else. Bad writes it out; one warp.
template <bool good>
__device__ void matrix_column(const u32* in, u32* out) {
    __shared__ u32 s[8];
    u32 t = threadIdx.x, a = 0x3f803f80 + in[t], b = a;
    if (t < 3) s[t] = in[t];
    __syncwarp();
    if (t / 4 == 5) b = s[7];
    float d[4] = {};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a), "r"(b));
    for (int i = 0; i < 4; i++) {
        u32 row = t / 4 + 8 * (i / 2), column = t % 4 * 2 + i % 2;
        bool keep = !good || column != 5;
        out[8 * row + column] = keep ? __float_as_uint(d[i]) : 0;
    }
}
TWINS(matrix_column, (const u32* in, u32* out), (in, out))
