//! Tests of the interpreter on whole graphs: what shares a batch and how a prompt is cut changes no bit.

use proptest::prelude::*;

use crate::arbitrary::{Decoder, compare, decoders};
use crate::driver::Precision;
use crate::graph::Graph;
use crate::interp::{Batch, BatchSequence, Interpreter};
use crate::kv::KvState;
use crate::text::parse;
use crate::verify::verify;

fn prompt(n: usize, salt: usize, vocab: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * 7 + salt * 13 + i * i) % vocab) as i32).collect()
}

/// Logits of every position of `tokens`, computed in chunks of `chunk`, and the cache rows of layer 0.
fn in_chunks(run: &Interpreter<'_>, g: &Graph, tokens: &[i32], chunk: usize) -> (Vec<u32>, Vec<u32>) {
    let mut kv = KvState::new(g.cache());
    let mut bits = Vec::new();
    for (number, part) in tokens.chunks(chunk).enumerate() {
        let rows = (0..part.len()).collect();
        let sequence = BatchSequence { slot: 0, start: number * chunk, tokens: part.to_vec(), rows };
        let out = run.run(&Batch::new(vec![sequence]), &mut kv).unwrap();
        bits.extend(out.get("out").unwrap().floats().unwrap().iter().map(|x| x.to_bits()));
    }
    let (k, v) = kv.rows(0, 0).unwrap();
    (bits, k.iter().chain(v).map(|x| x.to_bits()).collect())
}

fn with_step_size(d: &Decoder, tokens: usize) -> Graph {
    let mut g = d.graph().unwrap();
    for name in ["t", "r"] {
        let symbol = g.find_symbol(name).unwrap();
        g.set_bounds(symbol, 0, tokens);
    }
    g
}

#[test]
fn chunking_and_threads_change_no_bit() {
    let d = Decoder::plain(1);
    let g = with_step_size(&d, 300);
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap();
    let tokens = prompt(300, 0, d.vocab);
    let whole = in_chunks(&run, &g, &tokens, 300);
    assert_eq!(whole.0.len(), 300 * d.vocab);
    for chunk in [1, 7, 64, 128, 129] {
        assert!(in_chunks(&run, &g, &tokens, chunk) == whole, "chunks of {chunk}");
    }
    for threads in [2, 3, 7] {
        let run = Interpreter::new(&g, &weights).unwrap().threads(threads);
        assert!(in_chunks(&run, &g, &tokens, 300) == whole, "{threads} threads");
    }
}

#[test]
fn company_changes_no_bit() {
    let d = Decoder { attention_bias: true, mlp_bias: true, ..Decoder::plain(2) };
    let g = with_step_size(&d, 300);
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap();
    let prompts = [prompt(130, 1, d.vocab), prompt(1, 2, d.vocab), prompt(20, 3, d.vocab)];
    let sequences = prompts.iter().enumerate().map(|(i, tokens)| BatchSequence {
        slot: 2 - i,
        start: 0,
        tokens: tokens.clone(),
        rows: vec![tokens.len() - 1],
    });
    let mut kv = KvState::new(g.cache());
    let together = run.run(&Batch::new(sequences.clone().collect()), &mut kv).unwrap();
    let together = together.get("out").unwrap().floats().unwrap().to_vec();
    for (i, sequence) in sequences.enumerate() {
        let mut own = KvState::new(g.cache());
        let alone = run.run(&Batch::new(vec![sequence.clone()]), &mut own).unwrap();
        assert_eq!(alone.get("out").unwrap().floats().unwrap(), &together[i * d.vocab..][..d.vocab]);
        assert_eq!(own.rows(sequence.slot, 1), kv.rows(sequence.slot, 1));
    }
}

