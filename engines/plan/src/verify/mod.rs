//! Proves that a plan's tables make sense, before anything is allocated or run from them.
//!
//! What is checked, each with its own error:
//! - limits: none is zero; positions and ids fit `i32`; pool and arena sizes stay below 2^47 bytes;
//!   rows to sample are at most the tokens of a step
//! - card: the contract is this build's; vocabulary in range; ids fit `i32`; sampling defaults are finite
//! - text: no chat template or special token is named twice
//! - weights: names are unique with their layout; the layout holds the shape; the bytes are exactly the layout's;
//!   offsets are multiples of 64; each lies within `WDAT`; no two share bytes
//! - programs: at least one; unique by name, target and rank; the rank exists
//! - symbols: `t`, `s`, `r` in this order, the smallest at most the largest, the largest equal to the limit
//! - expressions: known symbols in ascending order, no zero coefficient, nothing beyond 2^40
//! - buffers: at least one column; offset a multiple of 64; within the arena at the symbols' bounds
//! - cache groups: at most eight; paged ones with blocks of one size, of 16, 32, 64 or 128 positions; windows, widths, heads not zero; keys and values are
//!   floats; each layer within the block, a multiple of 64 in it, none shares bytes with another; an attention's window
//!   is no larger than its group's
//! - launches: a kernel is named; at most 16 operands each way; parameters ascend by name and are finite
//! - operands: the place exists; the dtype is the place's; rows do not overlap; every element lies within the place
//!   for every value of the symbols; weights are used whole; inputs have their one shape; cache operands have no
//!   extents; outputs are buffers
//! - order: a launch's outputs share no bytes with each other nor with its inputs (but the sum of `add_rms_norm`
//!   with its residual); a launch reads a buffer only after one wrote it and before another overwrote its bytes
//! - modules, of CUDA programs only: machine code or PTX is there; kernel names are unique; blobs are multiples of 64
//!   within `CODE`, match their hashes, and differ wherever they are not the same; PTX is text without a NUL
//! - device launches, of CUDA programs only: every node has some, and in every step that has rows one of them runs;
//!   module and kernel exist; blocks are 32 to 1024 threads, a multiple of 32; shared memory and registers of a block
//!   are within what any device has; grids divide by no zero and are within a device's at the symbols' bounds;
//!   arguments name operands of the node, or for sampling the logits alone
//! - device operands: outputs after the kernel's own are workspace, all of an f32 buffer `[symbol, n]` that no other node
//!   reads; weights have layouts that the target's kernels read, GEMMs `Mma16` for 2-byte elements, else `RowMajor`
//! - logits: a buffer, `f32[r, vocab_size]`, written and not overwritten
//! - self-test: ids below the vocabulary, positions within the prompt, as many logits as promised, all finite
//!
//! Device code is trusted like a binary: it is proved that what it is given lies within its buffers, not what it does
//! with that. Whether it runs on the device that is there, and fits into it, the engine asks at load.
//!
//! Not here: what a kernel makes of its operands and parameters (the engine knows), whether a launch writes all of a
//! buffer that a later one reads (stale activations at worst, never bytes outside of the arena), whether strings are text
//! (the codec), whether the weights' bytes match their hashes (`Plan::verify_weights`).
//!
//! Coefficients are unsigned, so a size is largest at the symbols' bounds; where two sizes are compared, the
//! difference is linear in each symbol and its minimum over all values lies at a corner, which is where it is taken.

mod cache;
mod code;
mod device;
mod error;
mod order;
mod program;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashSet;

pub use error::VerifyError;
use lathe_numerics::contract::CONTRACT;

use crate::schema::{ModelCard, Program, SelfTest, TextConfig, Weight};

/// Largest id and position plus one: both are stored as `i32`.
const MAX_I32: u64 = 1 << 31;
/// No machine maps more; below it sums of a few sizes cannot overflow.
pub const MAX_BYTES: u64 = 1 << 47;
/// Bound of counts and extents, far above any model.
const MAX_EXTENT: u64 = 1 << 40;

/// The tables of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Section `CARD`.
    pub card: &'a ModelCard,
    /// Section `PROG`.
    pub programs: &'a [Program],
    /// Section `WTAB`.
    pub weights: &'a [Weight],
    /// Bytes of section `WDAT`.
    pub data_bytes: u64,
    /// Section `CODE`, empty where there is none.
    pub code: &'a [u8],
    /// Section `TEXT`.
    pub text: &'a TextConfig,
    /// Section `TEST`.
    pub self_test: Option<&'a SelfTest>,
}

