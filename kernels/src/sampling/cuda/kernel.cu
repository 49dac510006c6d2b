// From logits to tokens: what sampling/mod.rs says, a block per row. `draw` chooses ids; `report` counts what was drawn
// and says how likely it was, after every row has been drawn from the counts before the step.
//
// Weights are summed as integers of 2^-45, so no sum has an order and every run gives the same bits. Ids stand in one
// total order, largest logit first, then lowest id; a cut of that order is a number (`edge`) that ids are compared with.
// Macros: VOCAB, at most 2^18; MAX_BIAS and MAX_STOPS, the lengths of the lists per slot; MAX_TOP.
#include "step.cuh"
using namespace lathe;

constexpr int THREADS = 1024;
constexpr int RUN = 4;  // ids in a row of one thread
constexpr int PIECE = 32 * RUN;
constexpr int PIECES = (VOCAB + PIECE - 1) / PIECE;
constexpr int BINS = 2048;
constexpr int BIN_BITS = 11;
constexpr int LIST = 1024;
constexpr int ID_BITS = 18;
constexpr u64 EVERYTHING = ~u64(0);
constexpr float BINS_PER_NAT = 64.0f;
constexpr float MASS_ONE = 35184372088832.0f;  // 2^45
static_assert(VOCAB <= 1 << ID_BITS && PIECES <= BINS && BINS == 2 * THREADS && LIST <= THREADS, "ranges");

struct Bias {
    u32 id;
    float value;
};

struct Block {
    u32 count[BINS];
    // One at a time: bins of mass, sums of pieces, a list of candidates.
    union {
        struct {
            u32 low[BINS], high[BINS];
        };
        u64 piece[BINS];
        struct {
            u64 order[LIST], amount[LIST];
        };
    };
    u64 warps[32];
    u64 found_before;
    u64 edge;
    u32 found_index, found_count, n_listed;
};

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ u64 mass(float weight) { return __float2ull_rn(mul(weight, MASS_ONE)); }

// Unsigned integers in the order of floats.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ (u32(int(bits) >> 31) | 0x80000000u);
}
__device__ __forceinline__ float of_key(u32 key) {
    return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}
// Ascending: largest first, then lowest id.
__device__ __forceinline__ u64 order_of(float x, int id) { return u64(~key_of(x)) << ID_BITS | u32(id); }

// Calls f(start, x) for RUN ids from `start` on, ascending per thread; whole warps together. Lanes past the row see
// NaN, which counts nowhere.
template <class F>
__device__ __forceinline__ void each_run(const float* row, F f) {
    auto load = [&](int start, float(&x)[RUN]) {
        if (VOCAB % RUN == 0) {
            Vec<float, RUN> v;
#pragma unroll
            for (int j = 0; j < RUN; j++) v.at[j] = not_a_number();
            if (start < VOCAB) v = *reinterpret_cast<const Vec<float, RUN>*>(row + start);
#pragma unroll
            for (int j = 0; j < RUN; j++) x[j] = v.at[j];
        } else {
#pragma unroll
            for (int j = 0; j < RUN; j++) x[j] = start + j < VOCAB ? row[start + j] : not_a_number();
        }
    };
    int warp_start = int(threadIdx.x) / 32 * PIECE, lane_start = int(threadIdx.x) * RUN;
    float next[RUN];
    load(lane_start, next);
#pragma unroll 1
    for (int base = 0; base + warp_start < VOCAB; base += THREADS * RUN) {
        float x[RUN];
#pragma unroll
        for (int j = 0; j < RUN; j++) x[j] = next[j];
        load(base + THREADS * RUN + lane_start, next);
        f(base + lane_start, x);
    }
}

struct Sums {
    u64 before, total;
};

__device__ __forceinline__ u64 warp_scan(u64 x) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        u64 other = __shfl_up_sync(~0u, x, distance);
        if (int(threadIdx.x % 32) >= distance) x += other;
    }
    return x;
}

