//! The engine over the emulator: a toy model whose answers are known by hand, through every way of making steps.

mod toy;

use std::collections::HashMap;
use std::sync::Arc;

use lathe_api::{
    Engine, EngineError, NO_TOKEN, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan,
    Ticket, TokenMasks, TokenSource, Wanted,
};
use lathe_cuda::{CudaEngine, CudaOptions};
use lathe_device::{Arch, Driver};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::schema::Program;
use lathe_plan::{MemoryReport, Plan};

use toy::{BLOCK, ByHand, MAX_ROWS, VOCAB};

fn emulator() -> Box<dyn Driver> {
    let device = DeviceModel::of(Arch { major: 8, minor: 0 });
    Box::new(Emulator::new(&EmulatorOptions::new(device)).unwrap())
}

fn plan_of(targets: &[&str], bend: impl Fn(&mut Program)) -> Arc<Plan> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.plan");
    toy::write(&path, targets, bend);
    Arc::new(Plan::open(&path).unwrap())
}

fn load(graphs: bool) -> CudaEngine {
    let options = CudaOptions { graphs, ..CudaOptions::default() };
    CudaEngine::load(plan_of(&["sm_80"], |_| ()), emulator(), &options).unwrap()
}

/// A sequence on its way: its slot, its blocks, what is fed.
struct Seq {
    slot: Slot,
    hand: ByHand,
    blocks: Vec<u32>,
    fed: usize,
}

impl Seq {
    fn new(slot: u32, prompt: &[u32], blocks: &[u32]) -> Self {
        let hand = ByHand { ids: prompt.into(), prompt: prompt.into(), ..ByHand::default() };
        Seq { slot: Slot(slot), hand, blocks: blocks.into(), fed: 0 }
    }

    fn bind(&self, engine: &mut CudaEngine) {
        let state = SlotState {
            prompt: &self.hand.prompt,
            output: &self.hand.ids[self.hand.prompt.len()..],
            logit_bias: &self.hand.bias,
            stop_ids: &self.hand.stops,
        };
        engine.bind(self.slot, state).unwrap();
    }

    /// Adds this sequence's next `len` tokens to a step; those past the ones that are known come from `row`.
    fn feed(&mut self, step: &mut StepPlan, len: usize, row: Option<u32>) {
        let (q_start, end) = (step.tokens.len() as u32, self.fed + len);
        for position in self.fed..end {
            step.tokens.push(match (self.hand.ids.get(position), row) {
                (Some(id), _) => TokenSource::Literal(*id),
                (None, Some(row)) => TokenSource::Row(row),
                (None, None) => panic!("nothing to feed at {position}"),
            });
            step.positions.push(position as u32);
        }
        let blocks_start = step.blocks[0].len() as u32;
        step.blocks[0].extend_from_slice(&self.blocks);
        step.seqs.push(SeqStep {
            slot: self.slot,
            q_start,
            q_len: len as u32,
            kv_len: end as u32,
            blocks_start,
            blocks_len: self.blocks.len() as u32,
            adapter: None,
        });
        self.fed = end;
    }

    /// A row on the token fed last.
    fn want(&self, step: &mut StepPlan, wanted: Wanted) {
        let row = step.tokens.len() as u32 - 1;
        step.rows.push(SampleRow {
            row,
            slot: self.slot,
            position: self.fed as u32,
            wanted,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        });
    }

    /// Takes an id that was drawn, which must be the one by hand.
    fn take(&mut self, id: u32, at: usize) {
        assert_eq!(self.hand.draw(at, &SamplingParams::default(), false, |_| true), Some(id), "at {at}");
        *self.hand.counts.entry(id).or_default() += 1;
        self.hand.ids.push(id);
    }
}

fn run(engine: &mut CudaEngine, step: &StepPlan) -> StepOutput {
    let mut out = StepOutput::default();
    let ticket = engine.submit(step).unwrap();
    engine.sample(ticket, None).unwrap();
    engine.collect(ticket, &mut out).unwrap();
    out
}