/// The first thing about `parts` that does not hold, in the order of the list above. Takes time in proportion to
/// the tables, up to a logarithm.
pub fn verify(parts: &Parts<'_>) -> Result<(), VerifyError> {
    limits(parts.card)?;
    card(parts.card)?;
    text(parts.text)?;
    weights::check(parts.weights, parts.data_bytes)?;
    if parts.programs.is_empty() {
        return Err(VerifyError::NoProgram);
    }
    code::check(parts)?;
    let mut seen = HashSet::new();
    for p in parts.programs {
        if !seen.insert((&p.name, format!("{:?}", p.target), p.rank)) {
            return Err(VerifyError::ProgramTwice { program: p.name.clone() });
        }
        program::check(p, parts)?;
    }
    parts.self_test.map_or(Ok(()), |t| self_test(t, parts.card))
}

fn limits(card: &ModelCard) -> Result<(), VerifyError> {
    let l = &card.limits;
    for (name, value, most) in [
        ("max_batch", u64::from(l.max_batch), MAX_I32 - 1),
        ("max_num_tokens", u64::from(l.max_num_tokens), MAX_I32 - 1),
        ("max_sample_rows", u64::from(l.max_sample_rows), u64::from(l.max_num_tokens)),
        ("max_seq_len", u64::from(l.max_seq_len), MAX_I32 - 1),
        ("kv_tokens", l.kv_tokens, MAX_EXTENT),
    ] {
        if value == 0 || value > most {
            return Err(VerifyError::Limit { name, value, most });
        }
    }
    Ok(())
}

fn card(card: &ModelCard) -> Result<(), VerifyError> {
    if card.contract != CONTRACT.0 {
        return Err(VerifyError::Contract { found: card.contract, known: CONTRACT.0 });
    }
    let vocab = u64::from(card.vocab_size);
    if vocab == 0 || vocab > MAX_I32 {
        return Err(VerifyError::Vocabulary { vocab_size: card.vocab_size });
    }
    for id in card.eos_ids.iter().chain(&card.bos_id) {
        if u64::from(*id) >= MAX_I32 {
            return Err(VerifyError::SpecialId { id: *id });
        }
    }
    let g = &card.generation;
    for (name, value) in [
        ("temperature", g.temperature),
        ("top_p", g.top_p),
        ("min_p", g.min_p),
        ("repetition_penalty", g.repetition_penalty),
    ] {
        if value.is_some_and(|v| !v.is_finite() || v < 0.0) {
            return Err(VerifyError::Default { name });
        }
    }
    Ok(())
}

fn text(text: &TextConfig) -> Result<(), VerifyError> {
    for (what, pairs) in [("chat template", &text.chat_templates), ("special token", &text.special_tokens)] {
        let mut seen = HashSet::new();
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !seen.insert(name)) {
            return Err(VerifyError::TextTwice { what, name: name.clone() });
        }
    }
    Ok(())
}

fn self_test(test: &SelfTest, card: &ModelCard) -> Result<(), VerifyError> {
    for id in test.token_ids.iter().chain(&test.ids) {
        if *id >= card.vocab_size {
            return Err(VerifyError::SelfTestId { id: *id, vocab_size: card.vocab_size });
        }
    }
    let length = test.token_ids.len();
    if length == 0 || length > card.limits.max_seq_len as usize {
        return Err(VerifyError::SelfTestLength { length, max_seq_len: card.limits.max_seq_len });
    }
    if let Some(position) = test.positions.iter().find(|p| **p as usize >= length) {
        return Err(VerifyError::SelfTestPosition { position: *position, length });
    }
    let want = test.positions.len().checked_mul(test.ids.len());
    if want != Some(test.logits.len()) || test.logits.is_empty() {
        return Err(VerifyError::SelfTestLogits {
            positions: test.positions.len(),
            ids: test.ids.len(),
            logits: test.logits.len(),
        });
    }
    if !test.tolerance.is_finite() || test.tolerance < 0.0 || test.logits.iter().any(|l| !l.is_finite()) {
        return Err(VerifyError::SelfTestValue);
    }
    Ok(())
}
