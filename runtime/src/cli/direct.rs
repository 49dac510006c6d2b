//! One prompt through the bare engine, for logits: no scheduler, blocks in order.

use lathe_api::{
    Engine, EngineError, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan,
    TokenSource, Wanted,
};

/// Runs `ids` and hands the raw logits `f32[vocab_size]` of each position over, in order.
///
/// # Errors
/// The prompt is longer than a sequence may be, or the engine fails.
pub fn each_logits(
    engine: &mut dyn Engine,
    ids: &[u32],
    mut take: impl FnMut(usize, &[f32]),
) -> Result<(), EngineError> {
    let info = engine.info().clone();
    let vocab = info.vocab_size as usize;
    let longest = info.max_seq_len as usize;
    if ids.len() > longest || info.places(ids.len() as u32) == 0 {
        return Err(EngineError::Fit {
            what: "prompt".into(),
            why: format!("it has {} tokens, a sequence holds {longest}", ids.len()),
            remedy: "shorten it, or compile with a larger --max-seq-len".into(),
        });
    }
    let chunk = info.max_sample_rows.min(info.max_num_tokens).max(1) as usize;
    let slot = Slot(0);
    let mut plan = StepPlan::with_capacity(chunk, 1, chunk, ids.len(), info.groups.len());
    let mut output = StepOutput::with_capacity(chunk);
    engine.bind(slot, SlotState { prompt: ids, ..SlotState::default() })?;
    for start in (0..ids.len()).step_by(chunk) {
        let end = (start + chunk).min(ids.len());
        plan.clear();
        plan.tokens.extend(ids[start..end].iter().map(|&id| TokenSource::Literal(id)));
        plan.positions.extend(start as u32..end as u32);
        let (blocks_start, blocks_len) = plan.push_own_blocks(&info, 0, ids.len() as u32, start as u32);
        plan.seqs.push(SeqStep {
            slot,
            q_start: 0,
            q_len: (end - start) as u32,
            kv_len: end as u32,
            blocks_start,
            blocks_len,
            adapter: None,
        });
        plan.rows.extend((start..end).map(|position| SampleRow {
            row: (position - start) as u32,
            slot,
            position: position as u32 + 1,
            wanted: Wanted::Logits,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        }));
        let ticket = engine.submit(&plan)?;
        engine.sample(ticket, None)?;
        engine.collect(ticket, &mut output)?;
        for (at, row) in engine.logits().chunks_exact(vocab).take(end - start).enumerate() {
            take(start + at, row);
        }
    }
    Ok(())
}
