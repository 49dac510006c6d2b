//! Made-up operands.

use lathe_numerics::DType;
use lathe_numerics::philox::{self, philox4x32};

/// Uniform in (-1, 1), rounded to a dtype.
pub fn uniform(seed: u32, n: usize, dtype: DType) -> Vec<f32> {
    (0..n.div_ceil(4))
        .flat_map(|i| philox4x32([i as u32, 0, 0, 0], [seed, 7]))
        .map(|w| dtype.round((w >> 8) as f32 / 8_388_608.0 - 1.0))
        .take(n)
        .collect()
}

/// Values over the whole range that matters to an exponential, and its ends, rounded to a dtype.
pub fn wide(seed: u64, n: usize, dtype: DType) -> Vec<f32> {
    let ends = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 88.5, -88.5, 87.0, -87.0, 1e-30];
    let wide = (0..n).map(|i| {
        let u = philox::uniform(seed, 0, i as u32) * 2.0 - 1.0;
        u * [1.0, 10.0, 95.0][i % 3]
    });
    ends.into_iter().chain(wide).take(n).map(|v| dtype.round(v)).collect()
}
