//! The maths of a layer norm, in f64.

/// One row; `bias` is empty where there is none.
pub fn layer_norm(x: &[f32], w: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let inv = 1.0 / (variance + f64::from(eps)).sqrt();
    let bias = |i: usize| bias.get(i).map_or(0.0, |b| f64::from(*b));
    let of =
        |(i, (x, w)): (usize, (&f32, &f32))| ((f64::from(*x) - mean) * inv * f64::from(*w) + bias(i)) as f32;
    x.iter().zip(w).enumerate().map(of).collect()
}
