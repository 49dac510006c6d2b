//! Choices against a sort, weights against the formula, groups against their definition; bits across splits and paths.

use super::*;
use crate::testing::{SPLITS, run, values};

fn route(path: IsaPath, logits: &[f32], n: usize, k: usize, over: Over) -> (Vec<i32>, Vec<f32>) {
    let rows = logits.len() / n;
    let mut first: Option<(Vec<i32>, Vec<f32>)> = None;
    for split in SPLITS {
        let (mut ids, mut weights) = (vec![-7_i32; rows * k], vec![f32::NAN; rows * k]);
        let args = TopKArgs {
            path,
            logits: logits.into(),
            rows,
            n,
            k,
            over,
            ids: i32s(&mut ids),
            weights: weights.as_mut_slice().into(),
        };
        run(&TopK::new(args).unwrap(), split);
        match &first {
            None => first = Some((ids, weights)),
            Some((first_ids, first_weights)) => {
                let same = first_weights.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same && *first_ids == ids, "{split:?}");
            }
        }
    }
    first.unwrap()
}

fn i32s(v: &mut [i32]) -> Dst<'_> {
    // SAFETY: the view lives no longer than the borrow, and only one kernel uses it.
    unsafe { Dst::raw(DType::I32, v.as_mut_ptr().cast(), v.len() * 4) }.unwrap()
}

#[test]
fn ids_are_those_of_a_stable_sort() {
    for path in IsaPath::all() {
        for (n, k) in [(1, 1), (4, 2), (17, 17), (60, 4), (128, 8), (513, 9)] {
            // Coarse values, so that there are ties.
            let logits: Vec<f32> =
                values(n as u32, 5 * n, DType::F32).iter().map(|v| (v * 20.0).round()).collect();
            let (ids, weights) = route(path, &logits, n, k, Over::Chosen);
            for (r, row) in logits.chunks(n).enumerate() {
                let mut want: Vec<i32> = (0..n as i32).collect();
                want.sort_by(|a, b| row[*b as usize].partial_cmp(&row[*a as usize]).unwrap());
                assert_eq!(&ids[r * k..][..k], &want[..k]);
                let sum: f64 = weights[r * k..][..k].iter().map(|w| f64::from(*w)).sum();
                assert!((sum - 1.0).abs() < 1e-6, "{sum}");
            }
        }
    }
}

#[test]
fn weights_have_one_formula_on_every_path() {
    let n = 130;
    let logits: Vec<f32> = values(3, 3 * n, DType::F32).iter().map(|v| v * 9.0).collect();
    for over in [Over::All, Over::Chosen] {
        let want = route(IsaPath::force(crate::Isa::Scalar).unwrap(), &logits, n, 8, over);
        for path in IsaPath::all() {
            let got = route(path, &logits, n, 8, over);
            assert_eq!(got.0, want.0);
            assert!(got.1.iter().zip(&want.1).all(|(a, b)| a.to_bits() == b.to_bits()), "{path:?} {over:?}");
        }
        for (r, row) in logits.chunks(n).enumerate() {
            let e = |l: f32| f64::from(l).exp();
            let chosen = &want.0[r * 8..][..8];
            let sum: f64 = match over {
                Over::All => row.iter().map(|l| e(*l)).sum(),
                Over::Chosen => chosen.iter().map(|i| e(row[*i as usize])).sum(),
            };
            for (w, i) in want.1[r * 8..].iter().zip(chosen) {
                assert!((f64::from(*w) - e(row[*i as usize]) / sum).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn odd_values_have_a_place() {
    let path = IsaPath::detect();
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let ids = |row: &[f32]| route(path, row, row.len(), row.len(), Over::Chosen).0;
    assert_eq!(ids(&[-0.0, 0.0, nan, -inf, inf]), [4, 0, 1, 3, 2]);
    assert_eq!(ids(&[nan; 3]), [0, 1, 2]);
}

#[test]
fn choices_are_grouped_in_order() {
    let ids = [2, 0, 5, 2, -1, 0, 9, 2, 5];
    let (mut order, mut starts) = (vec![-7; ids.len()], vec![-7; 7]);
    let args = GroupChoicesArgs { ids: &ids, experts: 6, order: i32s(&mut order), starts: i32s(&mut starts) };
    run(&GroupChoices::new(args).unwrap(), SPLITS[0]);
    assert_eq!(starts, [0, 2, 2, 5, 5, 5, 7]);
    assert_eq!(order, [1, 5, 0, 3, 7, 2, 8, -7, -7]);
}

#[test]
fn shapes_are_checked() {
    let logits = [0.0_f32; 6];
    let build = |n: usize, k: usize, rows: usize| {
        let (mut ids, mut weights) = ([0_i32; 4], [0.0_f32; 4]);
        let (ids, weights) = (i32s(&mut ids), weights.as_mut_slice().into());
        let path = IsaPath::detect();
        TopK::new(TopKArgs {
            path,
            logits: logits.as_slice().into(),
            rows,
            n,
            k,
            over: Over::All,
            ids,
            weights,
        })
        .is_ok()
    };
    assert!(build(3, 2, 2) && !build(3, 4, 1) && !build(3, 0, 1) && !build(4, 2, 2) && !build(2, 2, 3));
    let (mut order, mut starts) = ([0; 3], [0; 3]);
    let mut group = |ids: &[i32], experts| {
        let (order, starts) = (i32s(&mut order), i32s(&mut starts));
        GroupChoices::new(GroupChoicesArgs { ids, experts, order, starts }).is_ok()
    };
    assert!(group(&[0; 3], 2) && !group(&[0; 4], 2) && !group(&[0; 3], 3) && !group(&[0; 3], 0));
}
