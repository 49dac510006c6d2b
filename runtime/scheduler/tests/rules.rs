//! The rules one by one, as small tables.

use lathe_scheduler::{
    GroupLimits, Limits, LimitsError, Misuse, NewSequence, Progress, Refusal, Scheduler, SeqId, Slot, Step,
};

fn pool(n_blocks: u32) -> Vec<GroupLimits> {
    vec![GroupLimits { n_blocks, window: None }]
}

fn limits() -> Limits {
    Limits {
        max_batch: 4,
        max_num_tokens: 16,
        max_sample_rows: 6,
        max_seq_len: 64,
        groups: pool(32),
        block_tokens: 4,
        chunk_limit: None,
        max_queue: 8,
    }
}

fn sequence(id: u64, prompt_len: u32, max_new_tokens: u32) -> NewSequence {
    NewSequence { id: SeqId(id), prompt_len, max_new_tokens, score_prompt: false, share_prefix_of: None }
}

/// Schedules and commits one step; gives `(id, start, len, rows)` of each sequence.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, u32, u32, usize)> {
    let mut step = Step::default();
    scheduler.schedule(&mut step);
    let shape = |item: &lathe_scheduler::Scheduled| (item.id.0, item.start, item.len, item.sample_rows.len());
    let shapes = step.sequences.iter().map(shape).collect();
    for item in &step.sequences {
        if scheduler.commit(item.id, u32::from(item.samples)).unwrap() == Progress::Length {
            scheduler.finish(item.id).unwrap();
        }
    }
    scheduler.verify().unwrap();
    shapes
}

#[test]
fn decodes_come_first_and_prefill_takes_the_rest() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(sequence(1, 3, 9)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 3, 1)]);
    scheduler.add(sequence(2, 40, 2)).unwrap();
    scheduler.add(sequence(3, 2, 9)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 3, 1, 1), (2, 0, 15, 0)]);
    assert_eq!(step(&mut scheduler), [(1, 4, 1, 1), (2, 15, 15, 0)]);
    assert_eq!(step(&mut scheduler), [(1, 5, 1, 1), (2, 30, 10, 1), (3, 0, 2, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 6, 1, 1), (2, 40, 1, 1), (3, 2, 1, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 7, 1, 1), (3, 3, 1, 1)], "2 reached its length");
}

#[test]
fn scored_prompts_are_cut_to_the_rows_left() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(NewSequence { score_prompt: true, ..sequence(1, 15, 1) }).unwrap();
    scheduler.add(sequence(2, 5, 1)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 6, 6), (2, 0, 4, 0)], "2 may not reach its sampled row");
    assert_eq!(step(&mut scheduler), [(2, 4, 1, 1), (1, 6, 5, 5)]);
    assert_eq!(step(&mut scheduler), [(1, 11, 4, 4)]);
    assert!(scheduler.is_idle());
}

#[test]
fn scoring_without_new_tokens_samples_nothing() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(NewSequence { score_prompt: true, ..sequence(1, 5, 0) }).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 5, 5)]);
    assert!(scheduler.is_idle());
}

#[test]
fn chunk_limit_cuts_prefill() {
    let mut scheduler = Scheduler::new(Limits { chunk_limit: Some(7), ..limits() }).unwrap();
    scheduler.add(sequence(1, 17, 1)).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 7, 0)]);
    assert_eq!(step(&mut scheduler), [(1, 7, 7, 0)]);
    assert_eq!(step(&mut scheduler), [(1, 14, 3, 1)]);
}

#[test]
fn the_youngest_is_preempted_and_comes_back_first() {
    // Two prompts of 8 take 3 blocks each, the pool has 7: 2 is the youngest when a fourth block each is needed. 3 waits behind it.
    let mut scheduler = Scheduler::new(Limits { groups: pool(7), ..limits() }).unwrap();
    for id in 1..=3 {
        scheduler.add(sequence(id, 8, 12)).unwrap();
    }
    let mut seen = Vec::new();
    let mut next = Step::default();
    while !scheduler.is_idle() {
        scheduler.schedule(&mut next);
        seen.extend(next.preempted.iter().map(|id| (id.0, false)));
        seen.extend(next.sequences.iter().filter(|item| item.newly_admitted).map(|item| (item.id.0, true)));
        for item in &next.sequences {
            if scheduler.commit(item.id, u32::from(item.samples)).unwrap() == Progress::Length {
                scheduler.finish(item.id).unwrap();
            }
        }
    }
    assert_eq!(
        seen,
        [(1, true), (2, true), (2, false), (2, true), (3, true)],
        "(sequence, admitted or preempted)"
    );
}

