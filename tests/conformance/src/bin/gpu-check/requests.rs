//! Steps made by hand: a prompt in chunks, rows of logits, decode of many sequences.

use anyhow::Result;
use lathe_api::{
    Engine, SampleRow, SamplingParams, SeqStep, Slot, StepOutput, StepPlan, TokenSource, Wanted,
};

/// A greedy row.
fn row(row: u32, slot: u32, position: u32, wanted: Wanted) -> SampleRow {
    SampleRow {
        row,
        slot: Slot(slot),
        position,
        wanted,
        params: SamplingParams::default(),
        top_logprobs: None,
        suppress_stops: false,
    }
}

/// Adds `tokens` of a sequence from `start`; `room` positions are reserved for it. The last row is wanted.
pub fn part(
    engine: &dyn Engine,
    step: &mut StepPlan,
    slot: u32,
    room: u32,
    start: u32,
    tokens: &[TokenSource],
    wanted: Wanted,
) {
    let (q_start, len) = (step.tokens.len() as u32, tokens.len() as u32);
    let (blocks_start, blocks_len) = step.push_own_blocks(engine.info(), slot, room, start);
    step.seqs.push(SeqStep {
        slot: Slot(slot),
        q_start,
        q_len: len,
        kv_len: start + len,
        blocks_start,
        blocks_len,
        adapter: None,
    });
    step.tokens.extend_from_slice(tokens);
    step.positions.extend(start..start + len);
    step.rows.push(row(q_start + len - 1, slot, start + len, wanted));
}

/// Logits of every position, `f32[ids, vocab]`, as many positions a step as fit.
///
/// # Errors
/// The engine's.
pub fn logits(engine: &mut dyn Engine, ids: &[u32]) -> Result<Vec<f32>> {
    let most = engine.info().max_sample_rows.min(engine.info().max_num_tokens) as usize;
    let (mut all, mut out) = (Vec::new(), StepOutput::default());
    for (i, chunk) in ids.chunks(most).enumerate() {
        let start = (i * most) as u32;
        let tokens: Vec<TokenSource> = chunk.iter().map(|id| TokenSource::Literal(*id)).collect();
        let mut step = StepPlan::with_capacity(0, 0, 0, 0, engine.info().groups.len());
        part(engine, &mut step, 0, ids.len() as u32, start, &tokens, Wanted::Logits);
        step.rows = (0..chunk.len() as u32).map(|r| row(r, 0, start + r + 1, Wanted::Logits)).collect();
        let ticket = engine.submit(&step)?;
        engine.sample(ticket, None)?;
        engine.collect(ticket, &mut out)?;
        all.extend_from_slice(engine.logits());
    }
    Ok(all)
}
