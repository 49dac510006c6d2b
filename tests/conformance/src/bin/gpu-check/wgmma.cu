// One product by the two tensor core instructions: d[64, COLUMNS] = a[64, k] * b[COLUMNS, k] with rows of k in order, in f32.
#include "lathe.cuh"

#ifndef COLUMNS
#define COLUMNS 8
#endif

// 16 x 8 per warp: blockIdx.x counts columns of 8, blockIdx.y rows of 16.
extern "C" __global__ void __launch_bounds__(32) by_mma(const lathe::u16* a, const lathe::u16* b, float* d, int k, int n) {
    int g = threadIdx.x / 4, q = threadIdx.x % 4;
    int row = blockIdx.y * 16 + g, col = blockIdx.x * 8;
    float sums[4] = {};
    auto pair = [&](const lathe::u16* x, int r, int c) { return *reinterpret_cast<const lathe::u32*>(x + r * k + c); };
    for (int c = 2 * q; c < k; c += 16) {
        lathe::u32 x[4] = {pair(a, row, c), pair(a, row + 8, c), pair(a, row, c + 8), pair(a, row + 8, c + 8)};
        lathe::u32 y[2] = {pair(b, col + g, c), pair(b, col + g, c + 8)};
        lathe::mma<lathe::bf16>(sums, x, y);
    }
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * n + col + 2 * q + i % 2] = sums[i];
}

#ifdef WGMMA
// Tiles in shared memory without swizzle: 8 rows of 16 bytes lie together, then the next 8 columns, then the next 8 rows.
__device__ __forceinline__ lathe::u64 descriptor(const void* tile) {
    lathe::u64 at = lathe::shared_address(tile);
    return (at & 0x3ffff) >> 4 | lathe::u64(128 >> 4) << 16 | lathe::u64(256 >> 4) << 32;
}

__device__ __forceinline__ void load_tile(lathe::u16* to, const lathe::u16* from, int rows, int k, int c0) {
    for (int i = threadIdx.x; i < rows * 16; i += 128) {
        int row = i / 16, c = i % 16;
        to[row / 8 * 128 + c / 8 * 64 + row % 8 * 8 + c % 8] = from[row * k + c0 + c];
    }
}

extern "C" __global__ void __launch_bounds__(128) by_wgmma(const lathe::u16* a, const lathe::u16* b, float* d, int k) {
    __shared__ alignas(128) lathe::u16 x[64 * 16];
    __shared__ alignas(128) lathe::u16 y[COLUMNS * 16];
    float sums[COLUMNS / 2];
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) sums[i] = 0;
    for (int c0 = 0; c0 < k; c0 += 16) {
        __syncthreads();
        load_tile(x, a, 64, k, c0);
        load_tile(y, b, COLUMNS, k, c0);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        asm volatile(WGMMA : OPERANDS(sums) : "l"(descriptor(x)), "l"(descriptor(y)) : "memory");
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" : OPERANDS(sums) : : "memory");
    }
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; ++i) d[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
#endif
