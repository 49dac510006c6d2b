//! What every engine refuses before it touches anything: the rules of the batch schema, in one place.

use lathe_numerics::window::{NO_BLOCK, first_block};

use crate::{
    BlockGroup, EngineError, MAX_TOP_LOGPROBS, Slot, SlotState, StepPlan, TokenMasks, TokenSource, Wanted,
};

/// What steps and slots are held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Ids below this may be fed.
    pub n_embeddings: u32,
    /// Ids below this may be drawn, scored and biased.
    pub vocab_size: u32,
    /// Sequences in a step, and slots.
    pub max_batch: u32,
    /// Tokens in a step.
    pub max_num_tokens: u32,
    /// Rows of logits in a step.
    pub max_sample_rows: u32,
    /// Positions of one sequence.
    pub max_seq_len: u32,
    /// KV blocks by cache group.
    pub groups: Vec<BlockGroup>,
    /// Positions per block, not zero, in every group.
    pub block_tokens: u32,
    /// Entries of a slot's bias list.
    pub max_logit_bias: usize,
    /// Entries of a slot's stop list.
    pub max_stop_ids: usize,
}

impl StepLimits {
    /// Blocks that the first `kv_len` positions take.
    pub const fn blocks_of(&self, kv_len: u32) -> usize {
        kv_len.div_ceil(self.block_tokens) as usize
    }
}

/// Checks steps against limits; takes its memory once.
#[derive(Clone, Debug)]
pub struct StepCheck {
    limits: StepLimits,
    slot_seen: Vec<bool>,
}

impl StepCheck {
    /// A check against `limits`.
    pub fn new(limits: StepLimits) -> Self {
        StepCheck { slot_seen: vec![false; limits.max_batch as usize], limits }
    }

    /// The limits.
    pub const fn limits(&self) -> &StepLimits {
        &self.limits
    }

    /// Holds every id, position, block, slot and row of a step against the limits. `drawn` says whether the row of
    /// this index of the step before has drawn, or will draw, a token. After it a sequence's first
    /// `blocks_of(kv_len)` block ids may be read in every group; those of which its rows see anything are blocks.
    ///
    /// # Errors
    /// `Request` with the rule that is broken.
    pub fn step(&mut self, step: &StepPlan, drawn: impl Fn(u32) -> bool) -> Result<(), EngineError> {
        self.check(step, drawn).map_err(EngineError::Request)
    }

