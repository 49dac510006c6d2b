//! Per-slot drawing state and the drawing of all rows of a step.

use std::cell::UnsafeCell;

use lathe_api::{
    MAX_TOP_LOGPROBS, NO_TOKEN, RowOutput, SampleRow, Slot, SlotState, StepOutput, TokenLogprob, TokenMasks,
    Wanted,
};
use lathe_kernels::IsaPath;
use lathe_kernels::sampling::{self, Context, Params, Scratch, TopLogprob};

use lathe_plan::memory::{MAX_LOGIT_BIAS, MAX_STOP_IDS};

use crate::pool::Pool;

/// What drawing needs to know of one sequence.
struct SlotHistory {
    /// Prompt ids, then generated ids.
    ids: Vec<u32>,
    prompt_len: usize,
    bias: Vec<(u32, f32)>,
    stops: Vec<u32>,
}

/// One row's answer, written by the thread that drew it.
#[derive(Clone, Copy)]
struct Answer {
    token: TokenLogprob,
    top: [TopLogprob; MAX_TOP_LOGPROBS],
    n_top: usize,
}

/// Cells that threads of one `Pool::launch` touch each on their own index.
struct PerIndex<T>(Vec<UnsafeCell<T>>);

// SAFETY: users touch an index from one thread at a time, see the two places that call `get`.
unsafe impl<T: Send> Sync for PerIndex<T> {}

impl<T> PerIndex<T> {
    /// # Safety
    /// No other reference to this index lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self, index: usize) -> &mut T {
        // SAFETY: passed on.
        unsafe { &mut *self.0[index].get() }
    }
}

/// Draws tokens; all memory is taken at load.
pub struct Sampler {
    vocab: usize,
    max_history: usize,
    slots: Vec<SlotHistory>,
    scratch: PerIndex<Scratch>,
    answers: PerIndex<Answer>,
    rows: Vec<SampleRow>,
    /// Ids drawn by the step before, by row; `None` where nothing was drawn.
    last: Vec<Option<u32>>,
}

impl Sampler {
    /// Bytes that `new` takes; the plan's memory report allows for them.
    #[cfg(test)]
    fn bytes(max_batch: usize, max_rows: usize, vocab: usize, threads: usize, max_seq_len: usize) -> usize {
        let slot = (max_seq_len + 1) * 4 + MAX_LOGIT_BIAS * 8 + MAX_STOP_IDS * 4 + size_of::<SlotHistory>();
        let row = size_of::<Answer>() + size_of::<SampleRow>() + size_of::<Option<u32>>();
        max_batch * slot + max_rows * row + threads * Scratch::bytes(vocab)
    }

    /// A sampler for `max_batch` slots and `max_rows` rows of `vocab` logits.
    pub fn new(max_batch: usize, max_rows: usize, vocab: usize, threads: usize, max_seq_len: usize) -> Self {
        let none = TopLogprob { id: 0, logprob: 0.0 };
        let answer = Answer {
            token: TokenLogprob { id: NO_TOKEN, logprob: f32::NAN, rank: 0 },
            top: [none; MAX_TOP_LOGPROBS],
            n_top: 0,
        };
        Sampler {
            vocab,
            // One more than positions: the last drawn token needs none.
            max_history: max_seq_len + 1,
            slots: (0..max_batch)
                .map(|_| SlotHistory {
                    ids: Vec::with_capacity(max_seq_len + 1),
                    prompt_len: 0,
                    bias: Vec::with_capacity(MAX_LOGIT_BIAS),
                    stops: Vec::with_capacity(MAX_STOP_IDS),
                })
                .collect(),
            scratch: PerIndex((0..threads).map(|_| UnsafeCell::new(Scratch::new(vocab))).collect()),
            answers: PerIndex((0..max_rows).map(|_| UnsafeCell::new(answer)).collect()),
            rows: Vec::with_capacity(max_rows),
            last: Vec::with_capacity(max_rows),
        }
    }

    /// See `Engine::bind`; `state` was checked.
    pub fn bind(&mut self, slot: Slot, state: SlotState<'_>) {
        let history = &mut self.slots[slot.0 as usize];
        history.ids.clear();
        history.ids.extend_from_slice(state.prompt);
        history.ids.extend_from_slice(state.output);
        history.prompt_len = state.prompt.len();
        history.bias.clear();
        history.bias.extend_from_slice(state.logit_bias);
        history.stops.clear();
        history.stops.extend_from_slice(state.stop_ids);
    }

    /// Takes a step's rows, which were checked against the batch schema.
    ///
    /// # Errors
    /// A slot draws more ids than a sequence has positions.
    pub fn prepare(&mut self, rows: &[SampleRow]) -> Result<(), String> {
        for row in rows {
            let history = &self.slots[row.slot.0 as usize];
            if row.wanted == Wanted::Sample && history.ids.len() >= self.max_history {
                return Err(format!("slot {} has no room for another id", row.slot.0));
            }
        }
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        Ok(())
    }