#[test]
fn a_choice_shares_the_full_blocks_of_its_parents_prompt() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(sequence(1, 18, 9)).unwrap();
    scheduler.add(NewSequence { share_prefix_of: Some(SeqId(1)), ..sequence(2, 18, 9) }).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 16, 0)], "2 waits for the prompt of 1");
    assert_eq!(step(&mut scheduler), [(1, 16, 2, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 18, 1, 1), (2, 16, 2, 1)]);
    let (parent, child) = (scheduler.block_table(0, Slot(0)), scheduler.block_table(0, Slot(1)));
    assert_eq!((&parent[..4], parent[4] == child[4]), (&child[..4], false));
    assert_eq!(scheduler.stats().n_blocks_used, 6);
    scheduler.abort(SeqId(1)).unwrap();
    assert_eq!(scheduler.stats().n_blocks_used, 5, "the child keeps what it shares");
    scheduler.add(NewSequence { share_prefix_of: Some(SeqId(1)), ..sequence(3, 18, 9) }).unwrap();
    assert_eq!(
        step(&mut scheduler),
        [(2, 18, 1, 1), (3, 0, 15, 0)],
        "the parent has ended: 3 computes its own"
    );
}

/// The last prompt token is computed by everyone, else nobody would sample from it.
#[test]
fn a_prompt_of_whole_blocks_keeps_its_last_one_to_itself() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(sequence(1, 16, 9)).unwrap();
    scheduler.add(NewSequence { share_prefix_of: Some(SeqId(1)), ..sequence(2, 16, 9) }).unwrap();
    assert_eq!(step(&mut scheduler), [(1, 0, 16, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 16, 1, 1), (2, 12, 4, 1)]);
}

/// 2 is preempted with a long answer, and is computing it anew when 3 could take the blocks of their prompt over. What then
/// leaves the window of 2 would stay with 3, and as much is promised to 2 again: more than there is.
#[test]
fn a_window_is_not_shared_with_an_answer_that_is_recomputed() {
    let groups = vec![GroupLimits { n_blocks: 11, window: Some(13) }];
    let (max_batch, chunk_limit) = (2, Some(1));
    let limits = Limits { max_batch, max_num_tokens: 3, groups, block_tokens: 2, chunk_limit, ..limits() };
    let mut scheduler = Scheduler::new(limits).unwrap();
    let shared = |id, max_new_tokens| NewSequence {
        share_prefix_of: Some(SeqId(id - 1)),
        ..sequence(id, 11, max_new_tokens)
    };
    for new in [sequence(1, 11, 37), shared(2, 32), shared(3, 5)] {
        scheduler.add(new).unwrap();
    }
    while !scheduler.is_idle() {
        step(&mut scheduler);
    }
    let stats = scheduler.stats();
    assert_eq!((stats.n_preemptions, stats.n_shared_tokens), (1, 10), "2 took 10 from 1, 3 none from 2");
}

#[test]
fn refusals_name_the_numbers() {
    let mut scheduler = Scheduler::new(Limits { max_queue: 2, groups: pool(10), ..limits() }).unwrap();
    scheduler.add(sequence(5, 8, 1)).unwrap();
    let shared =
        |id, prompt_len| NewSequence { share_prefix_of: Some(SeqId(5)), ..sequence(id, prompt_len, 1) };
    let rows = [
        (sequence(5, 1, 1), "sequence 5: id must be greater than every id added before"),
        (sequence(6, 0, 1), "prompt: has no token"),
        (sequence(6, 64, 1), "prompt: 65 tokens with the first new one, max_seq_len is 64"),
        (sequence(6, 40, 1), "prompt: 41 tokens with the first new one, the KV pool holds 40"),
        (shared(6, 9), "sequence 6: prompt has 9 tokens, that of its prefix parent 8"),
    ];
    for (new, message) in rows {
        assert_eq!(scheduler.add(new).unwrap_err().to_string(), message);
    }
    scheduler.add(sequence(6, 40, 0)).unwrap();
    assert_eq!(scheduler.add(sequence(7, 1, 1)), Err(Refusal::QueueFull { max_queue: 2 }));
}

#[test]
fn limits_without_progress_are_refused() {
    let rows = [
        (
            Limits { max_num_tokens: 3, ..limits() },
            "max_num_tokens: 3 is below max_batch 4; raise it or lower max_batch",
        ),
        (
            Limits { max_sample_rows: 0, ..limits() },
            "max_sample_rows: 0 is below max_batch 4; raise it or lower max_batch",
        ),
        (Limits { chunk_limit: Some(0), ..limits() }, "chunk_limit: is 0, must be at least 1"),
    ];
    for (limits, message) in rows {
        let error: LimitsError = Scheduler::new(limits).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn calls_out_of_order_are_typed() {
    let mut scheduler = Scheduler::new(limits()).unwrap();
    scheduler.add(sequence(3, 4, 4)).unwrap();
    assert_eq!(scheduler.commit(SeqId(3), 0), Err(Misuse::NotScheduled(SeqId(3))));
    assert_eq!(scheduler.finish(SeqId(9)), Err(Misuse::Unknown(SeqId(9))));
    let mut next = Step::default();
    scheduler.schedule(&mut next);
    let wrong = Misuse::WrongAppend { id: SeqId(3), appended: 0, expected: 1 };
    assert_eq!(scheduler.commit(SeqId(3), 0), Err(wrong));
    scheduler.abort(SeqId(3)).unwrap();
    assert_eq!(scheduler.commit(SeqId(3), 1), Err(Misuse::Ended(SeqId(3))));
    assert_eq!(scheduler.abort(SeqId(3)), Err(Misuse::Ended(SeqId(3))));
}
