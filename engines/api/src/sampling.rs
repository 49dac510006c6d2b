//! How tokens are drawn, and the per-sequence state that drawing needs.

/// Parameters of one draw. The order of application is fixed: bias, suppressed stops, penalties, mask, temperature,
/// min_p, top_k, top_p, then an inverse-CDF draw in ascending id order with a counter-based uniform number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 draws the largest logit, ties to the lowest id.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off; over prompt and output ids.
    pub repetition_penalty: f32,
    /// 0 is off; over output ids.
    pub presence_penalty: f32,
    /// 0 is off; over output ids.
    pub frequency_penalty: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Index of the choice among `n`.
    pub choice: u32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            choice: 0,
        }
    }
}

/// What `Engine::bind` puts into a slot when a sequence enters or re-enters it. The engine copies what it needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotState<'a> {
    /// Prompt ids, for the repetition penalty.
    pub prompt: &'a [u32],
    /// Ids generated so far (not empty after preemption).
    pub output: &'a [u32],
    /// Added to logits before all else; at most `vocab_size` entries, ids below `vocab_size`.
    pub logit_bias: &'a [(u32, f32)],
    /// Ids that are not drawn while a row says `suppress_stops`.
    pub stop_ids: &'a [u32],
}

/// Tokens that may be drawn, one bitset per sampled row.
#[derive(Clone, Copy, Debug)]
pub struct TokenMasks<'a> {
    /// `u32[r, words]`, bit `i % 32` of word `i / 32` allows token `i`.
    pub words: &'a [u32],
    /// Words per row: `vocab_size.div_ceil(32)`.
    pub words_per_row: usize,
}
