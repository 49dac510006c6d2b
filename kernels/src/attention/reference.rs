//! The maths of attention, in f64.

/// One query row of one head over `k` and `v`, each `[n, head_dim]`.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], scale: f32) -> Vec<f32> {
    let hd = q.len();
    let scores: Vec<f64> = k
        .chunks_exact(hd)
        .map(|k| k.iter().zip(q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * f64::from(scale))
        .collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0f64; hd];
    for (w, v) in weights.iter().zip(v.chunks_exact(hd)) {
        out.iter_mut().zip(v).for_each(|(o, v)| *o += w * f64::from(*v));
    }
    out.iter().map(|o| (o / sum) as f32).collect()
}