// Of one number per thread: the sum of the threads before, and of all.
__device__ __forceinline__ Sums block_scan(Block& s, u64 x) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 upto = warp_scan(x);
    if (lane == 31) s.warps[warp] = upto;
    __syncthreads();
    u64 warps = s.warps[lane];
    u64 warps_upto = warp_scan(warps);
    Sums sums = {__shfl_sync(~0u, warps_upto - warps, warp) + upto - x, __shfl_sync(~0u, warps_upto, 31)};
    __syncthreads();
    return sums;
}

__device__ __forceinline__ u64 block_max(Block& s, u64 x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        u64 other = __shfl_xor_sync(~0u, x, distance);
        x = other > x ? other : x;
    }
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = s.warps[threadIdx.x % 32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        u64 other = __shfl_xor_sync(~0u, x, distance);
        x = other > x ? other : x;
    }
    __syncthreads();
    return x;
}

// Marks the one of this thread's two numbers at which the sum of all before it and itself first reaches `want`.
__device__ __forceinline__ void mark(Block& s, u64 before, u64 want, const u64 (&amount)[2], const u32 (&count)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (before < want && want <= before + amount[i]) {
            s.found_index = 2 * threadIdx.x + i;
            s.found_before = before;
            s.found_count = count[i];
        }
        before += amount[i];
    }
}

// How a row is cut into bins: distance to the maximum, 1 / scale wide; the last one holds all that is lower.
struct Scale {
    float max, scale;
    __device__ __forceinline__ int bin(float x) const {
        float at = mul(add(max, -x), scale);
        return at < float(BINS - 1) ? int(at) : BINS - 1;
    }
};

// The edge after the shortest prefix, within `edge`, of the order whose amounts reach want(their total); `edge` itself
// where want is 0. Ids with amount 0 are passed over. `zero` is +0 to make -0 equal 0, or -0 to tell them apart.
template <class Amount, class Want>
__device__ __forceinline__ u64 cut(Block& s, const float* row, Scale scale, float zero, u64 edge, Amount amount,
                                   Want want) {
    int tid = threadIdx.x;
    u32 bin = 0;
    u64 goal = 0, before = 0, prefix = 0;
    int shift = 0, narrower = 0;
    // Of the bin that the cut goes through: ids whose order starts with `prefix`.
    auto inside = [&](float x, u64 order) { return scale.bin(x) == int(bin) && order >> shift == prefix; };
#pragma unroll 1
    for (int level = 0;; level++) {
#pragma unroll
        for (int i = tid; i < BINS; i += THREADS) s.count[i] = s.low[i] = s.high[i] = 0;
        __syncthreads();
        u32 mask = (1u << (shift - narrower)) - 1;
        each_run(row, [&](int start, const float(&run)[RUN]) {
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                float x = add(run[j], zero);
                u64 order = order_of(x, start + j);
                if (order > edge) continue;
                if (level > 0 && !inside(x, order)) continue;
                u64 a = amount(x);
                if (a == 0) continue;
                u32 at = level == 0 ? u32(scale.bin(x)) : u32(order >> narrower) & mask;
                atomicAdd(&s.count[at], 1u);
                u32 old = atomicAdd(&s.low[at], u32(a));
                u32 high = u32(a >> 32) + (old + u32(a) < old);
                if (high != 0) atomicAdd(&s.high[at], high);
            }
        });
        __syncthreads();
        u64 amounts[2];
        u32 counts[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = 2 * tid + i;
            amounts[i] = u64(s.high[at]) << 32 | s.low[at];
            counts[i] = s.count[at];
        }
        Sums sums = block_scan(s, amounts[0] + amounts[1]);
        if (level == 0) {
            goal = want(sums.total);
            if (goal == 0) return edge;
        }
        mark(s, before + sums.before, goal, amounts, counts);
        __syncthreads();
        before = s.found_before;
        if (level == 0) {
            bin = s.found_index;
            shift = 32 + ID_BITS;
        } else {
            prefix = prefix << (shift - narrower) | s.found_index;
            shift = narrower;
        }
        narrower = shift > BIN_BITS ? shift - BIN_BITS : 0;
        if (s.found_count <= LIST) break;
    }
    if (tid == 0) s.n_listed = 0;
    __syncthreads();
    each_run(row, [&](int start, const float(&run)[RUN]) {
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            float x = add(run[j], zero);
            u64 order = order_of(x, start + j);
            if (order > edge || !inside(x, order)) continue;
            u64 a = amount(x);
            if (a == 0) continue;
            u32 slot = atomicAdd(&s.n_listed, 1u);
            s.order[slot] = order;
            s.amount[slot] = a;
        }
    });
    __syncthreads();
    int n = s.n_listed;
    if (tid < n) {
        u64 mine = s.order[tid];
        for (int i = 0; i < n; i++)
            if (s.order[i] < mine) before += s.amount[i];
        if (before < goal && goal <= before + s.amount[tid]) s.edge = mine;
    }
    __syncthreads();
    edge = s.edge;
    __syncthreads();
    return edge;
}

