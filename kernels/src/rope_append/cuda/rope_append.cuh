// Slots of the cache, whoever holds the projections.
// Macros: KV_ELEMENT; HEADS, KV_HEADS, HEAD_DIM; BLOCK positions of BLOCK_BYTES bytes over all layers.
#pragma once
#include "rotate.cuh"
#include "step.cuh"

namespace lathe {

// Stores elements `first..` and `second..` of a head of a row, a key's or a value's, `head` counted with the queries'.
// Rows of padding have no slot.
template <int N>
__device__ __forceinline__ void append(u8* cache, int row, int head, int first, int second, const float (&y)[N],
                                       const float (&z)[N], const int* row_sequence, const Sequence* sequences,
                                       const int* blocks) {
    int index = row_sequence[row];
    if (index < 0) return;
    Sequence sequence = sequences[index];
    int position = sequence.kv_len - sequence.q_len + row - sequence.q_start;
    u64 block = blocks[sequence.blocks_start + position / BLOCK];
    // K's heads, then V's.
    KV_ELEMENT* to = reinterpret_cast<KV_ELEMENT*>(cache + block * BLOCK_BYTES) +
                     ((head - HEADS) * BLOCK + position % BLOCK) * HEAD_DIM;
    store_run(to + first, y);
    store_run(to + second, z);
}

}  // namespace lathe
