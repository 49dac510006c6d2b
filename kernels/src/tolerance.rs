//! How far a kernel may be from its reference, per dtype of its result.

use lathe_numerics::DType;

/// Bounds relative to the largest reference magnitude (`max`) and to the reference's L2 norm (`global`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest single error over the largest magnitude.
    pub max: f32,
    /// L2 norm of the error over the L2 norm of the reference.
    pub global: f32,
}

/// Bounds for results rounded to `dtype` that were computed from exactly the reference's inputs: half a unit in the
/// last place for the rounding, and f32 sums of a few thousand terms.
pub const fn of(dtype: DType) -> Tolerance {
    match dtype {
        DType::BF16 => Tolerance { max: 4.2e-3, global: 2.5e-3 },
        DType::F16 => Tolerance { max: 6e-4, global: 3.5e-4 },
        _ => Tolerance { max: 2e-5, global: 5e-6 },
    }
}

/// Errors of `got` against `want`.
pub fn errors(want: &[f32], got: &[f32]) -> Tolerance {
    let (mut max_err, mut max_ref, mut err2, mut ref2) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (w, g) in want.iter().zip(got) {
        let (w, e) = (f64::from(*w), (f64::from(*g) - f64::from(*w)).abs());
        // A NaN must count as an error, which `max` would drop.
        max_err = if e > max_err || e.is_nan() { e } else { max_err };
        max_ref = max_ref.max(w.abs());
        err2 += e * e;
        ref2 += w * w;
    }
    let (max_ref, ref2) = (max_ref.max(1e-30), ref2.max(1e-60));
    Tolerance { max: (max_err / max_ref) as f32, global: (err2 / ref2).sqrt() as f32 }
}

/// `Ok` when `got` is within the bounds for `dtype`.
///
/// # Errors
/// A sentence with both errors and both bounds.
pub fn check(dtype: DType, want: &[f32], got: &[f32]) -> Result<(), String> {
    if want.len() != got.len() {
        return Err(format!("{} values, want {}", got.len(), want.len()));
    }
    let (e, t) = (errors(want, got), of(dtype));
    if e.max <= t.max && e.global <= t.global {
        return Ok(());
    }
    Err(format!("{dtype}: max error {} (bound {}), global {} (bound {})", e.max, t.max, e.global, t.global))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_catch_one_bad_value_a_bias_and_nan() {
        let want: Vec<f32> = (0..100).map(|i| (i as f32).sin()).collect();
        assert_eq!(check(DType::F32, &want, &want), Ok(()));
        let mut one = want.clone();
        one[7] += 1e-3;
        assert!(check(DType::F32, &want, &one).is_err());
        let all: Vec<f32> = want.iter().map(|w| w + 1.5e-5).collect();
        assert!(check(DType::F32, &want, &all).is_err());
        one[7] = f32::NAN;
        assert!(check(DType::F32, &want, &one).is_err());
        assert!(check(DType::F32, &want, &want[1..]).is_err());
    }
}
