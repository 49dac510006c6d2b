// c[m, n] = a[m, k] * b[n, k]^T in bf16: 64 x 64 tiles, 4 warps, a ring of 3 stages filled by cp.async.
// m, n multiples of 64, k of 32.
#include "lathe.cuh"
using namespace lathe;

constexpr int TILE = 64, STEP = 32, STAGES = 3, CHUNKS = STEP / 8;

// 16-byte chunks of a row, permuted so that the eight rows of an ldmatrix tile meet all banks.
__device__ __forceinline__ int place(int row, int chunk) { return row * CHUNKS + (chunk ^ ((row >> 1) & 3)); }

extern "C" __global__ void __launch_bounds__(128)
    gemm(const bf16* __restrict__ a, const bf16* __restrict__ b, bf16* __restrict__ c, int m, int n, int k) {
    extern __shared__ __align__(128) uint4 ring[];
    uint4 *ring_a = ring, *ring_b = ring + STAGES * TILE * CHUNKS;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row0 = blockIdx.y * TILE, col0 = blockIdx.x * TILE;
    auto load = [&](int stage, int k0) {
#pragma unroll
        for (int i = 0; i < TILE * CHUNKS / 128; i++) {
            const int id = threadIdx.x + i * 128, row = id / CHUNKS, chunk = id % CHUNKS;
            cp_async16(shared_address(ring_a + stage * TILE * CHUNKS + place(row, chunk)),
                       a + size_t(row0 + row) * k + k0 + chunk * 8);
            cp_async16(shared_address(ring_b + stage * TILE * CHUNKS + place(row, chunk)),
                       b + size_t(col0 + row) * k + k0 + chunk * 8);
        }
    };
    const int steps = k / STEP;
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s, s * STEP);
        cp_async_commit();
    }
    float sums[4][2][4] = {};
    for (int s = 0; s < steps; s++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) load((s + STAGES - 1) % STAGES, (s + STAGES - 1) * STEP);
        cp_async_commit();
        const uint4* tile_a = ring_a + (s % STAGES) * TILE * CHUNKS;
        const uint4* tile_b = ring_b + (s % STAGES) * TILE * CHUNKS;
#pragma unroll
        for (int part = 0; part < STEP / 16; part++) {
            u32 fb[4];
            ldmatrix4(fb, shared_address(tile_b + place(warp * 16 + lane % 8 + lane / 16 * 8,
                                                        part * 2 + lane / 8 % 2)));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 fa[4];
                ldmatrix4(fa, shared_address(tile_a + place(i * 16 + lane % 16, part * 2 + lane / 16)));
                mma<bf16>(sums[i][0], fa, {fb[0], fb[1]});
                mma<bf16>(sums[i][1], fa, {fb[2], fb[3]});
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            bf16* to = c + size_t(row0 + i * 16 + lane / 4) * n + col0 + warp * 16 + j * 8 + lane % 4 * 2;
            *(u32*)to = pack<bf16>(sums[i][j][0], sums[i][j][1]);
            *(u32*)(to + size_t(8) * n) = pack<bf16>(sums[i][j][2], sums[i][j][3]);
        }
}
