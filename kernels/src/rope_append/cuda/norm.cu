// As kernel.cu, with norms of query and key before they rotate: over each head, a warp each, or over all heads of a row, a
// block for the queries, one for the keys and one for the values. Order of the sums: mod.rs.
// Macros: as kernel.cu; OVER_ROW.
#include "rms_norm.cuh"
#include "rope_append.cuh"
using namespace lathe;

constexpr int ALL_HEADS = HEADS + 2 * KV_HEADS;
constexpr int SLOTS = HEAD_DIM / (2 * VEC);
// Threads that normalise something together.
constexpr int TEAM = OVER_ROW ? THREADS : 32;

__device__ __forceinline__ float team_sum(float x) {
    x = warp_sum(x);
#if OVER_ROW
    __shared__ float partial[32];
    int lane = threadIdx.x % 32;
    if (lane == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(lane < THREADS / 32 ? partial[lane] : 0.0f);
#endif
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_rope_append(const float* qkv, const int* positions, const float* table, u8* cache, const float* q_norm,
                     const float* k_norm, ELEMENT* q, const int* row_sequence, const Sequence* sequences,
                     const int* blocks, float eps) {
    let_next_start();
    int row = blockIdx.x, member = threadIdx.x % TEAM;
#if OVER_ROW
    int first_head = blockIdx.y == 0 ? 0 : HEADS + int(blockIdx.y - 1) * KV_HEADS;
    int heads = blockIdx.y == 0 ? HEADS : KV_HEADS;
#else
    int first_head = int(blockIdx.y) * (THREADS / 32) + int(threadIdx.x) / 32;
    int heads = 1;
    if (first_head >= ALL_HEADS) return;
#endif
    bool norms = first_head < HEADS + KV_HEADS;
    const float* weight = first_head < HEADS ? q_norm : k_norm;
    wait_for_previous();
    const float* x = qkv + (u64(row) * ALL_HEADS + first_head) * HEAD_DIM;
    float inverse = 1.0f;
    if (norms) {
        float sum = 0.0f;
        for (int i = member * VEC; i < heads * HEAD_DIM; i += TEAM * VEC)
            sum = add_squares(sum, reinterpret_cast<const Vec<float, VEC>*>(x + i)->at);
        inverse = inverse_rms(team_sum(sum), heads * HEAD_DIM, eps);
    }
    for (int unit = member; unit < heads * SLOTS; unit += TEAM) {
        int head = first_head + unit / SLOTS, start = unit / SLOTS * HEAD_DIM;
        Share<VEC, ROTARY> share(unit % SLOTS);
        auto a = *reinterpret_cast<const Vec<float, VEC>*>(x + start + share.first);
        auto b = *reinterpret_cast<const Vec<float, VEC>*>(x + start + share.second);
        float y[VEC], z[VEC];
#pragma unroll
        for (int i = 0; i < VEC; i++) y[i] = a.at[i], z[i] = b.at[i];
        if (norms) {
            const float* w = weight + start;
            auto c = *reinterpret_cast<const Vec<float, VEC>*>(w + share.first);
            auto d = *reinterpret_cast<const Vec<float, VEC>*>(w + share.second);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                y[i] = mul(mul(y[i], inverse), c.at[i]);
                z[i] = mul(mul(z[i], inverse), d.at[i]);
            }
            if (share.rotates()) {
                const float* turns = table + u64(positions[row]) * ROTARY;
                rotate(y, z, turns + share.first, turns + share.second);
            }
        }
        if (head < HEADS) {
            ELEMENT* to = q + (u64(row) * HEADS + head) * HEAD_DIM;
            store_run(to + share.first, y);
            store_run(to + share.second, z);
        } else {
            append(cache, row, head, share.first, share.second, y, z, row_sequence, sequences, blocks);
        }
    }
}
