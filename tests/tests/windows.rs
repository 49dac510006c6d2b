//! Sliding windows end to end: a cache group per window, one answer whatever has left it, memory within its bound.

use lathe_api::{BlockGroup, Engine};
use lathe_tests::answers::{Subject, alone, kv_of, mixed, plan, same, windowed};
use lathe_tests::drive::{Conditions, Emulation, Request, emulate, load, run, token};

const ALL_SLIDE: [&str; 2] = ["sliding", "sliding"];
const ONE_SLIDES: [[&str; 2]; 2] = [["sliding", "full"], ["full", "sliding"]];
const WINDOW: Option<u32> = Some(64);

/// Blocks that 16 sequences hold at once: of a window of 64 and a step of 256 positions each 11.
const SLIDING: BlockGroup = BlockGroup { n_blocks: 176, window: WINDOW };
const FULL: BlockGroup = BlockGroup { n_blocks: 192, window: None };

/// Half of them run over up to five windows, half are short and many of those fit into few blocks until they grow.
fn requests(n: usize) -> Vec<Request> {
    let long = mixed().into_iter().filter(|r| r.prompt.len() > 80 || r.max_new > 60);
    let short = mixed().into_iter().filter(|r| r.prompt.len() < 40 && r.max_new < 60);
    long.take(n / 2).chain(short.take(n / 2)).collect()
}

#[test]
fn a_window_has_a_pool_of_what_it_needs() {
    let groups = |types| load(&windowed(types, "cpu"), 1, None).unwrap().info().groups.clone();
    assert_eq!(groups(ALL_SLIDE), [SLIDING]);
    assert_eq!(groups(ONE_SLIDES[0]), [SLIDING, FULL]);
    assert_eq!(groups(ONE_SLIDES[1]), [FULL, SLIDING]);
    assert_eq!(groups(["full", "full"]), [FULL]);
}

#[test]
fn company_chunks_and_preemption_do_not_show() {
    let requests = requests(40);
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    let without = alone(&mut load(&plan("bfloat16", "bf16", "cpu"), 2, None).unwrap(), &requests);
    for types in [ALL_SLIDE, ONE_SLIDES[0], ONE_SLIDES[1]] {
        let plan = windowed(types, "cpu");
        let mut engine = load(&plan, 2, None).unwrap();
        let want = alone(&mut engine, &requests);
        let others = want.iter().zip(&without).zip(&requests).filter(|((a, b), _)| a != b);
        let others: Vec<usize> = others.map(|(_, r)| r.prompt.len() + r.max_new as usize).collect();
        assert!(others.len() > 8 && others.iter().all(|len| *len > 64), "{others:?}");
        for chunk in [Some(7), Some(64), None] {
            let conditions = Conditions { chunk, arrivals_per_step: 3, ..Conditions::default() };
            let (got, _) = run(&mut engine, &requests, &order, &conditions).unwrap();
            same(&want, &got, &format!("in company, {types:?}, chunk {chunk:?}"));
        }
        // Prompts of few blocks come in side by side, and their answers grow.
        let small = requests.iter().zip(&want).filter(|(r, _)| r.prompt.len() < 90);
        let (small, want): (Vec<Request>, Vec<_>) = small.map(|(r, w)| (r.clone(), w.clone())).unzip();
        let order: Vec<usize> = (0..small.len()).collect();
        let conditions = Conditions { n_blocks: Some(12), ..Conditions::default() };
        let (got, preemptions) = run(&mut engine, &small, &order, &conditions).unwrap();
        assert!(preemptions > 0, "{types:?}: no preemption was forced");
        same(&want, &got, &format!("after preemption, {types:?}"));
    }
}

/// KV bytes of both groups and logits at the end of `ids`.
fn way(engine: &mut dyn Subject, ids: &[u32], chunk: usize, beside: bool) -> (Vec<u8>, Vec<u32>) {
    let (mut bytes, logits) = kv_of(engine, ids, chunk, beside);
    // Of the window group: 11 blocks take turns, so four of them were written twice.
    bytes.extend((0..11).flat_map(|b| engine.kv_block(1, b).unwrap_or_default()));
    (bytes, logits.iter().map(|x| x.to_bits()).collect())
}

#[test]
fn kv_bytes_and_logits_do_not_depend_on_the_way_there() {
    let ids: Vec<u32> = (0..480).map(|i| token(i, 611)).collect();
    let plan = windowed(ONE_SLIDES[1], "cpu");
    let want = way(&mut load(&plan, 2, None).unwrap(), &ids, 256, false);
    assert!(want.0.iter().any(|b| *b != 0));
    for (chunk, beside) in [(1, false), (7, true), (64, false), (100, true)] {
        let got = way(&mut load(&plan, 2, None).unwrap(), &ids, chunk, beside);
        assert!(want == got, "chunk {chunk}, neighbour {beside}");
    }
}

#[test]
fn a_device_keeps_windows_too() {
    let plan = windowed(ONE_SLIDES[0], "cpu,sm_80");
    let requests: Vec<Request> = requests(12);
    assert!(requests.iter().any(|r| r.prompt.len() > 200));
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    let mut engine = emulate(&plan, Emulation::default()).unwrap();
    assert_eq!(engine.info().groups, [SLIDING, FULL]);
    let want = alone(&mut engine, &requests);
    let conditions = Conditions { chunk: Some(100), n_blocks: Some(17), ..Conditions::default() };
    let how = Emulation { without_graphs: true, seed: Some(5), ..Emulation::default() };
    let (got, preemptions) = run(&mut emulate(&plan, how).unwrap(), &requests, &order, &conditions).unwrap();
    same(&want, &got, "in company");
    assert!(preemptions > 0, "no preemption was forced");
    // Every access checked: no kernel reads an entry that is no block.
    let short: Vec<Request> = requests
        .iter()
        .filter(|r| r.prompt.len() > 120)
        .take(2)
        .map(|r| Request { max_new: r.max_new.min(6), ..r.clone() })
        .collect();
    let mut checked = emulate(&plan, Emulation { checked: true, ..Emulation::default() }).unwrap();
    let got = run(&mut checked, &short, &[0, 1], &conditions).unwrap().0;
    same(&alone(&mut engine, &short), &got, "checked");
}
