//! The maths of attention, in f64.

/// One query row of one head over `k` and `v`, each `[n, head_dim]`, of which it sees the last `window` positions; with a
/// soft cap on the scaled scores, and with a sink, a score whose value is nothing.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scale: f32,
    window: Option<u32>,
    softcap: Option<f32>,
    sink: Option<f32>,
) -> Vec<f32> {
    let hd = q.len();
    let skip = window.map_or(0, |w| (k.len() / hd).saturating_sub(w as usize));
    let score = |k: &[f32]| {
        let dot = k.iter().zip(q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * f64::from(scale);
        softcap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh())
    };
    let scores: Vec<f64> = k.chunks_exact(hd).skip(skip).map(score).collect();
    let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
    let max = scores.iter().fold(sink, |a, b| a.max(*b));
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
    let mut out = vec![0.0f64; hd];
    for (w, v) in weights.iter().zip(v.chunks_exact(hd).skip(skip)) {
        out.iter_mut().zip(v).for_each(|(o, v)| *o += w * f64::from(*v));
    }
    out.iter().map(|o| (o / sum) as f32).collect()
}
