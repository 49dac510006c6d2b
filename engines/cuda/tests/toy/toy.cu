// A model small enough to be done by hand on the host: every table of a step enters its answers, and all its numbers
// are integers that f32 holds, so that the answers are exact in any order.
#include "step.cuh"
using namespace lathe;

constexpr int WIDTH = 32;
constexpr int BLOCK = 16;
constexpr int BLOCK_STRIDE = 2048;  // two layers of keys and values

extern "C" __global__ void look_up(const float* table, const int* tokens, const int* drawn, float* x) {
    int id = tokens[blockIdx.x];
    if (id < 0) id = drawn[-1 - id];
    if (id < 0) id = 0;
    x[blockIdx.x * WIDTH + threadIdx.x] = table[id * WIDTH + threadIdx.x];
}

// Writes a row's vector into its sequence's cache.
extern "C" __global__ void append(const float* x, const int* positions, float* cache, const int* row_sequence,
                                  const Sequence* sequences, const int* blocks) {
    int row = blockIdx.x, of = row_sequence[row];
    if (of < 0) return;
    Sequence s = sequences[of];
    int position = s.kv_len - s.q_len + (row - s.q_start);
    int block = blocks[s.blocks_start + position / BLOCK];
    float* slot = cache + block * BLOCK_STRIDE + positions[row] % BLOCK * WIDTH;
    slot[threadIdx.x] = x[row * WIDTH + threadIdx.x];
}

// y = x + sum of (p + 1) times the vector at p, over the positions up to the row's own.
extern "C" __global__ void mix(const float* x, const float* cache, const int* row_sequence, const Sequence* sequences,
                               const int* blocks, float* y) {
    int row = blockIdx.x, of = row_sequence[row];
    if (of < 0) return;
    Sequence s = sequences[of];
    int position = s.kv_len - s.q_len + (row - s.q_start);
    float sum = x[row * WIDTH + threadIdx.x];
    #pragma unroll 1
    for (int p = 0; p <= position; ++p) {
        int block = blocks[s.blocks_start + p / BLOCK];
        sum += float(p + 1) * cache[block * BLOCK_STRIDE + p % BLOCK * WIDTH + threadIdx.x];
    }
    y[row * WIDTH + threadIdx.x] = sum;
}

extern "C" __global__ void pick(const float* y, const int* sample_rows, float* z) {
    z[blockIdx.x * WIDTH + threadIdx.x] = y[sample_rows[blockIdx.x] * WIDTH + threadIdx.x];
}

// For few rows: one block per 32 ids of a row.
extern "C" __global__ void score_few(const float* z, const float* table, float* logits, u32 vocab) {
    u32 id = blockIdx.x * 32 + threadIdx.x;
    if (id >= vocab) return;
    float sum = 0;
    #pragma unroll 1
    for (int i = 0; i < WIDTH; ++i) sum += z[blockIdx.y * WIDTH + i] * table[id * WIDTH + i];
    logits[blockIdx.y * vocab + id] = sum;
}

// For many: blocks stride over all of it.
extern "C" __global__ void score_many(const float* z, const float* table, float* logits, u32 vocab, u32 rows) {
    #pragma unroll 1
    for (u32 at = blockIdx.x * 32 + threadIdx.x; at < rows * vocab; at += gridDim.x * 32) {
        float sum = 0;
        #pragma unroll 1
        for (int i = 0; i < WIDTH; ++i) sum += z[at / vocab * WIDTH + i] * table[at % vocab * WIDTH + i];
        logits[at] = sum;
    }
}

// A stand-in for the sampler: the largest score wins, penalties are subtracted, the logit is the log probability.
extern "C" __global__ void draw(const float* logits, const DrawParams* params, const u32* masks, u32* counts,
                                const u32* bias, const int* stops, Answer* answers, int* drawn, float* scores, u32 vocab) {
    if (threadIdx.x != 0) return;
    u32 row = blockIdx.x;
    DrawParams p = params[row];
    const float* raw = logits + row * vocab;
    float* s = scores + row * vocab;
    u32* count = counts + p.slot * vocab;
    const float none = -__uint_as_float(0x7f800000);
    Answer a = {};
    a.id = -1;
    drawn[row] = -1;
    if (p.want == WANT_SCORE) a.id = p.score_id;
    if (p.want == WANT_SAMPLE) {
        #pragma unroll 1
        for (u32 v = 0; v < vocab; ++v) {
            u32 c = count[v], n = c & 0x7fffffffu;
            s[v] = raw[v] - p.frequency_penalty * float(n) - (n ? p.presence_penalty : 0.0f) -
                   (c ? p.repetition_penalty - 1.0f : 0.0f);
        }
        #pragma unroll 1
        for (u32 i = 0; i < p.n_bias; ++i) {
            const u32* pair = bias + (p.slot * 1024 + i) * 2;
            s[pair[0]] += __uint_as_float(pair[1]);
        }
        #pragma unroll 1
        for (u32 i = 0; i < p.n_stops; ++i) s[stops[p.slot * 128 + i]] = none;
        float best = none;
        #pragma unroll 1
        for (u32 v = 0; v < vocab; ++v) {
            bool allowed = !p.masked || (masks[row * ((vocab + 31) / 32) + v / 32] >> (v % 32) & 1);
            if (allowed && s[v] > best) {
                best = s[v];
                a.id = int(v);
            }
        }
        drawn[row] = a.id;
        if (a.id >= 0) count[a.id] += 1;
    }
    if (a.id >= 0 && p.n_top >= 0) {
        a.logprob = raw[a.id];
        a.rank = 1;
        #pragma unroll 1
        for (u32 v = 0; v < vocab; ++v) a.rank += raw[v] > a.logprob;
        #pragma unroll 1
        for (; int(a.n_top) < p.n_top; ++a.n_top) {
            int best = -1;
            #pragma unroll 1
            for (u32 v = 0; v < vocab; ++v) {
                bool taken = false;
                #pragma unroll 1
                for (u32 i = 0; i < a.n_top; ++i) taken |= a.top_ids[i] == int(v);
                if (!taken && (best < 0 || raw[v] > raw[best])) best = int(v);
            }
            a.top_ids[a.n_top] = best;
            a.top_logprobs[a.n_top] = raw[best];
        }
    }
    answers[row] = a;
}
