// What a device can do at best: reading, launching, meeting, multiplying.
#include "lathe.cuh"

// Reads n 16-byte words; the store never happens, but the compiler cannot know.
extern "C" __global__ void __launch_bounds__(512) read(const uint4* __restrict__ from, lathe::u64 n, lathe::u32* out) {
    lathe::u32 sum = 0;
    lathe::u64 stride = lathe::u64(gridDim.x) * blockDim.x;
    lathe::u64 i = lathe::u64(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < n; i += 4 * stride) {
        uint4 a = from[i], b = from[i + stride], c = from[i + 2 * stride], d = from[i + 3 * stride];
        sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        sum ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += stride) {
        uint4 a = from[i];
        sum ^= a.x ^ a.y ^ a.z ^ a.w;
    }
    if (sum == 0x9e3779b9u) *out = sum;
}

extern "C" __global__ void empty() {}

extern "C" __global__ void empty_dependent() {
    lathe::let_next_start();
    lathe::wait_for_previous();
}

// All blocks meet `rounds` times; `counter` is zero before and after.
extern "C" __global__ void barrier(lathe::u32* counter, lathe::u32 rounds) {
    for (lathe::u32 round = 1; round <= rounds; ++round) {
        __syncthreads();
        if (threadIdx.x == 0) {
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
            lathe::u32 seen;
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            } while (seen < round * gridDim.x);
        }
        __syncthreads();
    }
}

extern "C" __global__ void reset(lathe::u32* counter) { *counter = 0; }

// `rounds` times eight independent m16n8k16 per warp.
extern "C" __global__ void __launch_bounds__(256) multiply(float* out, lathe::u32 rounds) {
    float sums[8][4] = {};
    lathe::u32 a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = threadIdx.x * 4 + i;
    for (int i = 0; i < 2; ++i) b[i] = threadIdx.x * 2 + i;
    for (lathe::u32 round = 0; round < rounds; ++round)
#pragma unroll
        for (int i = 0; i < 8; ++i) lathe::mma<lathe::bf16>(sums[i], a, b);
    float sum = 0;
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 4; ++j) sum += sums[i][j];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