// The lowest id of the largest logit above minus infinity: key, then inverted id. 0 where there is none.
struct Best {
    float x = -infinity();
    u32 id = 0;
    __device__ __forceinline__ void see(int start, const float (&run)[RUN]) {
#pragma unroll
        for (int j = 0; j < RUN; j++)
            if (run[j] > x) {
                x = run[j];
                id = start + j;
            }
    }
    __device__ __forceinline__ u64 of_block(Block& s) const {
        u64 mine = x > -infinity() ? u64(key_of(add(x, 0.0f))) << 32 | u32(~id) : 0;
        return block_max(s, mine);
    }
};

// 24 bits of Philox4x32-10, see numerics/src/philox.rs.
__device__ __forceinline__ u32 uniform24(u64 seed, u32 choice, u32 position) {
    u32 c0 = position, c1 = choice, c2 = 0, c3 = 0, k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0 >> 8;
}

// True for the first entry of a list with its id: threads take entries, and only one may touch an id.
template <class Id>
__device__ __forceinline__ bool first_with_id(int i, Id id) {
    for (int j = 0; j < i; j++)
        if (id(j) == id(i)) return false;
    return id(i) < u32(VOCAB);
}

// Logits with bias added and suppressed ids at minus infinity, into `own`.
__device__ __forceinline__ void apply_lists(const float* row, float* own, const Bias* bias, int n_bias,
                                            const u32* stops, int n_stops) {
    int tid = threadIdx.x;
    for (int id = tid; id < VOCAB; id += THREADS) own[id] = row[id];
    __syncthreads();
    auto bias_id = [&](int i) { return bias[i].id; };
    for (int i = tid; i < n_bias; i += THREADS) {
        if (!first_with_id(i, bias_id)) continue;
        float x = own[bias_id(i)];
        for (int j = i; j < n_bias; j++)
            if (bias_id(j) == bias_id(i)) x = add(x, bias[j].value);
        own[bias_id(i)] = x;
    }
    __syncthreads();
    auto stop_id = [&](int i) { return stops[i]; };
    for (int i = tid; i < n_stops; i += THREADS)
        if (first_with_id(i, stop_id)) own[stops[i]] = -infinity();
    __syncthreads();
}

__device__ __forceinline__ float penalise(float x, u32 count, const DrawParams& p) {
    if (count == 0) return x;
    x = x > 0.0f ? __fdiv_rn(x, p.repetition_penalty) : mul(x, p.repetition_penalty);
    u32 outputs = count & 0x7fffffffu;
    if (outputs > 0) x = add(x, -add(mul(p.frequency_penalty, __uint2float_rn(outputs)), p.presence_penalty));
    return x;
}

