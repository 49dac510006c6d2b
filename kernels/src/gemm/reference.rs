//! The maths of a GEMM, in f64.

/// `out[m][n] = sum over k of x[m][k] * w[n][k]`, plus bias.
pub fn gemm(x: &[f32], w: &[f32], bias: Option<&[f32]>, m: usize, n: usize, k: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * n);
    for r in 0..m {
        for c in 0..n {
            let dot: f64 = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[c * k + i])).sum();
            out.push((dot + bias.map_or(0.0, |b| f64::from(b[c]))) as f32);
        }
    }
    out
}

/// `silu(gate) * up` of the columns of a GEMM whose weight rows are `[gate; up]`.
pub fn silu_mul(y: &[f32], m: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * cols);
    for r in 0..m {
        for c in 0..cols {
            let g = f64::from(y[r * 2 * cols + c]);
            let u = f64::from(y[r * 2 * cols + cols + c]);
            out.push((g / (1.0 + (-g).exp()) * u) as f32);
        }
    }
    out
}
