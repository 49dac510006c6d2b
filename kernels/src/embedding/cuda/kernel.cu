// out[i] = table[tokens[i]]; -1 - r stands for the id that the step before drew for its row r, and 0 for none.
// Macros: THREADS. Row-major: WORD, the widest unsigned type that divides a row's bytes; WORDS per row.
// MMA16: H elements of 2 bytes per row; TILES of 16 columns per row.
#include "lathe.cuh"
using namespace lathe;

__device__ __forceinline__ u32 resolve(const int* tokens, const int* drawn) {
    int token = tokens[blockIdx.x];
    if (token < 0) token = drawn[-1 - token];
    return u32(token < 0 ? 0 : token);
}

#if MMA16
// A thread's share of a tile's row: two pairs of columns, 2 q + {0, 1, 8, 9}.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(const int* tokens, const u32* table, const int* drawn, u16* out) {
    let_next_start();
    int at = int(blockIdx.y) * THREADS + int(threadIdx.x);
    int tile = at / 4, q = at % 4;
    if (tile >= TILES) return;
    wait_for_previous();
    u32 id = resolve(tokens, drawn);
    u32 row = id % 16;
    // A tile is 128 words; lane 4 (row % 8) + q holds four of them.
    const u32* share = table + (u64(id / 16) * TILES + tile) * 128 + (4 * (row % 8) + q) * 4 + row / 8;
    u32 pairs[2] = {share[0], share[2]};
    u16* to = out + u64(blockIdx.x) * H;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int column = tile * 16 + 2 * q + 8 * i;
        if (H % 2 == 0) {
            if (column < H) *reinterpret_cast<u32*>(to + column) = pairs[i];
        } else {
            if (column < H) to[column] = u16(pairs[i]);
            if (column + 1 < H) to[column + 1] = u16(pairs[i] >> 16);
        }
    }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(const int* tokens, const WORD* table, const int* drawn, WORD* out) {
    let_next_start();
    int column = int(blockIdx.y) * THREADS + int(threadIdx.x);
    if (column >= WORDS) return;
    wait_for_previous();
    out[u64(blockIdx.x) * WORDS + column] = table[u64(resolve(tokens, drawn)) * WORDS + column];
}
#endif