// The id to draw, or -1.
__device__ __forceinline__ int draw_row(Block& s, const DrawParams& p, const float* row, const u32* mask,
                                        const u32* counts, const Bias* bias, const u32* stops, float* own) {
    if (p.n_bias | p.n_stops) {
        apply_lists(row, own, bias, min(p.n_bias, MAX_BIAS), stops, min(p.n_stops, MAX_STOPS));
        row = own;
    }
    bool penalised = p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
    Best mine;
    if (penalised || p.masked) {
        each_run(row, [&](int start, const float(&run)[RUN]) {
            float x[RUN];
            u32 allowed = p.masked && start < VOCAB ? mask[start / 32] >> start % 32 : ~0u;
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                x[j] = run[j];
                if (start + j >= VOCAB) continue;
                if (penalised) x[j] = penalise(x[j], counts[start + j], p);
                if (!(allowed >> j & 1)) x[j] = -infinity();
                own[start + j] = x[j];
            }
            mine.see(start, x);
        });
        row = own;
    } else {
        each_run(row, [&](int start, const float(&run)[RUN]) { mine.see(start, run); });
    }
    u64 best = mine.of_block(s);
    if (best == 0) return -1;
    int best_id = int(~u32(best));
    float max = of_key(u32(best >> 32)), temperature = p.temperature, min_p = p.min_p;
    // Not above zero, or NaN: greedy. An infinite logit leaves nothing to weigh.
    if (!(temperature > 0.0f) || max == infinity()) return best_id;

    // Below this exponent a weight is zero or below min_p for certain.
    float least = -87.0f;
    if (min_p > 0.0f) least = fmaxf(least, logf(min_p) - 1e-3f);
    auto exponent = [&](float x) { return __fdiv_rn(add(x, -max), temperature); };
    auto weight = [&](float x) {
        float q = exponent(x);
        if (!(q >= least)) return 0.0f;
        float e = exp_portable(q);
        return e >= min_p ? e : 0.0f;
    };
    u64 edge = EVERYTHING;
    u32 k = p.top_k;
    bool top_p = p.top_p < 1.0f;
#pragma unroll 1
    for (int by_mass = k > 0 && k < VOCAB ? 0 : 1; by_mass < (top_p ? 2 : 1); by_mass++) {
        auto amount = [&](float x) -> u64 {
            if (by_mass) return mass(weight(x));
            return min_p <= 0.0f ? exponent(x) >= least : weight(x) > 0.0f;
        };
        auto want = [&](u64 total) -> u64 {
            if (!by_mass) return total > k ? k : 0;
            if (total == 0) return 0;
            u64 share = p.top_p > 0.0f ? __float2ull_rz(mul(p.top_p, 18446744073709551616.0f)) : 0;
            u64 goal = __umul64hi(share, total) + (share * total != 0);
            return goal > 0 ? goal : 1;
        };
        edge = cut(s, row, {max, __fdiv_rn(BINS_PER_NAT, temperature)}, -0.0f, edge, amount, want);
    }

    // By ascending id: the piece, then the id, at which the sum of weights passes the random share of all.
    auto kept = [&](float x, int id) { return order_of(x, id) <= edge ? mass(weight(x)) : 0; };
    int lane = threadIdx.x % 32;
    each_run(row, [&](int start, const float(&run)[RUN]) {
        u64 sum = 0;
#pragma unroll
        for (int j = 0; j < RUN; j++) sum += kept(run[j], start + j);
        if (__any_sync(~0u, sum != 0)) {
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        }
        if (lane == 0) s.piece[start / PIECE] = sum;
    });
    __syncthreads();
    u64 amounts[2];
    u32 counts_unused[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = 2 * threadIdx.x + i;
        amounts[i] = at < PIECES ? s.piece[at] : 0;
    }
    Sums sums = block_scan(s, amounts[0] + amounts[1]);
    // Only a min_p above 1 leaves nothing.
    if (sums.total == 0) return best_id;
    u64 goal = __umul64hi(u64(uniform24(p.seed, p.choice, p.position)) << 40, sums.total) + 1;
    mark(s, sums.before, goal, amounts, counts_unused);
    __syncthreads();
    if (threadIdx.x < 32) {
        int start = s.found_index * PIECE + lane * RUN;
        u64 masses[RUN], sum = 0;
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            masses[j] = start + j < VOCAB ? kept(row[start + j], start + j) : 0;
            sum += masses[j];
        }
        u64 before = s.found_before + warp_scan(sum) - sum;
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            if (before < goal && goal <= before + masses[j]) s.n_listed = start + j;
            before += masses[j];
        }
    }
    __syncthreads();
    return s.n_listed;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    draw(const float* logits, const DrawParams* params, const u32* masks, const u32* counts, const Bias* bias,
         const u32* stops, float* scores, Answer* answers, int* drawn) {
    __shared__ Block s;
    let_next_start();
    wait_for_previous();
    int r = blockIdx.x;
    const DrawParams p = params[r];
    int id = p.want == WANT_SCORE ? p.score_id : -1;
    if (p.want == WANT_SAMPLE) {
        id = draw_row(s, p, logits + u64(r) * VOCAB, masks + u64(r) * ((VOCAB + 31) / 32), counts + u64(p.slot) * VOCAB,
                      bias + u64(p.slot) * MAX_BIAS, stops + u64(p.slot) * MAX_STOPS, scores + u64(r) * VOCAB);
    }
    if (threadIdx.x == 0) {
        answers[r].id = id;
        drawn[r] = p.want == WANT_SAMPLE ? id : -1;
    }
}

