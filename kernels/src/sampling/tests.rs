//! `sampling` against its reference, and its bits across paths.

use lathe_numerics::{DType, philox};
use proptest::prelude::*;

use super::{Context, Params, Scratch, TopLogprob, draw, logprobs, reference};
use crate::IsaPath;
use crate::testing::values;

fn one(row: &[f32], p: &Params, cx: &Context) -> Option<u32> {
    let mut s = Scratch::new(row.len());
    let first = draw(IsaPath::detect(), row, p, cx, &mut s);
    for path in IsaPath::all() {
        // Again on the used scratch, on every path.
        assert_eq!(first, draw(path, row, p, cx, &mut s));
    }
    first
}

/// The id the reference draws, or `None` when u lies within rounding of a border.
fn reference_draw(row: &[f32], p: &Params, cx: &Context) -> Option<u32> {
    let d = reference::distribution(row, p, cx);
    let u = f64::from(philox::uniform(p.seed, p.choice, cx.position));
    let mut sum = 0.0;
    for (id, q) in d.iter().enumerate() {
        sum += q;
        if (sum - u).abs() < 1e-5 {
            return None;
        }
        if sum > u {
            return Some(id as u32);
        }
    }
    None
}

#[test]
fn greedy_takes_the_largest_and_ties_the_lowest() {
    let cx = Context::default();
    let p = Params::default();
    assert_eq!(one(&[1.0, 3.0, 3.0, -1.0], &p, &cx), Some(1));
    assert_eq!(one(&[f32::NAN, -5.0, f32::NEG_INFINITY], &p, &cx), Some(1));
    assert_eq!(one(&[0.0, f32::INFINITY, f32::INFINITY], &p, &cx), Some(1));
    assert_eq!(one(&[f32::NAN; 5], &p, &cx), None);
    assert_eq!(one(&[], &p, &cx), None);
    let mut row = values(3, 5000, DType::F32);
    (row[777], row[4999]) = (2.0, 2.0);
    assert_eq!(one(&row, &p, &cx), Some(777));
    let hot = Params { temperature: 1.0, ..p };
    assert_eq!(one(&[0.0, f32::INFINITY], &hot, &cx), Some(1));
    assert_eq!(one(&[f32::NAN; 5], &hot, &cx), None);
    assert_eq!(one(&row, &Params { temperature: f32::NAN, ..p }, &cx), Some(777));
    assert_eq!(one(&row, &Params { temperature: 1.0, top_k: 1, ..p }, &cx), Some(777));
    assert_eq!(one(&row, &Params { temperature: 1.0, top_p: 0.0, ..p }, &cx), Some(777));
    assert_eq!(one(&row, &Params { temperature: 1e-30, ..p }, &cx).map(|i| row[i as usize]), Some(2.0));
}

#[test]
fn adjustments_apply_in_their_order() {
    let row = [2.0, 1.9, -1.0, 0.5];
    let greedy = |p: Params, cx: Context| one(&row, &p, &cx);
    let p = Params::default();
    let cx = Context::default();
    assert_eq!(greedy(p, Context { bias: &[(3, 2.0), (99, 50.0)], ..cx }), Some(3));
    assert_eq!(greedy(p, Context { bias: &[(3, 9.0)], suppressed: &[3, 0, 99], ..cx }), Some(1));
    assert_eq!(greedy(p, Context { allowed: Some(&[0b1100]), ..cx }), Some(3));
    assert_eq!(greedy(p, Context { allowed: Some(&[]), ..cx }), None);
    let rep = Params { repetition_penalty: 2.0, ..p };
    assert_eq!(greedy(rep, Context { prompt: &[0, 0, 77], ..cx }), Some(1));
    assert_eq!(greedy(rep, Context { prompt: &[0], output: &[1], ..cx }), Some(0));
    // Presence and frequency look at the output alone.
    let presence = Params { presence_penalty: 0.2, ..p };
    assert_eq!(greedy(presence, Context { prompt: &[0], ..cx }), Some(0));
    assert_eq!(greedy(presence, Context { output: &[0], ..cx }), Some(1));
    let frequency = Params { frequency_penalty: 0.06, ..p };
    assert_eq!(greedy(frequency, Context { output: &[0], ..cx }), Some(0));
    assert_eq!(greedy(frequency, Context { output: &[0, 0], ..cx }), Some(1));
}

#[test]
fn cuts_keep_ties_by_id() {
    // Four equal logits: top_k 2 and top_p 0.5 keep ids 0 and 1.
    let row = [1.0f32; 4];
    for p in [Params { top_k: 2, ..Params::default() }, Params { top_p: 0.5, ..Params::default() }] {
        let mut seen = [false; 4];
        for position in 0..200 {
            let p = Params { temperature: 0.7, seed: 11, ..p };
            seen[one(&row, &p, &Context { position, ..Context::default() }).unwrap() as usize] = true;
        }
        assert_eq!(seen, [true, true, false, false]);
    }
}