#[test]
fn recomputing_a_tail_changes_no_bit() {
    let d = Decoder::plain(3);
    let g = d.graph().unwrap();
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap();
    let step = |start: usize, tokens: &[i32], kv: &mut KvState| {
        let rows = vec![tokens.len() - 1];
        let batch = Batch::new(vec![BatchSequence { slot: 0, start, tokens: tokens.to_vec(), rows }]);
        run.run(&batch, kv).unwrap()
    };
    let tokens = prompt(40, 4, d.vocab);
    let mut kv = KvState::new(g.cache());
    let first = step(0, &tokens, &mut kv);
    let again = step(25, &tokens[25..], &mut kv);
    assert_eq!((first, kv.len(0)), (again, 40));
    step(25, &[1, 2], &mut kv);
    assert_eq!(kv.len(0), 27);
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let d = Decoder::plain(4);
    let g = d.graph().unwrap();
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap();
    let one = |slot, start, tokens: Vec<i32>, rows| BatchSequence { slot, start, tokens, rows };
    for (sequences, want) in [
        (vec![one(0, 3, vec![1], vec![])], "batch: slot 0 starts at 3, the cache holds 0"),
        (vec![one(0, 0, vec![1], vec![1])], "batch: slot 0: row 1 of 1 tokens"),
        (vec![one(0, 0, vec![1], vec![]), one(0, 0, vec![1], vec![])], "batch: slot 0 stands twice"),
        (vec![one(0, 0, vec![1; 65], vec![])], "batch: t is 65, outside 1..=64"),
        (vec![one(0, 0, vec![30], vec![])], "embedding %h: token 30 is outside the table"),
    ] {
        let got = run.run(&Batch::new(sequences), &mut KvState::new(g.cache())).unwrap_err();
        assert_eq!(got.to_string(), want);
    }
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let d = Decoder::plain(5);
    let g = d.graph().unwrap();
    let batch = Batch::new(vec![BatchSequence { tokens: vec![0], ..BatchSequence::default() }]);
    let mut weights = d.weights(&g);
    let mut table = weights.remove("embed").unwrap();
    let refusal = |weights: &_| {
        let run = Interpreter::new(&g, weights).unwrap();
        run.run(&batch, &mut KvState::new(g.cache())).unwrap_err().to_string()
    };
    assert_eq!(refusal(&weights), "weight @embed: not among the given tensors");
    table.shape = vec![24, 30];
    weights.insert("embed".into(), table);
    assert_eq!(refusal(&weights), "weight @embed: is bf16[24, 30], declared bf16[30, 24]");
}

#[test]
fn every_inner_value_is_shown() {
    let d = Decoder::plain(6);
    let g = d.graph().unwrap();
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap().streaming();
    let mut seen = Vec::new();
    let mut kv = KvState::new(g.cache());
    run.run_watched(&d.steps()[0], &mut kv, &mut |name, t| {
        assert!(t.floats().unwrap().iter().all(|x| t.dtype.round(*x) == *x), "{name} is not rounded");
        seen.push(name.to_string());
    })
    .unwrap();
    let tensors = g.nodes().filter(|(_, n)| !g.facts(n.outputs[0]).is_state()).count();
    assert_eq!(seen.len(), tensors);
    assert!(seen.contains(&"l1.attention".to_string()));
}

#[test]
fn a_step_goes_on_from_what_the_watcher_leaves() {
    let d = Decoder::plain(6);
    let g = d.graph().unwrap();
    let weights = d.weights(&g);
    let run = Interpreter::new(&g, &weights).unwrap();
    let last = |watch: &mut dyn FnMut(&str, &mut crate::Tensor)| {
        let out = run.run_watched(&d.steps()[0], &mut KvState::new(g.cache()), watch).unwrap();
        out.tensors[0].1.clone()
    };
    let plain = last(&mut |_, _| {});
    let moved = last(&mut |name, t| {
        if let ("l0.attention", crate::Data::Float(data)) = (name, &mut t.data) {
            data.fill(0.0);
        }
    });
    assert!(!plain.same_bits(&moved));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_decoders_verify_print_and_run(d in decoders()) {
        let g = d.graph().unwrap();
        verify(&g).unwrap();
        let text = g.to_string();
        let again = parse(&text).unwrap();
        prop_assert_eq!(again.to_string(), text);
        prop_assert_eq!(compare(&g, &again, &d.weights(&g), &d.steps(), Precision::Exact), Ok(()));
    }
}

#[test]
fn costs_follow_the_step() {
    let d = Decoder::plain(7);
    let g = d.graph().unwrap();
    let mut at = crate::facts::Bindings::default();
    at.bind(g.find_symbol("t").unwrap(), 3);
    at.bind(g.find_symbol("r").unwrap(), 1);
    let cost = |name: &str| g.cost(g.producer(g.find(name).unwrap()).unwrap(), &at);
    let gate = cost("l0.gate");
    assert_eq!(gate.flops, 2.0 * 3.0 * 20.0 * 24.0);
    assert_eq!(gate.bytes, (3 * 24 * 2 + 20 * 24 * 2 + 3 * 20 * 4) as f64);
    assert_eq!(cost("h").bytes, (3 * 4 + 2 * 3 * 24 * 2) as f64);
}