// Entries of the table past the alternatives hold nothing of an earlier step.
__device__ __forceinline__ void no_alternatives(Answer* answer, int from) {
    int i = threadIdx.x;
    if (i < from || i >= MAX_TOP) return;
    answer->top_ids[i] = -1;
    answer->top_logprobs[i] = not_a_number();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    report(const float* logits, const DrawParams* params, u32* counts, Answer* answers) {
    __shared__ Block s;
    let_next_start();
    wait_for_previous();
    int r = blockIdx.x, tid = threadIdx.x;
    const DrawParams p = params[r];
    Answer* answer = answers + r;
    int id = answer->id;
    bool known = id >= 0 && id < VOCAB;
    // Rows of one slot may have drawn one id.
    if (tid == 0 && known && p.want == WANT_SAMPLE) atomicAdd(counts + u64(p.slot) * VOCAB + id, 1u);
    if (p.n_top < 0 || p.want == WANT_LOGITS) {
        if (tid == 0) {
            answer->logprob = not_a_number();
            answer->rank = 0;
            answer->n_top = 0;
        }
        no_alternatives(answer, 0);
        return;
    }
    const float* row = logits + u64(r) * VOCAB;
    Best mine;
    each_run(row, [&](int start, const float(&run)[RUN]) { mine.see(start, run); });
    u64 best = mine.of_block(s);
    float max = best == 0 ? -infinity() : of_key(u32(best >> 32));
    bool finite = max != infinity() && max != -infinity();
    float x = known ? row[id] : not_a_number();
    u64 sum = 0, ahead = 0;
    each_run(row, [&](int start, const float(&run)[RUN]) {
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            ahead += run[j] > x || (run[j] == x && start + j < id);
            if (finite && run[j] == run[j]) sum += mass(exp_portable(add(run[j], -max)));
        }
    });
    ahead = block_scan(s, ahead).total;
    sum = block_scan(s, sum).total;
    float log_sum = finite ? logf(mul(__ull2float_rn(sum), 1.0f / MASS_ONE)) : 0.0f;
    auto logprob = [&](float x) { return x != x ? -infinity() : add(add(x, -max), -log_sum); };

    u32 n_top = min(p.n_top, MAX_TOP);
    u64 edge = 0;
    if (n_top > 0)
        edge = cut(
            s, row, {max, BINS_PER_NAT}, 0.0f, EVERYTHING, [](float x) -> u64 { return x == x; },
            [&](u64 total) -> u64 { return total > n_top ? n_top : 0; });
    if (tid == 0) s.n_listed = 0;
    __syncthreads();
    if (n_top > 0)
        each_run(row, [&](int start, const float(&run)[RUN]) {
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                float v = add(run[j], 0.0f);
                u64 order = order_of(v, start + j);
                if (v != v || order > edge) continue;
                s.order[atomicAdd(&s.n_listed, 1u)] = order;
            }
        });
    __syncthreads();
    int n = s.n_listed;
    no_alternatives(answer, n);
    if (tid < n) {
        u64 own = s.order[tid];
        int rank = 0;
        for (int i = 0; i < n; i++) rank += s.order[i] < own;
        answer->top_ids[rank] = int(own & ((1 << ID_BITS) - 1));
        answer->top_logprobs[rank] = logprob(of_key(~u32(own >> ID_BITS)));
    }
    if (tid == 0) {
        answer->logprob = known ? logprob(x) : not_a_number();
        answer->rank = known ? u32(ahead) + 1 : VOCAB + 1;
        answer->n_top = n;
    }
}
