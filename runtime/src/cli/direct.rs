//! One prompt through the bare engine, for logits and logprobs: no scheduler, blocks in order.

use std::ops::Range;

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
    let vocab = engine.info().vocab_size as usize;
    let wanted = |_| Row { wanted: Wanted::Logits, top_logprobs: None };
    each_step(engine, ids, 0..ids.len(), wanted, |engine, _, rows| {
        for (at, row) in rows.clone().zip(engine.logits().chunks_exact(vocab)) {
            take(at, row);
        }
        Ok(())
    })
}

/// Runs `ids` and hands the log probabilities of `ids[first..]` over, in order, each given all before it. `first` is at
/// least 1.
///
/// # Errors
/// As [`each_logits`].
pub fn each_logprob(
    engine: &mut dyn Engine,
    ids: &[u32],
    first: usize,
    mut take: impl FnMut(f32),
) -> Result<(), EngineError> {
    let rows = first.saturating_sub(1)..ids.len().saturating_sub(1);
    let wanted = |position: usize| Row { wanted: Wanted::Score(ids[position + 1]), top_logprobs: Some(0) };
    each_step(engine, ids, rows, wanted, |_, output, rows| {
        if output.rows.len() != rows.len() {
            let why = format!("{} of {} rows were scored", output.rows.len(), rows.len());
            return Err(EngineError::Failed(why));
        }
        output.rows.iter().for_each(|row| take(row.token.logprob));
        Ok(())
    })
}

/// What is wanted of a row.
struct Row {
    wanted: Wanted,
    top_logprobs: Option<u8>,
}

/// Runs `ids` as one sequence, as many positions a step as the engine takes, and shows each step that holds some of `rows`
/// with those that it holds.
fn each_step(
    engine: &mut dyn Engine,
    ids: &[u32],
    rows: Range<usize>,
    wanted: impl Fn(usize) -> Row,
    mut show: impl FnMut(&mut dyn Engine, &StepOutput, Range<usize>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let info = engine.info().clone();
    let longest = info.max_seq_len as usize;
    if ids.len() > longest || info.places(ids.len() as u32) == 0 {
        return Err(EngineError::Fit {
            what: "prompt".into(),
            why: format!("it has {} tokens, a sequence holds {longest}", ids.len()),
            remedy: "shorten it, or compile with a larger --max-seq-len".into(),
        });
    }
    let tokens = info.max_num_tokens.max(1) as usize;
    let chunk = info.max_sample_rows.min(info.max_num_tokens).max(1) as usize;
    let slot = Slot(0);
    let mut plan = StepPlan::with_capacity(tokens, 1, chunk, ids.len(), info.groups.len());
    let mut output = StepOutput::with_capacity(chunk);
    engine.bind(slot, SlotState { prompt: ids, ..SlotState::default() })?;
    let mut start = 0;
    while start < ids.len() {
        // Before the first wanted row, logits cost nothing and steps are as long as they can be.
        let end = if start < rows.start { rows.start.min(start + tokens) } else { start + chunk };
        let end = end.min(ids.len());
        let held = rows.start.max(start)..rows.end.min(end).max(rows.start.max(start));
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
        plan.rows.extend(held.clone().map(|position| {
            let row = wanted(position);
            SampleRow {
                row: (position - start) as u32,
                slot,
                position: position as u32 + 1,
                wanted: row.wanted,
                params: SamplingParams::default(),
                top_logprobs: row.top_logprobs,
                suppress_stops: false,
            }
        }));
        let ticket = engine.submit(&plan)?;
        engine.sample(ticket, None)?;
        engine.collect(ticket, &mut output)?;
        if !held.is_empty() {
            show(engine, &output, held)?;
        }
        start = end;
    }
    Ok(())
}