#[test]
fn frequencies_follow_the_distribution() {
    let row = values(8, 40, DType::F32).iter().map(|v| v * 4.0).collect::<Vec<_>>();
    let p = Params { temperature: 0.9, top_k: 12, top_p: 0.9, min_p: 0.02, seed: 5, ..Params::default() };
    let d = reference::distribution(&row, &p, &Context::default());
    let (mut counts, n) = (vec![0u32; 40], 20_000);
    let mut s = Scratch::new(40);
    for position in 0..n {
        let cx = Context { position, ..Context::default() };
        counts[draw(IsaPath::detect(), &row, &p, &cx, &mut s).unwrap() as usize] += 1;
    }
    for (c, q) in counts.iter().zip(&d) {
        let (got, sigma) = (f64::from(*c) / f64::from(n), (q * (1.0 - q) / f64::from(n)).sqrt());
        assert!((got - q).abs() <= 4.5 * sigma, "{got} {q}");
        assert_eq!(*c > 0, *q > 0.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn draws_equal_the_reference(
        seed in any::<u32>(), n in 1usize..3000, scale in 0.1f32..30.0, temperature in 0.05f32..3.0,
        top_k in prop_oneof![Just(0u32), 1u32..50], top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..0.3], coarse in any::<bool>(),
        repetition_penalty in prop_oneof![Just(1.0f32), 0.8f32..1.5], presence_penalty in -1.0f32..1.0,
        position in 0u32..1000,
    ) {
        let mut row: Vec<f32> = values(seed, n, DType::F32).iter().map(|v| v * scale).collect();
        if coarse {
            row.iter_mut().for_each(|v| *v = v.round());
        }
        let p = Params {
            temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty: 0.0,
            seed: u64::from(seed), choice: 0,
        };
        let (prompt, output): (Vec<u32>, Vec<u32>) = ((0..20).collect(), (15..40).collect());
        let inside = |v: Vec<u32>| v.into_iter().filter(|i| (*i as usize) < n).collect::<Vec<_>>();
        let (prompt, output) = (inside(prompt), inside(output));
        let cx = Context { position, prompt: &prompt, output: &output, ..Context::default() };
        let got = one(&row, &p, &cx).unwrap();
        // Both sides cut at borders that f32 weights may place one id apart: skip draws that a border decides.
        let exact = reference::distribution(&row, &p, &cx);
        let near = |p: &Params| reference::distribution(&row, p, &cx).iter().filter(|q| **q > 0.0).count();
        let stable = near(&Params { top_p: p.top_p - 1e-5, min_p: p.min_p * (1.0 + 1e-5), ..p })
            == near(&Params { top_p: if p.top_p < 1.0 { p.top_p + 1e-5 } else { 1.0 }, min_p: p.min_p * (1.0 - 1e-5), ..p });
        if stable && p.top_p < 1.0 || p.top_p >= 1.0 && p.min_p == 0.0 && p.repetition_penalty == 1.0 {
            if let Some(want) = reference_draw(&row, &p, &cx) {
                prop_assert_eq!(got, want);
            }
            prop_assert!(exact[got as usize] > 0.0);
        }
    }

    #[test]
    fn any_input_is_survived(bits in proptest::collection::vec(any::<u32>(), 0..300), t in any::<f32>(),
        top_k in any::<u32>(), top_p in any::<f32>(), min_p in any::<f32>(), rep in any::<f32>(), pres in any::<f32>(),
        ids in proptest::collection::vec(any::<u32>(), 0..9), id in any::<u32>()) {
        let row: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let p = Params { temperature: t, top_k, top_p, min_p, repetition_penalty: rep, presence_penalty: pres,
            frequency_penalty: pres, seed: 1, choice: 2 };
        let cx = Context { prompt: &ids, output: &ids, suppressed: &ids, ..Context::default() };
        if let Some(id) = one(&row, &p, &cx) {
            prop_assert!((id as usize) < row.len());
        }
        let mut top = [TopLogprob::default(); 20];
        let l = logprobs(IsaPath::detect(), &row, id, &mut top);
        prop_assert!(l.n_top <= row.len().min(20));
    }
}

#[test]
fn logprobs_equal_a_sort() {
    for (n, coarse) in [(1, false), (30, false), (5000, false), (5000, true), (100, true)] {
        let mut row: Vec<f32> = values(n as u32, n, DType::F32).iter().map(|v| v * 20.0).collect();
        if coarse {
            row.iter_mut().for_each(|v| *v = v.round());
        }
        let norm = row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        for path in IsaPath::all() {
            for id in [0, n / 2, n - 1] {
                let mut top = [TopLogprob::default(); 20];
                let l = logprobs(path, &row, id as u32, &mut top);
                assert!((f64::from(l.logprob) - (f64::from(row[id]) - norm)).abs() < 1e-5);
                assert_eq!(l.rank as usize, 1 + order.iter().position(|o| *o == id).unwrap());
                assert_eq!(l.n_top, n.min(20));
                for (t, o) in top[..l.n_top].iter().zip(&order) {
                    assert_eq!(t.id as usize, *o);
                    assert!((f64::from(t.logprob) - (f64::from(row[*o]) - norm)).abs() < 1e-5);
                }
            }
        }
    }
}