    fn check(&mut self, step: &StepPlan, drawn: impl Fn(u32) -> bool) -> Result<(), String> {
        let limits = &self.limits;
        let t = step.tokens.len();
        if t == 0 || t > limits.max_num_tokens as usize {
            return Err(format!("{t} tokens; 1..={} fit", limits.max_num_tokens));
        }
        if step.seqs.is_empty() || step.seqs.len() > limits.max_batch as usize {
            return Err(format!("{} sequences; 1..={} fit", step.seqs.len(), limits.max_batch));
        }
        if step.rows.len() > limits.max_sample_rows as usize {
            return Err(format!("{} rows of logits; {} fit", step.rows.len(), limits.max_sample_rows));
        }
        if step.positions.len() != t {
            return Err(format!("{} positions for {t} tokens", step.positions.len()));
        }
        if step.blocks.len() != limits.groups.len() {
            let (lists, groups) = (step.blocks.len(), limits.groups.len());
            return Err(format!("{lists} lists of blocks for {groups} cache groups"));
        }
        if step.blocks.windows(2).any(|pair| pair[0].len() != pair[1].len()) {
            return Err("lists of blocks differ in length: a sequence has the same place in each".into());
        }
        self.slot_seen.fill(false);
        let mut next_row = 0;
        for s in &step.seqs {
            let (q_start, q_len, kv_len) = (s.q_start as usize, s.q_len as usize, s.kv_len as usize);
            if q_start != next_row || q_len == 0 || q_len > kv_len || q_len > t - q_start {
                return Err(format!("sequence of slot {} has rows {q_start}+{q_len} of {t}", s.slot.0));
            }
            if kv_len > limits.max_seq_len as usize {
                return Err(format!("{kv_len} positions in slot {}; {} fit", s.slot.0, limits.max_seq_len));
            }
            match self.slot_seen.get_mut(s.slot.0 as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(format!("slot {} is out of range or used twice", s.slot.0)),
            }
            if s.adapter.is_some() {
                return Err("the plan holds no adapters".into());
            }
            let need = limits.blocks_of(s.kv_len);
            for (at, (table, group)) in step.blocks.iter().zip(&limits.groups).enumerate() {
                let table = (s.blocks_start as usize)
                    .checked_add(need)
                    .filter(|_| s.blocks_len as usize >= need)
                    .and_then(|end| table.get(s.blocks_start as usize..end))
                    .ok_or_else(|| format!("slot {} has fewer than {need} blocks in group {at}", s.slot.0))?;
                let seen = first_block(s.kv_len - s.q_len, group.window, limits.block_tokens) as usize;
                let is_block = |(i, id): (usize, &u32)| *id < group.n_blocks || *id == NO_BLOCK && i < seen;
                if let Some((i, id)) = table.iter().enumerate().find(|entry| !is_block(*entry)) {
                    if *id == NO_BLOCK {
                        return Err(format!("slot {} sees its entry {i} of group {at}, no block", s.slot.0));
                    }
                    return Err(format!("block {id}; the pool of group {at} has {}", group.n_blocks));
                }
            }
            for (i, p) in step.positions[q_start..q_start + q_len].iter().enumerate() {
                if *p as usize != kv_len - q_len + i {
                    return Err(format!("position {p} in slot {} is not the next one", s.slot.0));
                }
            }
            next_row += q_len;
        }
        if next_row != t {
            return Err(format!("sequences cover {next_row} of {t} tokens"));
        }
        for token in &step.tokens {
            match *token {
                TokenSource::Literal(id) if id >= limits.n_embeddings => {
                    return Err(format!("token id {id}; the vocabulary has {}", limits.n_embeddings));
                }
                TokenSource::Row(row) if !drawn(row) => {
                    return Err(format!("row {row} of the step before was not sampled"));
                }
                TokenSource::Literal(_) | TokenSource::Row(_) => {}
            }
        }
        self.rows(step)
    }

    fn rows(&self, step: &StepPlan) -> Result<(), String> {
        let mut last = None;
        // Rows ascend and sequences follow each other: one walk finds every owner.
        let mut owners = step.seqs.iter().peekable();
        for row in &step.rows {
            if last.is_some_and(|last| last >= row.row) || row.row as usize >= step.tokens.len() {
                return Err(format!("row {} is out of range or out of order", row.row));
            }
            last = Some(row.row);
            while owners.next_if(|s| s.q_start + s.q_len <= row.row).is_some() {}
            if owners.peek().is_none_or(|s| s.slot != row.slot) {
                return Err(format!("row {} does not belong to slot {}", row.row, row.slot.0));
            }
            if let Wanted::Score(id) = row.wanted
                && id >= self.limits.vocab_size
            {
                return Err(format!("score of id {id}; the vocabulary has {}", self.limits.vocab_size));
            }
            if row.top_logprobs.is_some_and(|n| usize::from(n) > MAX_TOP_LOGPROBS) {
                return Err(format!("more than {MAX_TOP_LOGPROBS} alternatives asked for"));
            }
        }
        Ok(())
    }

    /// Holds what is to be bound against the limits.
    ///
    /// # Errors
    /// `Request` with the rule that is broken.
    pub fn slot(&self, slot: Slot, state: &SlotState<'_>) -> Result<(), EngineError> {
        let limits = &self.limits;
        // One more than positions: the last drawn token needs none.
        let max_history = limits.max_seq_len as usize + 1;
        let len = state.prompt.len() + state.output.len();
        let why = if slot.0 >= limits.max_batch {
            format!("slot {}; there are {}", slot.0, limits.max_batch)
        } else if len > max_history {
            format!("{len} ids of history; {max_history} fit")
        } else if state.logit_bias.len() > limits.max_logit_bias {
            format!("{} biased ids; {} fit", state.logit_bias.len(), limits.max_logit_bias)
        } else if state.stop_ids.len() > limits.max_stop_ids {
            format!("{} stop ids; {} fit", state.stop_ids.len(), limits.max_stop_ids)
        } else if let Some((id, _)) = state.logit_bias.iter().find(|(id, _)| *id >= limits.vocab_size) {
            format!("bias on id {id}; the vocabulary has {}", limits.vocab_size)
        } else {
            return Ok(());
        };
        Err(EngineError::Request(why))
    }

