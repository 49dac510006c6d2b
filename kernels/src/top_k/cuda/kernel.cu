// The K largest of EXPERTS logits with their softmax weights, a warp per row; then choices by expert, a warp per expert.
// Order and bits: top_k/mod.rs. Macros: EXPERTS, K, OVER_ALL (0 or 1), THREADS.
#include "step.cuh"
using namespace lathe;

enum : int { WARPS = THREADS / 32, EACH = (EXPERTS + 31) / 32, MINE = (K + 31) / 32 };

// Larger for logits that come first: by value, then by lower id; NaN is below all numbers, a lane without logit below NaN.
__device__ __forceinline__ u64 key(float logit, int id) {
    u32 bits = __float_as_uint(add(logit, 0.0f));
    u32 ordered = bits ^ (u32(int(bits) >> 31) | 0x80000000u);
    if (logit != logit) ordered = 0;
    return u64(ordered) << 32 | (0xffffffffu - u32(id));
}

__device__ __forceinline__ u64 warp_max(u64 x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        u64 lo = __shfl_xor_sync(~0u, u32(x), distance), hi = __shfl_xor_sync(~0u, u32(x >> 32), distance);
        u64 other = hi << 32 | lo;
        x = other > x ? other : x;
    }
    return x;
}

// `row_sequence` is null where rows are not tokens. Rows of padding choose no expert: -1.
extern "C" __global__ void __launch_bounds__(THREADS)
    top_k(const float* logits, int* ids, float* weights, const int* row_sequence, int m) {
    let_next_start();
    int lane = threadIdx.x % 32, row = int(blockIdx.x) * WARPS + threadIdx.x / 32;
    wait_for_previous();
    if (row >= m) return;
    ids += u64(row) * K;
    weights += u64(row) * K;
    if (row_sequence != nullptr && row_sequence[row] < 0) {
        for (int j = lane; j < K; j += 32) {
            ids[j] = -1;
            weights[j] = 0.0f;
        }
        return;
    }
    logits += u64(row) * EXPERTS;
    float mine[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) mine[i] = i * 32 + lane < EXPERTS ? logits[i * 32 + lane] : 0.0f;

    u64 below = ~0ull;
    float max = 0.0f, sum = 0.0f, chosen[MINE];
#pragma unroll 1
    for (int j = 0; j < K; ++j) {
        u64 best = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            u64 k = key(mine[i], i * 32 + lane);
            if (i * 32 + lane < EXPERTS && k < below && k > best) best = k;
        }
        below = warp_max(best);
        int id = int(0xffffffffu - u32(below));
        float logit = logits[id];
        if (j == 0) max = logit;
        float weight = exp_portable(add(logit, -max));
        sum = j == 0 ? add(0.0f, weight) : add(sum, weight);
#pragma unroll
        for (int i = 0; i < MINE; ++i)
            if (j == i * 32 + lane) chosen[i] = weight;
        if (lane == 0) ids[j] = id;
    }
    if (OVER_ALL) {
        sum = 0.0f;
        // Lane i of the contract's sixteen takes every sixteenth logit: here two lanes hold them in turns.
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            float low = exp_portable(add(mine[i], -max));
            float high = __shfl_down_sync(~0u, low, 16);
            if (i * 32 + lane < EXPERTS) sum = add(sum, low);
            if (i * 32 + lane + 16 < EXPERTS) sum = add(sum, high);
        }
#pragma unroll
        for (int distance = 8; distance > 0; distance /= 2) sum = add(sum, __shfl_down_sync(~0u, sum, distance));
        sum = __shfl_sync(~0u, sum, 0);
    }
#pragma unroll
    for (int i = 0; i < MINE; ++i)
        if (i * 32 + lane < K) weights[i * 32 + lane] = __fdiv_rn(chosen[i], sum);
}

// starts[e] is the number of choices of experts before e; a warp beyond the last expert writes the end.
extern "C" __global__ void __launch_bounds__(THREADS) group(const int* ids, int* order, int* starts, int m) {
    let_next_start();
    int lane = threadIdx.x % 32, expert = int(blockIdx.x) * WARPS + threadIdx.x / 32, choices = m * K;
    wait_for_previous();
    if (expert > EXPERTS) return;
    int before = 0;
    for (int i = lane; i < choices; i += 32) {
        int id = ids[i];
        before += id >= 0 && id < expert;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(~0u, before, distance);
    if (lane == 0) starts[expert] = before;
    if (expert == EXPERTS) return;
    for (int first = 0; first < choices; first += 32) {
        bool mine = first + lane < choices && ids[first + lane] == expert;
        u32 who = __ballot_sync(~0u, mine);
        if (mine) order[before + __popc(who & ((1u << lane) - 1))] = first + lane;
        before += __popc(who);
    }
}