/// Three sequences: one long prompt in chunks beside decodes of the others, then all decode. Gives the ids of all.
fn conversation(engine: &mut CudaEngine, chunk: usize) -> Vec<Vec<u32>> {
    let prompts: [Vec<u32>; 3] = [vec![3, 44, 7], vec![9], (0..37).map(|i| i * 5 % 45).collect()];
    let mut seqs = [
        Seq::new(4, &prompts[0], &[7, 2, 9]),
        Seq::new(0, &prompts[1], &[0, 5]),
        Seq::new(2, &prompts[2], &[11, 1, 15, 3]),
    ];
    for seq in &seqs {
        seq.bind(engine);
    }
    for _ in 0..12 {
        let mut step = StepPlan::default();
        let mut drawing = Vec::new();
        for (i, seq) in seqs.iter_mut().enumerate() {
            let len = (seq.hand.ids.len() - seq.fed).min(chunk);
            seq.feed(&mut step, len, None);
            if seq.fed == seq.hand.ids.len() {
                seq.want(&mut step, Wanted::Sample);
                drawing.push(i);
            }
        }
        let out = run(engine, &step);
        assert_eq!(out.rows.len(), drawing.len());
        for (row, i) in out.rows.iter().zip(drawing) {
            let at = seqs[i].fed - 1;
            seqs[i].take(row.token.id, at);
        }
    }
    seqs.into_iter().map(|s| s.hand.ids).collect()
}

fn all_blocks(engine: &mut CudaEngine) -> Vec<Vec<u8>> {
    (0..16).map(|b| engine.block(0, b).unwrap()).collect()
}

#[test]
fn answers_are_those_done_by_hand_whatever_the_chunks_and_graphs() {
    let mut engine = load(true);
    let (ids, kv) = (conversation(&mut engine, 20), all_blocks(&mut engine));
    assert!(ids.iter().all(|ids| ids.len() > 12));
    for (graphs, chunk) in [(false, 20), (true, 7), (false, 13)] {
        let mut engine = load(graphs);
        let other = conversation(&mut engine, chunk);
        // The chunk decides how far the long one gets in twelve steps.
        for (a, b) in ids.iter().zip(&other) {
            let n = a.len().min(b.len());
            assert_eq!(a[..n], b[..n]);
        }
        if chunk == 20 {
            assert!(kv == all_blocks(&mut engine), "graphs and direct launches leave different KV");
        }
    }
}

#[test]
fn nothing_undefined_is_read_in_any_order_of_warps() {
    let plan = plan_of(&["sm_80"], |_| ());
    let mut all = Vec::new();
    for seed in [None, Some(1), Some(2)] {
        let device = DeviceModel::of(Arch { major: 8, minor: 0 });
        let check = Some(CheckOptions::default());
        let emulator =
            Emulator::new(&EmulatorOptions { check, seed, ..EmulatorOptions::new(device) }).unwrap();
        let mut engine = CudaEngine::load(plan.clone(), Box::new(emulator), &CudaOptions::default()).unwrap();
        all.push(conversation(&mut engine, 9));
        run(&mut engine, &lone(0, 3, Some(Wanted::Logits)));
    }
    assert!(all[0] == all[1] && all[0] == all[2]);
}

#[test]
fn a_step_may_be_submitted_before_the_one_before_is_collected() {
    for graphs in [true, false] {
        let mut engine = load(graphs);
        let mut seqs = [Seq::new(1, &[3, 9, 27], &[3, 4, 8]), Seq::new(3, &[40], &[0, 6])];
        for seq in &seqs {
            seq.bind(&mut engine);
        }
        let mut out = StepOutput::default();
        let mut ahead: Option<Ticket> = None;
        for n in 0..20 {
            let mut step = StepPlan::default();
            for (row, seq) in seqs.iter_mut().enumerate() {
                let len = if n == 0 { seq.hand.ids.len() } else { 1 };
                seq.feed(&mut step, len, Some(row as u32));
                seq.want(&mut step, Wanted::Sample);
            }
            let ticket = engine.submit(&step).unwrap();
            engine.sample(ticket, None).unwrap();
            if let Some(before) = ahead.replace(ticket) {
                engine.collect(before, &mut out).unwrap();
                for (row, seq) in out.rows.iter().zip(&mut seqs) {
                    seq.take(row.token.id, seq.fed - 2);
                }
            }
        }
    }
}

/// A step of one token of a fresh sequence.
fn lone(slot: u32, block: u32, wanted: Option<Wanted>) -> StepPlan {
    let mut step = StepPlan::default();
    let mut seq = Seq::new(slot, &[5], &[block]);
    seq.feed(&mut step, 1, None);
    if let Some(wanted) = wanted {
        seq.want(&mut step, wanted);
    }
    step
}