    /// The id that row `row` of the step before drew.
    pub fn last_token(&self, row: usize) -> Option<u32> {
        self.last.get(row).copied().flatten()
    }

    /// Answers all prepared rows from their logits `f32[rows, vocab]`; `masks` were checked.
    pub fn run(&mut self, pool: &mut Pool, path: IsaPath, logits: &[f32], masks: Option<TokenMasks<'_>>) {
        let this = &*self;
        pool.launch(this.rows.len(), |worker, ranges| {
            // SAFETY: `Pool::launch` never calls for a worker twice at a time.
            let scratch = unsafe { this.scratch.get(worker) };
            for i in ranges.flatten() {
                let row = &logits[i * this.vocab..(i + 1) * this.vocab];
                let allowed = masks.map(|m| &m.words[i * m.words_per_row..(i + 1) * m.words_per_row]);
                // SAFETY: `Pool::launch` hands every index out once.
                let answer = unsafe { this.answers.get(i) };
                this.answer(path, &this.rows[i], row, allowed, scratch, answer);
            }
        });
        self.last.clear();
        for (row, answer) in self.rows.iter().zip(&mut self.answers.0) {
            let id = answer.get_mut().token.id;
            let drawn = row.wanted == Wanted::Sample && id != NO_TOKEN;
            self.last.push(drawn.then_some(id));
            if drawn {
                self.slots[row.slot.0 as usize].ids.push(id);
            }
        }
    }

    fn answer(
        &self,
        path: IsaPath,
        want: &SampleRow,
        row: &[f32],
        allowed: Option<&[u32]>,
        scratch: &mut Scratch,
        answer: &mut Answer,
    ) {
        let id = match want.wanted {
            Wanted::Score(id) => id,
            Wanted::Logits => NO_TOKEN,
            Wanted::Sample => {
                let history = &self.slots[want.slot.0 as usize];
                let (prompt, output) = history.ids.split_at(history.prompt_len);
                let cx = Context {
                    position: want.position,
                    bias: &history.bias,
                    suppressed: if want.suppress_stops { &history.stops } else { &[] },
                    prompt,
                    output,
                    allowed,
                };
                let p = &want.params;
                let params = Params {
                    temperature: p.temperature,
                    top_k: p.top_k,
                    top_p: p.top_p,
                    min_p: p.min_p,
                    repetition_penalty: p.repetition_penalty,
                    presence_penalty: p.presence_penalty,
                    frequency_penalty: p.frequency_penalty,
                    seed: p.seed,
                    choice: p.choice,
                };
                sampling::draw(path, row, &params, &cx, scratch).unwrap_or(NO_TOKEN)
            }
        };
        answer.token = TokenLogprob { id, logprob: f32::NAN, rank: 0 };
        answer.n_top = 0;
        if let Some(n) = want.top_logprobs
            && want.wanted != Wanted::Logits
        {
            let found = sampling::logprobs(path, row, id, &mut answer.top[..usize::from(n)]);
            answer.token.logprob = found.logprob;
            answer.token.rank = found.rank;
            answer.n_top = found.n_top;
        }
    }

    /// Hands the answers over.
    pub fn collect(&mut self, out: &mut StepOutput) {
        out.rows.clear();
        out.top.clear();
        for (_, answer) in self.rows.iter().zip(&mut self.answers.0) {
            let answer = answer.get_mut();
            let top_start = out.top.len() as u32;
            out.top.extend(answer.top[..answer.n_top].iter().enumerate().map(|(i, t)| TokenLogprob {
                id: t.id,
                logprob: t.logprob,
                rank: i as u32 + 1,
            }));
            out.rows.push(RowOutput { token: answer.token, top_start, top_len: answer.n_top as u32 });
        }
    }
}

#[cfg(test)]
mod tests {
    use lathe_plan::Plan;
    use lathe_plan::memory::{MemoryReport, MemoryRequest};
    use lathe_plan::testing::small_plan;

    use super::*;

    #[test]
    fn the_plans_report_allows_for_the_sampler() {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let mut card = plan.card().clone();
        for (batch, rows, vocab, len, threads) in
            [(1, 1, 2, 1, 1), (32, 64, 128_256, 8192, 2), (256, 256, 515, 64, 64)]
        {
            let limits = &mut card.limits;
            (limits.max_batch, limits.max_sample_rows, limits.max_seq_len) = (batch, rows, len);
            card.vocab_size = vocab;
            let request = MemoryRequest { threads, kv_tokens: None };
            let allowed = MemoryReport::new(&card, &plan.programs()[0], 0, request).sampler;
            let taken =
                Sampler::bytes(batch as usize, rows as usize, vocab as usize, threads as usize, len as usize);
            assert!(taken as u64 <= allowed, "{taken} of {allowed} for {vocab} ids");
        }
    }
}
