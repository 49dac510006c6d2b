// Which expert's weight a block multiplies with, and which rows: choices are grouped by expert (top_k/mod.rs), tiles of
// tokens are counted expert by expert.
// Macros beside gemm.cuh's: EXPERTS, SHARE (choices in a row that have one row of x).
#pragma once
#include "gemm.cuh"

namespace lathe {

// A tile of one expert: its choices begin at `first` of the order and are `count`, the tile begins at `token` of them.
struct Group {
    int expert, first, count, token;
};

// The tile that is number `index`, the same in all lanes; expert EXPERTS where there are fewer.
template <int TOKENS>
__device__ __forceinline__ Group group_of_block(const int* starts, int index) {
    int lane = threadIdx.x % 32;
    for (int base = 0; base < EXPERTS; base += 32) {
        int expert = base + lane;
        int first = expert < EXPERTS ? starts[expert] : 0;
        int count = expert < EXPERTS ? starts[expert + 1] - first : 0;
        int tiles = (count + TOKENS - 1) / TOKENS, end = tiles;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            int before = __shfl_up_sync(~0u, end, distance);
            if (lane >= distance) end += before;
        }
        u32 who = __ballot_sync(~0u, index < end);
        if (who != 0) {
            int found = __ffs(who) - 1;
            int token = (index - end + tiles) * TOKENS;
            return {base + found, __shfl_sync(~0u, first, found), __shfl_sync(~0u, count, found),
                    __shfl_sync(~0u, token, found)};
        }
        index -= __shfl_sync(~0u, end, 31);
    }
    return {EXPERTS, 0, 0, 0};
}

// Rows of the output that tokens are: as the order lists them.
struct Listed {
    OUT* out;
    const int* order;
    __device__ __forceinline__ u64 row(int token) const { return u64(order[token]) * COLUMNS; }
};

}  // namespace lathe