#[test]
fn calls_out_of_order_are_refused_and_change_nothing() {
    let mut engine = load(true);
    let mut out = StepOutput::default();
    let refused = |result: Result<Ticket, EngineError>, why: &str| match result {
        Err(EngineError::Request(said)) => assert!(said.contains(why), "{said}"),
        other => panic!("{other:?}"),
    };
    let unit = |result: Result<(), EngineError>| result.map(|()| Ticket(0));
    let step = lone(0, 3, Some(Wanted::Sample));
    let first = engine.submit(&step).unwrap();
    refused(engine.submit(&step), "the step before was not sampled");
    refused(unit(engine.collect(first, &mut out)), "not the oldest sampled step");
    engine.sample(first, None).unwrap();
    refused(unit(engine.sample(first, None)), "not a submitted step");
    let second = engine.submit(&step).unwrap();
    refused(unit(engine.sample(first, None)), "not a submitted step");
    engine.sample(second, None).unwrap();
    refused(engine.submit(&step), "two steps are under way");
    refused(unit(engine.collect(second, &mut out)), "not the oldest sampled step");
    engine.collect(first, &mut out).unwrap();
    engine.collect(second, &mut out).unwrap();
    refused(unit(engine.collect(second, &mut out)), "not the oldest sampled step");
    // Rows that want logits keep the next step out, for it would write over them.
    let logits = engine.submit(&lone(0, 3, Some(Wanted::Logits))).unwrap();
    engine.sample(logits, None).unwrap();
    refused(engine.submit(&step), "wants logits and was not collected");
    engine.collect(logits, &mut out).unwrap();
    // A row that drew nothing feeds nobody.
    let mut next = lone(0, 3, None);
    next.tokens[0] = TokenSource::Row(0);
    refused(engine.submit(&next), "row 0 of the step before was not sampled");
    refused(engine.submit(&lone(5, 3, None)), "slot 5 is out of range");
    refused(engine.submit(&lone(0, 16, None)), "block 16; the pool of group 0 has 16");
    let out = run(&mut engine, &step);
    let by_hand = Seq::new(0, &[5], &[3]).hand.draw(0, &SamplingParams::default(), false, |_| true);
    assert_eq!(Some(out.rows[0].token.id), by_hand);
}

#[test]
fn a_row_for_which_nothing_may_be_drawn_feeds_nobody() {
    let mut engine = load(true);
    let step = lone(0, 3, Some(Wanted::Sample));
    let ticket = engine.submit(&step).unwrap();
    let words = [0u32; 2];
    engine.sample(ticket, Some(TokenMasks { words: &words, words_per_row: 2 })).unwrap();
    let mut out = StepOutput::default();
    engine.collect(ticket, &mut out).unwrap();
    assert_eq!(out.rows[0].token.id, NO_TOKEN);
    let mut next = lone(0, 3, None);
    next.tokens[0] = TokenSource::Row(0);
    assert!(engine.submit(&next).unwrap_err().to_string().contains("was not sampled"));
}

#[test]
fn a_slot_s_state_and_masks_decide_what_is_drawn() {
    let mut engine = load(true);
    let plain = SamplingParams::default();
    let mut seq = Seq::new(3, &[8, 1, 30], &[6, 2]);
    // What was generated before a preemption is bound again.
    seq.hand.ids.extend([4, 4, 11]);
    seq.hand.counts = HashMap::from([(4, 2), (11, 1)]);
    let best = seq.hand.draw(5, &plain, false, |_| true).unwrap();
    let second = seq.hand.draw(5, &plain, false, |id| id != best).unwrap();
    seq.hand.bias = vec![(second, 1e6), (7, 3e6), (44, -5.0)];
    seq.hand.stops = vec![7, 2];
    seq.bind(&mut engine);
    // Binding the others, more than may be on their way at a time, leaves this one alone.
    for n in 0..20 {
        Seq::new([0, 1, 2, 4][n % 4], &[n as u32; 9], &[]).bind(&mut engine);
    }
    let penalty = |by| SamplingParams { frequency_penalty: by, ..plain };
    let cases: [(SamplingParams, bool, u64); 7] = [
        (plain, false, u64::MAX),
        (plain, true, u64::MAX),
        (plain, true, !(1 << second)),
        (penalty(4e6), false, u64::MAX),
        (SamplingParams { presence_penalty: 4e6, ..plain }, false, u64::MAX),
        (SamplingParams { repetition_penalty: 4e6, ..plain }, false, u64::MAX),
        (plain, false, 1 << 44 | 1 << 40),
    ];
    let mut drawn = Vec::new();
    for (params, suppress, mask) in cases {
        let mut step = StepPlan::default();
        seq.fed = 0;
        seq.feed(&mut step, 6, None);
        seq.want(&mut step, Wanted::Sample);
        (step.rows[0].params, step.rows[0].suppress_stops) = (params, suppress);
        let by_hand = seq.hand.draw(5, &params, suppress, |id| mask >> id & 1 == 1).unwrap();
        let ticket = engine.submit(&step).unwrap();
        let words = [mask as u32, (mask >> 32) as u32, 77];
        let masks = TokenMasks { words: &words, words_per_row: 3 };
        engine.sample(ticket, (mask != u64::MAX).then_some(masks)).unwrap();
        let mut out = StepOutput::default();
        engine.collect(ticket, &mut out).unwrap();
        assert_eq!(out.rows[0].token.id, by_hand, "{params:?} {suppress} {mask:x}");
        *seq.hand.counts.entry(by_hand).or_default() += 1;
        drawn.push(by_hand);
    }
    assert_eq!(drawn[..3], [7, second, best]);
    // What was drawn before counts against it.
    assert!(![7, second, best].contains(&drawn[3]));
    // Binding again forgets all that was drawn.
    seq.hand.counts = HashMap::from([(4, 2), (11, 1)]);
    seq.bind(&mut engine);
    let mut step = StepPlan::default();
    seq.fed = 0;
    seq.feed(&mut step, 6, None);
    seq.want(&mut step, Wanted::Sample);
    step.rows[0].params = penalty(4e6);
    let by_hand = seq.hand.draw(5, &penalty(4e6), false, |_| true).unwrap();
    assert_eq!(run(&mut engine, &step).rows[0].token.id, by_hand);
}

