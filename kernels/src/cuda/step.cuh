// What every step brings to the device. Mirrors engines/device/src/tables.rs; a test compares sizes and offsets.
#pragma once
#include "lathe.cuh"

namespace lathe {

struct Sequence {
    int q_start, q_len, kv_len, blocks_start;
};

enum Want { WANT_SAMPLE = 0, WANT_SCORE = 1, WANT_LOGITS = 2 };

struct DrawParams {
    int slot;
    u32 position;
    int want;
    int score_id;
    float temperature;
    u32 top_k;
    float top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    u32 n_bias, n_stops;
    int n_top;
    u32 masked, choice;
    u64 seed;
};
static_assert(sizeof(DrawParams) == 72, "tables.rs");

struct Answer {
    int id;
    float logprob;
    u32 rank, n_top;
    int top_ids[20];
    float top_logprobs[20];
};
static_assert(sizeof(Answer) == 176, "tables.rs");

}  // namespace lathe
