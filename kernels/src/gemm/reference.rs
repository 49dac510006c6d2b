//! The maths of a GEMM, in f64.

use std::f64::consts::PI;

use lathe_numerics::Activation;

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

/// The activation in f64, by the definitions; the error function by its series and its continued fraction.
pub fn activation(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * erfc(-x / 2f64.sqrt()),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
    }
}

fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * 2.0 / PI.sqrt();
    }
    let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
    (-z * z).exp() / (fraction * PI.sqrt())
}

/// `act(gate) * up` of the columns of a GEMM whose weight rows are `[gate; up]`.
pub fn glu(act: Activation, y: &[f32], m: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(m * cols);
    for r in 0..m {
        for c in 0..cols {
            let g = f64::from(y[r * 2 * cols + c]);
            let u = f64::from(y[r * 2 * cols + cols + c]);
            out.push((activation(act, g) * u) as f32);
        }
    }
    out
}