#[test]
fn scores_alternatives_and_logits_come_back() {
    let mut engine = load(true);
    let mut seq = Seq::new(1, &[8, 1, 30, 22, 17, 40, 6], &[6, 2]);
    seq.bind(&mut engine);
    let mut step = StepPlan::default();
    seq.feed(&mut step, 7, None);
    for (row, wanted, top) in [
        (0, Wanted::Score(1), Some(0)),
        (1, Wanted::Score(30), Some(3)),
        (2, Wanted::Logits, None),
        (4, Wanted::Score(40), None),
        (6, Wanted::Sample, Some(20)),
    ] {
        seq.want(&mut step, wanted);
        let last = step.rows.last_mut().unwrap();
        (last.row, last.position, last.top_logprobs) = (row, row + 1, top);
    }
    let out = run(&mut engine, &step);
    let reported = |i: usize, at, id, n| {
        let row = &out.rows[i];
        let (logprob, rank, top) = seq.hand.report(at, id, n);
        assert_eq!((row.token.id, row.token.logprob, row.token.rank), (id, logprob, rank));
        let found = &out.top[row.top_start as usize..][..row.top_len as usize];
        assert_eq!(found.iter().map(|t| (t.id, t.logprob)).collect::<Vec<_>>(), top);
        assert!(found.iter().zip(1..).all(|(t, rank)| t.rank == rank));
    };
    reported(0, 0, 1, 0);
    reported(1, 1, 30, 3);
    let drawn = seq.hand.draw(6, &SamplingParams::default(), false, |_| true).unwrap();
    reported(4, 6, drawn, 20);
    assert_eq!((out.rows[2].token.id, out.rows[3].token.id), (NO_TOKEN, 40));
    assert!(out.rows[3].token.logprob.is_nan() && out.rows[3].top_len == 0);
    let vocab = VOCAB as usize;
    assert_eq!(engine.logits().len(), 5 * vocab);
    for (row, at) in [0, 1, 2, 4, 6].into_iter().enumerate() {
        assert_eq!(engine.logits()[row * vocab..][..vocab], seq.hand.logits(at));
    }
    run(&mut engine, &lone(0, 9, Some(Wanted::Sample)));
    assert!(engine.logits().is_empty());
}

