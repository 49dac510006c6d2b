//! Norms in the order that the kernels of `rms_norm/cuda` document: warps add by butterflies, then the first of them what
//! the warps have.

use lathe_numerics::DType;

/// Threads that add a row of `n`, each of them `RUN` neighbours at a time.
fn threads(n: usize) -> usize {
    n.div_ceil(RUN).next_multiple_of(32).min(512)
}

const RUN: usize = 8;

/// The sum of a row.
pub fn row_sum(terms: impl ExactSizeIterator<Item = f32>) -> f32 {
    let threads = threads(terms.len());
    sum(terms, threads, RUN)
}

/// The sum by a number of threads, each of them `run` neighbours at a time.
pub fn sum(terms: impl Iterator<Item = f32>, threads: usize, run: usize) -> f32 {
    let mut sums = vec![0.0f32; threads];
    terms.enumerate().for_each(|(i, v)| sums[i / run % threads] += v);
    let butterfly = |lanes: &[f32]| {
        let mut lanes: Vec<f32> = (0..32).map(|i| lanes.get(i).copied().unwrap_or(0.0)).collect();
        for distance in [16, 8, 4, 2, 1] {
            lanes = (0..32).map(|i| lanes[i] + lanes[i ^ distance]).collect();
        }
        lanes[0]
    };
    butterfly(&sums.chunks(32).map(butterfly).collect::<Vec<_>>())
}

/// One row's RMS norm.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, dtype: DType) -> Vec<f32> {
    let inv = 1.0 / (row_sum(x.iter().map(|v| v * v)) / x.len() as f32 + eps).sqrt();
    x.iter().zip(w).map(|(x, w)| dtype.round(x * inv * w)).collect()
}
