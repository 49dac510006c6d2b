//! The promise of one answer: bits of tokens, logprobs and KV do not depend on company, chunks, threads or preemption.

use lathe_api::Engine;
use lathe_cpu::Isa;
use lathe_tests::answers::{alone, kv_of, mixed, plan, same};
use lathe_tests::drive::{Conditions, Request, compile, load, run, token};
use lathe_tests::{architectures, fixture};
use rand::SeedableRng;
use rand::seq::SliceRandom;

#[test]
fn company_chunks_threads_and_preemption_do_not_show() {
    let plan = plan("bfloat16", "bf16", "cpu");
    let requests = mixed();
    let want = alone(&mut load(&plan, 1, None).unwrap(), &requests);
    assert!(want.iter().zip(&requests).all(|(a, r)| a.tokens.len() == r.max_new as usize));
    assert!(
        want.iter()
            .zip(&requests)
            .all(|(a, r)| a.prompt.len() == if r.score_prompt { r.prompt.len() - 1 } else { 0 })
    );
    // Answers that were all alike would hide everything.
    assert!(want.iter().flat_map(|a| &a.tokens).collect::<std::collections::BTreeSet<_>>().len() > 50);

    let mut order: Vec<usize> = (0..requests.len()).collect();
    let mut rng = rand::rngs::SmallRng::seed_from_u64(9);
    for threads in [1, 2] {
        let mut engine = load(&plan, threads, None).unwrap();
        for chunk in [Some(1), Some(7), Some(64), None] {
            order.shuffle(&mut rng);
            let conditions = Conditions { chunk, arrivals_per_step: 3, ..Conditions::default() };
            let (got, _) = run(&mut engine, &requests, &order, &conditions).unwrap();
            same(&want, &got, &format!("in company, chunk {chunk:?}, {threads} threads"));
        }
        let conditions = Conditions { n_blocks: Some(24), ..Conditions::default() };
        let (got, preemptions) = run(&mut engine, &requests, &order, &conditions).unwrap();
        assert!(preemptions > 0, "no preemption was forced");
        same(&want, &got, &format!("after preemption, {threads} threads"));
    }
}

#[test]
fn every_dtype_and_path_has_one_answer() {
    let requests: Vec<Request> = mixed().into_iter().step_by(3).collect();
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    for (dtype, kv) in [("bfloat16", "f32"), ("float16", "f16"), ("float32", "f32"), ("float32", "bf16")] {
        let plan = plan(dtype, kv, "cpu");
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let mut engine = load(&plan, 2, Some(isa)).unwrap();
            let want = alone(&mut engine, &requests);
            let conditions = Conditions { chunk: Some(33), n_blocks: Some(28), ..Conditions::default() };
            let (got, _) = run(&mut engine, &requests, &order, &conditions).unwrap();
            same(&want, &got, &format!("{dtype}, KV {kv}, {isa}"));
        }
    }
}

#[test]
fn kv_bytes_and_logits_of_a_position_do_not_depend_on_the_way_there() {
    for (dtype, kv) in [("bfloat16", "bf16"), ("float32", "f16"), ("float16", "f32")] {
        let plan = plan(dtype, kv, "cpu");
        let ids: Vec<u32> = (0..300).map(|i| token(i, 611)).collect();
        let (want_kv, want_logits) = kv_of(&mut load(&plan, 2, None).unwrap(), &ids[..256], 256, false);
        assert!(want_kv.iter().any(|b| *b != 0));
        for (chunk, beside) in [(1, false), (1, true), (7, false), (64, true), (255, false), (100, true)] {
            let (got_kv, got_logits) = kv_of(&mut load(&plan, 2, None).unwrap(), &ids[..256], chunk, beside);
            assert!(want_kv == got_kv, "KV bytes differ: {dtype}, chunk {chunk}, neighbour {beside}");
            assert!(
                want_logits.iter().zip(&got_logits).all(|(a, b)| a.to_bits() == b.to_bits()),
                "logits differ: {dtype}, chunk {chunk}, neighbour {beside}"
            );
        }
    }
}

#[test]
fn every_architecture_has_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    for name in architectures() {
        let out = dir.path().join("a.plan");
        let limits = ["--max-batch", "8", "--max-num-tokens", "256", "--tokenizer", "none"];
        let model = fixture(&name);
        let model = ["--model", model.to_str().unwrap()];
        compile(&[&model[..], &limits].concat(), &out).unwrap();
        let of = |threads| load(&out, threads, None).unwrap();
        let info = of(1).info().clone();
        let (vocab, longest) = (info.vocab_size, info.max_seq_len as usize);

        let ids: Vec<u32> = (0..longest.min(200) as u64).map(|i| token(i, vocab)).collect();
        let (want_kv, want_logits) = kv_of(&mut of(2), &ids, ids.len(), false);
        assert!(want_kv.iter().any(|b| *b != 0), "{name}");
        for (chunk, beside) in [(1, true), (7, false), (64, true)] {
            let (got_kv, got_logits) = kv_of(&mut of(2), &ids, chunk, beside);
            assert!(want_kv == got_kv, "KV bytes differ: {name}, chunk {chunk}, neighbour {beside}");
            let same = want_logits.iter().zip(&got_logits).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "logits differ: {name}, chunk {chunk}, neighbour {beside}");
        }

        let fits = |r: &Request| r.prompt.len() + (r.max_new as usize) < longest;
        let inside = |r: Request| Request { prompt: r.prompt.iter().map(|t| t % vocab).collect(), ..r };
        let requests: Vec<Request> = mixed().into_iter().filter(fits).map(inside).step_by(4).collect();
        let want = alone(&mut of(1), &requests);
        let order: Vec<usize> = (0..requests.len()).rev().collect();
        let conditions = Conditions { chunk: Some(7), arrivals_per_step: 3, ..Conditions::default() };
        let (got, _) = run(&mut of(2), &requests, &order, &conditions).unwrap();
        same(&want, &got, &format!("in company: {name}"));
    }
}