#[test]
fn memory_is_what_the_report_says() {
    let plan = plan_of(&["sm_80"], |_| ());
    let options = CudaOptions { kv_bytes: Some(9 * 8192 + 77), ..CudaOptions::default() };
    let driver = emulator();
    let before = driver.free_bytes().unwrap();
    let engine = CudaEngine::load(plan.clone(), driver, &options).unwrap();
    let info = engine.info();
    assert_eq!(
        (info.groups[0].n_blocks, info.block_tokens, info.path.as_str()),
        (9, BLOCK, "emulator/sm_80")
    );
    let report = MemoryReport::on_device(plan.card(), &plan.programs()[0], plan.weights(), Some(9 * 16));
    let lines: Vec<(&str, u64)> = info.memory.lines.iter().map(|l| (l.name, l.bytes)).collect();
    let (measured, planned) = lines.split_last().unwrap();
    assert_eq!(measured.0, "code and graphs");
    assert_eq!(planned, report.lines().map(|(name, bytes, _)| (name, bytes)));
    // The unnamed weight stays in the file.
    assert_eq!(planned[0].1, (u64::from(VOCAB) * 128).next_multiple_of(256));
    let taken = before - engine.free_bytes().unwrap();
    assert!(taken.abs_diff(info.memory.allocated()) * 100 <= taken, "{taken} of {}", info.memory.allocated());
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let refused = |targets: &[&str], options: CudaOptions, bend: fn(&mut Program)| {
        CudaEngine::load(plan_of(targets, bend), emulator(), &options).map(drop).unwrap_err().to_string()
    };
    let options = CudaOptions::default;
    let error = refused(&["sm_80"], CudaOptions { memory_limit: Some(5000), ..options() }, |_| ());
    assert!(error.starts_with("device memory does not fit: "), "{error}");
    let error = refused(&["sm_80"], CudaOptions { reserve_bytes: u64::MAX, ..options() }, |_| ());
    assert!(error.contains("0 are available"), "{error}");
    let error = refused(&["sm_80"], CudaOptions { kv_bytes: Some(8192), ..options() }, |_| ());
    assert!(error.contains("one sequence of --max-seq-len 64 needs 32768 bytes"), "{error}");
    let error = refused(&["sm_80"], CudaOptions { program: Some("draft".into()), ..options() }, |_| ());
    assert!(error.contains("it holds decoder for sm_80"), "{error}");
    // The emulator's devices have fewer threads than this kernel's registers would allow.
    let error = refused(&["sm_80"], options(), |p| p.launches[0].device[0].shared_bytes = 200 << 10);
    assert!(error.contains("shared memory"), "{error}");
}

#[test]
fn a_fault_ends_the_engine_and_names_the_kernel() {
    // Logits of far more ids than there is memory for.
    let bend = |p: &mut Program| {
        for launch in &mut p.launches[4].device {
            launch.args[3] = lathe_device::Arg::U32(1 << 28);
            launch.grid[0] = lathe_device::Extent::fixed(1 << 20);
        }
    };
    for graphs in [true, false] {
        let options = CudaOptions { graphs, ..CudaOptions::default() };
        let mut engine = CudaEngine::load(plan_of(&["sm_80"], bend), emulator(), &options).unwrap();
        let ticket = engine.submit(&lone(0, 3, Some(Wanted::Sample))).unwrap();
        engine.sample(ticket, None).unwrap();
        let mut out = StepOutput::default();
        let Err(EngineError::Failed(why)) = engine.collect(ticket, &mut out) else { panic!("{out:?}") };
        assert!(why.starts_with("step 1 of 1 tokens, 1 sequences, 1 rows: "), "{why}");
        assert!(why.contains("score_few") && why.contains("logits"), "{why}");
        assert!(
            why.contains("grid [1048576, 1, 1] of 32 threads, args (0x") && why.ends_with(", 268435456)"),
            "{why}"
        );
        for again in [
            engine.submit(&lone(0, 3, None)).map(drop),
            engine.collect(ticket, &mut out),
            engine.bind(Slot(0), SlotState::default()),
            engine.block(0, 0).map(drop),
        ] {
            assert_eq!(again.unwrap_err().to_string(), format!("engine failed: {why}"));
        }
    }
}

#[test]
fn programs_for_newer_devices_run_on_the_emulator_too() {
    let plan = plan_of(&["sm_90"], |_| ());
    let mut engine = CudaEngine::load(plan, emulator(), &CudaOptions::default()).unwrap();
    assert_eq!(engine.info().path, "emulator/sm_90");
    let drawn = run(&mut engine, &lone(0, 3, Some(Wanted::Sample))).rows[0].token.id;
    assert_eq!(
        Some(drawn),
        Seq::new(0, &[5], &[3]).hand.draw(0, &SamplingParams::default(), false, |_| true)
    );
}

#[test]
fn the_most_rows_of_a_step_are_scored_by_the_striding_kernel() {
    let mut engine = load(true);
    let mut seq = Seq::new(1, &(0..40).map(|i| i * 7 % 45).collect::<Vec<_>>(), &[6, 2, 4]);
    seq.bind(&mut engine);
    let mut step = StepPlan::default();
    seq.feed(&mut step, 20, None);
    for row in 0..MAX_ROWS {
        seq.want(&mut step, Wanted::Score(seq.hand.ids[row as usize + 1]));
        let last = step.rows.last_mut().unwrap();
        (last.row, last.position, last.top_logprobs) = (row, row + 1, Some(0));
    }
    let out = run(&mut engine, &step);
    for (at, row) in out.rows.iter().enumerate() {
        let (logprob, rank, _) = seq.hand.report(at, row.token.id, 0);
        assert_eq!((row.token.logprob, row.token.rank), (logprob, rank));
    }
}
