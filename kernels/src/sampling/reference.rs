//! Sampling by sorting everything, in f64.

use super::{Context, Params};

/// The adjusted logits, before temperature.
pub fn adjusted(row: &[f32], p: &Params, cx: &Context) -> Vec<f64> {
    let mut x: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
    for (id, b) in cx.bias {
        x[*id as usize] += f64::from(*b);
    }
    for id in cx.suppressed {
        x[*id as usize] = f64::NEG_INFINITY;
    }
    for (id, x) in x.iter_mut().enumerate() {
        let count = cx.output.iter().filter(|o| **o as usize == id).count();
        if count > 0 || cx.prompt.iter().any(|o| *o as usize == id) {
            let r = f64::from(p.repetition_penalty);
            *x = if *x > 0.0 { *x / r } else { *x * r };
        }
        if count > 0 {
            *x -= count as f64 * f64::from(p.frequency_penalty) + f64::from(p.presence_penalty);
        }
        if cx.allowed.is_some_and(|m| m[id / 32] >> (id % 32) & 1 == 0) {
            *x = f64::NEG_INFINITY;
        }
    }
    x
}

/// The probability of every id; what `draw` samples from when temperature is above zero.
pub fn distribution(row: &[f32], p: &Params, cx: &Context) -> Vec<f64> {
    let x = adjusted(row, p, cx);
    let max = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let mut w: Vec<f64> = x.iter().map(|x| ((x - max) / f64::from(p.temperature)).exp()).collect();
    w.iter_mut().for_each(|w| *w = if *w < f64::from(p.min_p) { 0.0 } else { *w });
    let mut order: Vec<usize> = (0..w.len()).filter(|i| w[*i] > 0.0).collect();
    order.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
    if p.top_k > 0 {
        order.truncate(p.top_k as usize);
    }
    if p.top_p < 1.0 {
        let total: f64 = order.iter().map(|i| w[*i]).sum();
        let mut sum = 0.0;
        let keep = order.iter().take_while(|i| {
            let take = sum < f64::from(p.top_p) * total;
            sum += w[**i];
            take
        });
        let keep = keep.count().max(1);
        order.truncate(keep);
    }
    let total: f64 = order.iter().map(|i| w[*i]).sum();
    let mut out = vec![0.0; w.len()];
    order.iter().for_each(|i| out[*i] = w[*i] / total);
    out
}