    /// Holds masks for `n_rows` rows against the limits.
    ///
    /// # Errors
    /// `Request` when they are too short.
    pub fn masks(&self, masks: &TokenMasks<'_>, n_rows: usize) -> Result<(), EngineError> {
        let words = masks.words.len();
        let fits = masks.words_per_row >= self.limits.vocab_size.div_ceil(32) as usize
            && masks.words_per_row.checked_mul(n_rows).is_some_and(|need| words >= need);
        if fits {
            return Ok(());
        }
        Err(EngineError::Request(format!("masks hold {words} words for {n_rows} rows")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SampleRow, SamplingParams, SeqStep};

    fn limits() -> StepLimits {
        StepLimits {
            n_embeddings: 40,
            vocab_size: 39,
            max_batch: 3,
            max_num_tokens: 8,
            max_sample_rows: 2,
            max_seq_len: 64,
            groups: vec![
                BlockGroup { n_blocks: 6, window: None },
                BlockGroup { n_blocks: 4, window: Some(2) },
            ],
            block_tokens: 16,
            max_logit_bias: 2,
            max_stop_ids: 1,
        }
    }

    fn row(row: u32, slot: u32, wanted: Wanted) -> SampleRow {
        SampleRow {
            row,
            slot: Slot(slot),
            position: 9,
            wanted,
            params: SamplingParams::default(),
            top_logprobs: Some(2),
            suppress_stops: false,
        }
    }

    /// Slot 2 at positions 17..20 of two blocks, of which the second group has the latter; slot 0 at 4.
    fn good() -> StepPlan {
        let seq = |slot, q_start, q_len, kv_len, blocks_start, blocks_len| SeqStep {
            slot: Slot(slot),
            q_start,
            q_len,
            kv_len,
            blocks_start,
            blocks_len,
            adapter: None,
        };
        StepPlan {
            tokens: vec![
                TokenSource::Literal(39),
                TokenSource::Literal(0),
                TokenSource::Literal(1),
                TokenSource::Row(1),
            ],
            positions: vec![17, 18, 19, 4],
            seqs: vec![seq(2, 0, 3, 20, 1, 2), seq(0, 3, 1, 5, 0, 1)],
            blocks: vec![vec![5, 0, 3], vec![2, NO_BLOCK, 3]],
            rows: vec![row(2, 2, Wanted::Score(38)), row(3, 0, Wanted::Sample)],
        }
    }

    type Edit = fn(&mut StepPlan);

    #[test]
    fn each_rule_has_its_sentence() {
        let mut check = StepCheck::new(limits());
        assert!(check.step(&good(), |row| row == 1).is_ok());
        let cases: &[(&str, Edit)] = &[
            ("0 tokens; 1..=8 fit", |s| s.tokens.clear()),
            ("9 tokens; 1..=8 fit", |s| s.tokens = vec![TokenSource::Literal(0); 9]),
            ("0 sequences; 1..=3 fit", |s| s.seqs.clear()),
            ("4 sequences; 1..=3 fit", |s| s.seqs = vec![s.seqs[0]; 4]),
            ("3 rows of logits; 2 fit", |s| s.rows.push(s.rows[1])),
            ("3 positions for 4 tokens", |s| s.positions.truncate(3)),
            ("sequence of slot 2 has rows 0+0 of 4", |s| s.seqs[0].q_len = 0),
            ("sequence of slot 2 has rows 0+19 of 4", |s| s.seqs[0].q_len = 19),
            ("sequence of slot 0 has rows 3+2 of 4", |s| s.seqs[1].q_len = 2),
            ("sequence of slot 0 has rows 2+1 of 4", |s| s.seqs[1].q_start = 2),
            ("65 positions in slot 0; 64 fit", |s| s.seqs[1].kv_len = 65),
            ("slot 3 is out of range or used twice", |s| s.seqs[1].slot = Slot(3)),
            ("slot 2 is out of range or used twice", |s| s.seqs[1].slot = Slot(2)),
            ("the plan holds no adapters", |s| s.seqs[0].adapter = Some(0)),
            ("slot 2 has fewer than 2 blocks in group 0", |s| s.seqs[0].blocks_len = 1),
            ("slot 2 has fewer than 2 blocks in group 0", |s| s.seqs[0].blocks_start = 2),
            ("slot 2 has fewer than 2 blocks in group 0", |s| s.seqs[0].blocks_start = u32::MAX),
            ("lists of blocks differ in length: a sequence has the same place in each", |s| {
                s.blocks[1].truncate(2);
            }),
            ("block 6; the pool of group 0 has 6", |s| s.blocks[0][2] = 6),
            ("block 4; the pool of group 1 has 4", |s| s.blocks[1][1] = 4),
            ("slot 2 sees its entry 0 of group 0, no block", |s| s.blocks[0][1] = NO_BLOCK),
            ("slot 2 sees its entry 1 of group 1, no block", |s| s.blocks[1][2] = NO_BLOCK),
            // The row at position 16 sees position 15.
            ("slot 2 sees its entry 0 of group 1, no block", |s| s.seqs[0].kv_len = 19),
            ("1 lists of blocks for 2 cache groups", |s| s.blocks.truncate(1)),
            ("position 21 in slot 2 is not the next one", |s| s.positions[2] = 21),
            ("sequences cover 3 of 4 tokens", |s| s.seqs.truncate(1)),
            ("token id 40; the vocabulary has 40", |s| s.tokens[0] = TokenSource::Literal(40)),
            ("row 0 of the step before was not sampled", |s| s.tokens[3] = TokenSource::Row(0)),
            ("row 4 is out of range or out of order", |s| s.rows[1].row = 4),
            ("row 2 is out of range or out of order", |s| s.rows[1] = s.rows[0]),
            ("row 3 does not belong to slot 2", |s| s.rows[1].slot = Slot(2)),
            ("score of id 39; the vocabulary has 39", |s| s.rows[0].wanted = Wanted::Score(39)),
            ("more than 20 alternatives asked for", |s| s.rows[0].top_logprobs = Some(21)),
        ];
        for (why, edit) in cases {
            let mut step = good();
            edit(&mut step);
            let found = check.step(&step, |row| row == 1).unwrap_err().to_string();
            assert_eq!(found, format!("step refused: {why}"));
        }
        assert!(check.step(&good(), |row| row == 1).is_ok());
    }

    #[test]
    fn slots_and_masks_are_held_against_the_limits() {
        let check = StepCheck::new(limits());
        let (ids, words) = ([0u32; 66], [0u32; 3]);
        let slot = |slot, state: SlotState<'_>| check.slot(Slot(slot), &state).map_err(|e| e.to_string());
        let none = SlotState::default();
        assert_eq!(slot(2, SlotState { prompt: &ids[..60], output: &ids[..5], ..none }), Ok(()));
        let bias = [(38, 1.0), (39, 1.0), (0, 1.0)];
        for (why, at, state) in [
            ("slot 3; there are 3", 3, none),
            ("66 ids of history; 65 fit", 0, SlotState { prompt: &ids, ..none }),
            ("3 biased ids; 2 fit", 0, SlotState { logit_bias: &bias, ..none }),
            ("bias on id 39; the vocabulary has 39", 0, SlotState { logit_bias: &bias[..2], ..none }),
            ("2 stop ids; 1 fit", 0, SlotState { stop_ids: &ids[..2], ..none }),
        ] {
            assert_eq!(slot(at, state), Err(format!("step refused: {why}")));
        }
        let masks = |words_per_row| TokenMasks { words: &words, words_per_row };
        assert!(check.masks(&masks(2), 1).is_ok());
        assert!(check.masks(&masks(1), 1).is_err() && check.masks(&masks(2), 2).is_err());
        assert!(check.masks(&masks(usize::MAX), 2).is_err());
    }
}
