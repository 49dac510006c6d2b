//! Log probabilities of raw logits.

use lathe_numerics::contract::TREE_LANES;

use crate::{IsaPath, lanes};

/// An id and its log probability (nats).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TopLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// What is reported of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprobs {
    /// Natural logarithm of the token's probability under the raw logits; NaN for an id outside the row.
    pub logprob: f32,
    /// 1 for the likeliest; ties by id.
    pub rank: u32,
    /// How many entries of `top` were filled.
    pub n_top: usize,
}

/// Log probability and rank of `id` and the likeliest ids, filled into `top` by descending probability, ties by id.
/// NaN logits count as minus infinity.
pub fn logprobs(path: IsaPath, row: &[f32], id: u32, top: &mut [TopLogprob]) -> Logprobs {
    path.run(
        #[inline(always)]
        || {
            let norm = log_sum_exp(row);
            let logprob = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { (f64::from(x) - norm) as f32 };
            let n_top = largest(row, top);
            for t in &mut top[..n_top] {
                t.logprob = logprob(row[t.id as usize]);
            }
            let Some(&x) = row.get(id as usize) else {
                return Logprobs { logprob: f32::NAN, rank: row.len() as u32 + 1, n_top };
            };
            let (before, after) = row.split_at(id as usize);
            let greater: u32 = row.iter().map(|v| u32::from(*v > x)).sum();
            let ties: u32 = before.iter().map(|v| u32::from(*v == x)).sum();
            debug_assert!(!after.is_empty());
            Logprobs { logprob: logprob(x), rank: 1 + greater + ties, n_top }
        },
    )
}

/// `ln(sum(exp(x)))`: f32 exponentials of the distance to the maximum, summed in 16 f64 lanes.
#[inline(always)]
fn log_sum_exp(row: &[f32]) -> f64 {
    let mut maxima = [f32::NEG_INFINITY; TREE_LANES];
    let (chunks, tail) = row.as_chunks::<TREE_LANES>();
    for c in chunks {
        for l in 0..TREE_LANES {
            maxima[l] = if c[l] > maxima[l] { c[l] } else { maxima[l] };
        }
    }
    let max = maxima.iter().chain(tail).fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    if max.is_infinite() {
        return f64::from(max);
    }
    let weight = |x: f32| {
        let e = lanes::exp(x - max);
        f64::from(if e.is_nan() { 0.0 } else { e })
    };
    let mut sums = [0.0f64; TREE_LANES];
    for c in chunks {
        for l in 0..TREE_LANES {
            sums[l] += weight(c[l]);
        }
    }
    for (s, x) in sums.iter_mut().zip(tail) {
        *s += weight(*x);
    }
    f64::from(max) + sums.iter().sum::<f64>().ln()
}

/// Fills `top` with the ids of the largest logits, descending, ties by id; returns how many.
#[inline(always)]
fn largest(row: &[f32], top: &mut [TopLogprob]) -> usize {
    let want = top.len().min(row.len());
    let mut n = 0;
    if want == 0 {
        return 0;
    }
    let mut floor = f32::NEG_INFINITY;
    for (c, chunk) in row.chunks(64).enumerate() {
        // Ids ascend, so a tie with the floor never displaces it.
        if n == want && !chunk.iter().fold(false, |any, v| any | (*v > floor)) {
            continue;
        }
        for (i, &x) in chunk.iter().enumerate() {
            if x.is_nan() || (n == want && x <= floor) {
                continue;
            }
            let mut at = if n == want { n - 1 } else { n };
            while at > 0 && row[top[at - 1].id as usize] < x {
                top[at] = top[at - 1];
                at -= 1;
            }
            top[at].id = (c * 64 + i) as u32;
            n = (n + 1).min(want);
            floor = row[top[n - 1].id as usize];
        }
    }
    n
}
