//! Device memory that every step brings, the same for all CUDA programs: `kernels/src/cuda/step.cuh` mirrors it.

/// A table. `i32` unless said otherwise; padding is how a step fills a larger captured graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub enum StepTable {
    /// `[t]` token ids; `-1 - row` is the id that the step before drew for its sampled row `row`. Padding: 0.
    Tokens,
    /// `[t]` absolute positions. Padding: 0.
    Positions,
    /// `[t]` index of the row's sequence in `Sequences`. Padding: -1; such a row writes no KV and may hold anything.
    RowSequence,
    /// `[s]` [`Sequence`], in ascending row order. Padding: all zero.
    Sequences,
    /// Flat block ids of the node's cache group, a table per group: a sequence starts at the same place in each. -1 where
    /// none of its rows sees any of the block's positions; no kernel reads such an entry.
    Blocks,
    /// `[r]` rows whose logits are wanted. Padding: 0.
    SampleRows,
    /// `[max_sample_rows]` ids drawn last, -1 for none; written by the sampler.
    Drawn,
    /// `[r]` [`DrawParams`]. Padding: `want` is `WANT_LOGITS`.
    DrawParams,
    /// `u32[r, ceil(vocab / 32)]` bitsets of ids that may be drawn, for rows whose parameters say so.
    Masks,
    /// `[max_batch, vocab]` per slot: how often the id was generated (bits 0..31), bit 31: it is in the prompt.
    Counts,
    /// `[max_batch, MAX_LOGIT_BIAS]` pairs of id and f32 bits, per slot.
    Bias,
    /// `[max_batch, MAX_STOP_IDS]` ids, per slot.
    Stops,
    /// `[r]` [`Answer`]; written by the sampler.
    Answers,
    /// `f32[r, vocab]` working memory of the sampler.
    Scores,
}

/// One sequence of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sequence {
    /// First row.
    pub q_start: i32,
    /// Rows; their positions are `kv_len - q_len .. kv_len`.
    pub q_len: i32,
    /// Positions in the cache after this step.
    pub kv_len: i32,
    /// Start of its block ids in `Blocks`.
    pub blocks_start: i32,
}

/// Most entries of a request's logit bias; room for them is reserved per sequence.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most ids that end a sequence; room for them is reserved per sequence.
pub const MAX_STOP_IDS: usize = 128;
/// `DrawParams::want`: draw a token.
pub const WANT_SAMPLE: i32 = 0;
/// `DrawParams::want`: report the logprob of `score_id`.
pub const WANT_SCORE: i32 = 1;
/// `DrawParams::want`: nothing but the logits.
pub const WANT_LOGITS: i32 = 2;

/// How one row is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct DrawParams {
    /// Slot of the sequence.
    pub slot: i32,
    /// Absolute position of the token to draw; counter of the random number.
    pub position: u32,
    /// One of the `WANT_` values.
    pub want: i32,
    /// Id to score.
    pub score_id: i32,
    /// 0 draws the largest logit.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// Entries of the slot's bias list.
    pub n_bias: u32,
    /// Entries of the slot's stop list that are not drawn; 0 unless stops are suppressed.
    pub n_stops: u32,
    /// Alternatives to report; -1 reports no logprobs.
    pub n_top: i32,
    /// 1 if the row's bitset in `Masks` applies.
    pub masked: u32,
    /// Index of the choice among `n`.
    pub choice: u32,
    /// Key of the random numbers.
    pub seed: u64,
}

/// What the sampler says of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Answer {
    /// Drawn or scored id; -1 where none may be drawn.
    pub id: i32,
    /// Natural logarithm of its probability under the raw logits.
    pub logprob: f32,
    /// 1 is the likeliest id.
    pub rank: u32,
    /// Alternatives that follow.
    pub n_top: u32,
    /// Ids of the likeliest, most likely first.
    pub top_ids: [i32; 20],
    /// Their log probabilities.
    pub top_logprobs: [f32; 20],
}

impl StepTable {
    /// Every table.
    pub const ALL: [StepTable; 14] = [
        StepTable::Tokens,
        StepTable::Positions,
        StepTable::RowSequence,
        StepTable::Sequences,
        StepTable::Blocks,
        StepTable::SampleRows,
        StepTable::Drawn,
        StepTable::DrawParams,
        StepTable::Masks,
        StepTable::Counts,
        StepTable::Bias,
        StepTable::Stops,
        StepTable::Answers,
        StepTable::Scores,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_size_that_kernels_read() {
        assert_eq!(size_of::<Sequence>(), 16);
        assert_eq!(size_of::<DrawParams>(), 72);
        assert_eq!(size_of::<Answer>(), 176);
    }
}
