// Causal grouped-query attention over the paged cache for what tensor cores do not take: f32, mixed dtypes, odd heads.
// One block per row and head, a thread per position of a leaf, then a thread per column; the order of summation is in
// mod.rs.
// Macros: ELEMENT of q and output, KV_ELEMENT; HEADS, KV_HEADS, HEAD_DIM; BLOCK positions of BLOCK_BYTES bytes over all
// layers; WINDOW positions that a row sees, 0 for all; SOFTCAP of the scores, 0.0f for none; SINKS if there are any, 1 or 0.
#include "lathe.cuh"
#include "step.cuh"
using namespace lathe;

constexpr int LEAF = 128;
constexpr int THREADS = LEAF;
constexpr int WARPS = THREADS / 32;
constexpr int GROUP = HEADS / KV_HEADS;
constexpr int COLUMNS = (HEAD_DIM + THREADS - 1) / THREADS;
// The last parameter where there are sinks: one per head.
#if SINKS
#define SINKS_PARAMETER , const float* sinks
#else
#define SINKS_PARAMETER
#endif
#define ABSENT __uint_as_float(0xff800000u)  // minus infinity

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_plain(const ELEMENT* q, const u8* cache, ELEMENT* out, const int* row_sequence, const Sequence* sequences,
                    const int* blocks, float scale SINKS_PARAMETER) {
    __shared__ float query[HEAD_DIM];
    __shared__ float weights[LEAF];
    __shared__ float partial[2][WARPS];
    let_next_start();
    int row = blockIdx.x, head = blockIdx.y, kv_head = head / GROUP;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    wait_for_previous();
    int index = row_sequence[row];
    if (index < 0) return;
    Sequence s = sequences[index];
    int position = s.kv_len - s.q_len + row - s.q_start;
    int first = WINDOW == 0 ? 0 : max(0, position - WINDOW + 1);
    blocks += s.blocks_start;
    auto at = [&](int position, int values) {
        const u8* block = cache + u64(blocks[position / BLOCK]) * BLOCK_BYTES;
        return reinterpret_cast<const KV_ELEMENT*>(block) +
               ((values * KV_HEADS + kv_head) * BLOCK + position % BLOCK) * HEAD_DIM;
    };
    u64 mine = (u64(row) * HEADS + head) * HEAD_DIM;
    for (int d = threadIdx.x; d < HEAD_DIM; d += THREADS) query[d] = to_f32(q[mine + d]);
    __syncthreads();

    float total[COLUMNS] = {}, max = ABSENT, sum = 0.0f;
    for (int start = first / LEAF * LEAF; start <= position; start += LEAF) {
        int key = start + threadIdx.x;
        bool seen = first <= key && key <= position;
        float score = ABSENT;
        if (seen) {
            const KV_ELEMENT* k = at(key, 0);
            float dot = 0.0f;
            for (int d = 0; d < HEAD_DIM; d++) dot = __fmaf_rn(query[d], to_f32(k[d]), dot);
            score = mul(dot, scale);
            if constexpr (SOFTCAP > 0.0f) score = softcap_portable(score, SOFTCAP);
        }
        float largest = score;
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
        if (lane == 0) partial[0][warp] = largest;
        __syncthreads();
        for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, partial[0][w]);
        float weight = seen ? to_f32(from_f32<ELEMENT>(exp_fast(__fsub_rn(score, largest)))) : 0.0f;
        weights[threadIdx.x] = weight;
        float leaf_sum = weight;
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2)
            leaf_sum = add(leaf_sum, __shfl_xor_sync(~0u, leaf_sum, distance));
        if (lane == 0) partial[1][warp] = leaf_sum;
        __syncthreads();
        leaf_sum = add(add(partial[1][0], partial[1][1]), add(partial[1][2], partial[1][3]));

        float m = fmaxf(max, largest);
        float before = exp_fast(__fsub_rn(max, m)), of = exp_fast(__fsub_rn(largest, m));
        sum = add(mul(sum, before), mul(leaf_sum, of));
        max = m;
        int from = ::max(first, start), end = min(position + 1, start + LEAF);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int column = c * THREADS + threadIdx.x;
            if (column >= HEAD_DIM) continue;
            float acc = 0.0f;
            for (int j = from; j < end; j++) acc = __fmaf_rn(weights[j - start], to_f32(at(j, 1)[column]), acc);
            total[c] = add(mul(total[c], before), mul(acc, of));
        }
        __syncthreads();
    }
#if SINKS
    // One more leaf, without values.
    float sink = sinks[head], m = fmaxf(max, sink);
    float before = exp_fast(__fsub_rn(max, m));
    sum = add(mul(sum, before), exp_fast(__fsub_rn(sink, m)));
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) total[c] = mul(total[c], before);
#endif
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int column = c * THREADS + threadIdx.x;
        if (column < HEAD_DIM) out[mine + column] = from_f32<ELEMENT>(__fdiv_rn(total[c], sum));
    }
}
