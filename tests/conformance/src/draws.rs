//! Rows to draw, and what the CPU is told of them.

use lathe_device::{DrawParams, WANT_SAMPLE};
use lathe_kernels::sampling::Params;

/// The likeliest id of slot 0, without logprobs.
pub const GREEDY: DrawParams = DrawParams {
    slot: 0,
    position: 5,
    want: WANT_SAMPLE,
    score_id: -1,
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repetition_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    n_bias: 0,
    n_stops: 0,
    n_top: -1,
    masked: 0,
    choice: 0,
    seed: 11,
};

/// A device's parameters as the CPU's kernel takes them.
pub fn cpu(p: &DrawParams) -> Params {
    Params {
        temperature: p.temperature,
        top_k: p.top_k,
        top_p: p.top_p,
        min_p: p.min_p,
        repetition_penalty: p.repetition_penalty,
        presence_penalty: p.presence_penalty,
        frequency_penalty: p.frequency_penalty,
        seed: p.seed,
        choice: p.choice,
    }
}
