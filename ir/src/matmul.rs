//! Rows times a weight, in the numeric contract's order: every projection of the interpreter.
//!
//! K is cut into `gemm_slices(n, k)` slices; an element of the result sums each slice from zero in ascending k, with
//! separate products and sums in f32, and folds the slices left. `plainly` in the tests is just that. Here many elements are
//! summed side by side, each in its own accumulator, and threads share out the features: neither changes a bit.

use lathe_numerics::gemm_slices;

use crate::parallel;

/// Rows of x that are summed side by side, and as many as there may be left over for narrow sums.
const WIDE: usize = 16;
const NARROW: usize = 4;
/// Features that a thread takes at once: their slice stays in its cache while all rows pass.
const FEATURES: usize = 32;

/// `x w^T` for `x: [t, k]` and `w: [n, k]`.
pub(crate) fn matmul(x: &[f32], w: &[f32], n: usize, k: usize, threads: usize) -> Vec<f32> {
    matmul_on(paths()[0], x, w, n, k, threads)
}

fn matmul_on(path: Path, x: &[f32], w: &[f32], n: usize, k: usize, threads: usize) -> Vec<f32> {
    let t = x.len() / k;
    let left_over = if t % WIDE <= NARROW { t % WIDE } else { 0 };
    let (wide, narrow) = x.split_at((t - left_over) * k);
    let (wide, narrow) = (transposed(wide, k), transposed(narrow, k));
    let mut out = vec![0.0; t * n];
    let mut parts: Vec<Part<'_>> = w
        .chunks(FEATURES * k)
        .map(|w| Part { wide: &wide, narrow: &narrow, w, k, depth: k / gemm_slices(n, k), ys: Vec::new() })
        .collect();
    for row in out.chunks_exact_mut(n) {
        parts.iter_mut().zip(row.chunks_mut(FEATURES)).for_each(|(part, y)| part.ys.push(y));
    }
    parallel::for_each(threads, parts.into_iter(), path);
    out
}

/// Groups of `LANES` rows, each as `[k, LANES]`; the last one is filled up with zeros.
fn transposed<const LANES: usize>(x: &[f32], k: usize) -> Vec<[f32; LANES]> {
    let mut columns = vec![[0.0; LANES]; x.len().div_ceil(LANES * k) * k];
    for (rows, columns) in x.chunks(LANES * k).zip(columns.chunks_exact_mut(k)) {
        for (lane, row) in rows.chunks_exact(k).enumerate() {
            columns.iter_mut().zip(row).for_each(|(column, v)| column[lane] = *v);
        }
    }
    columns
}

/// Some features for all rows.
struct Part<'a> {
    wide: &'a [[f32; WIDE]],
    narrow: &'a [[f32; NARROW]],
    w: &'a [f32],
    k: usize,
    /// Elements of a slice of K.
    depth: usize,
    /// Their columns of the result, row by row.
    ys: Vec<&'a mut [f32]>,
}

impl Part<'_> {
    #[inline(always)]
    fn multiply<const BLOCK: usize>(mut self) {
        let mut ys = std::mem::take(&mut self.ys);
        let n_wide = ys.len().min(self.wide.len() / self.k * WIDE);
        let (wide, narrow) = ys.split_at_mut(n_wide);
        self.rows::<WIDE, BLOCK>(self.wide, wide);
        self.rows::<NARROW, BLOCK>(self.narrow, narrow);
    }

    #[inline(always)]
    fn rows<const LANES: usize, const BLOCK: usize>(&self, x: &[[f32; LANES]], ys: &mut [&mut [f32]]) {
        let (k, last) = (self.k, self.w.len() / self.k - 1);
        for from in (0..k).step_by(self.depth) {
            let slice = from..from + self.depth;
            for (x, ys) in x.chunks_exact(k).zip(ys.chunks_mut(LANES)) {
                for first in (0..=last).step_by(BLOCK) {
                    // A last block that is short repeats the last feature.
                    let feature = |at: usize| &self.w[(first + at).min(last) * k..][slice.clone()];
                    let sums = sums(&x[slice.clone()], std::array::from_fn::<_, BLOCK, _>(feature));
                    for (lane, y) in ys.iter_mut().enumerate() {
                        for (y, sum) in y[first..].iter_mut().zip(&sums) {
                            *y = if from == 0 { sum[lane] } else { *y + sum[lane] };
                        }
                    }
                }
            }
        }
    }
}

/// One slice of K: the sums of `LANES` rows and `BLOCK` features.
#[inline(always)]
fn sums<const LANES: usize, const BLOCK: usize>(
    x: &[[f32; LANES]],
    w: [&[f32]; BLOCK],
) -> [[f32; LANES]; BLOCK] {
    let w = w.map(|w| &w[..x.len()]);
    let mut sums = [[0.0; LANES]; BLOCK];
    for (k, x) in x.iter().enumerate() {
        for (sum, w) in sums.iter_mut().zip(&w) {
            for lane in 0..LANES {
                sum[lane] += x[lane] * w[k];
            }
        }
    }
    sums
}

/// The same loops, compiled for an instruction set. None may contract a product and a sum: `fma` is never enabled.
type Path = fn(Part<'_>);

/// What this machine has, the fastest first.
fn paths() -> Vec<Path> {
    let mut paths: Vec<Path> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: it was detected.
            paths.push(|part| unsafe { avx512(part) });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: it was detected.
            paths.push(|part| unsafe { avx2(part) });
        }
    }
    paths.push(portable);
    paths
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(part: Part<'_>) {
    part.multiply::<8>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(part: Part<'_>) {
    part.multiply::<4>();
}

/// As many accumulators as sixteen registers of four lanes hold.
fn portable(part: Part<'_>) {
    part.multiply::<2>();
}

#[cfg(test)]
mod tests {
    use lathe_numerics::DType;
    use lathe_numerics::philox::uniform;

    use super::*;

    fn plainly(x: &[f32], w: &[f32], n: usize, k: usize) -> Vec<f32> {
        let depth = k / gemm_slices(n, k);
        let mut out = Vec::new();
        for x in x.chunks_exact(k) {
            for w in w.chunks_exact(k) {
                let slices = x.chunks_exact(depth).zip(w.chunks_exact(depth));
                let sums = slices.map(|(x, w)| x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| sum + x * w));
                out.extend(sums.reduce(|total, sum| total + sum));
            }
        }
        out
    }

    fn noise(dtype: DType, n: usize, seed: u64) -> Vec<f32> {
        (0..n).map(|i| dtype.round(uniform(seed, 0, i as u32) * 4.0 - 2.0)).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn every_path_and_thread_count_has_the_bits_of_plain_loops() {
        // Rows around the widths, features around a block and a part, K of one to eight slices.
        let rows = [0, 1, 3, 4, 5, 15, 16, 17, 20, 21, 37];
        let weights = [(1, 1), (3, 5), (33, 7), (64, 129), (70, 24), (31, 1024), (5, 2048), (9, 4096)];
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (n, k) in weights {
                let w = noise(dtype, n * k, 1);
                let x = noise(dtype, 37 * k, 2);
                let want = plainly(&x, &w, n, k);
                for t in rows {
                    for path in paths() {
                        for threads in [1, 2, 3, 7] {
                            let got = matmul_on(path, &x[..t * k], &w, n, k, threads);
                            assert!(bits(&got) == bits(&want[..t * n]), "{dtype} {t} {n} {k} on {threads}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn signs_of_zero_and_infinities_are_those_of_plain_loops() {
        let mut x = noise(DType::F32, 6 * 1024, 3);
        x[..1024].fill(-0.0);
        x[1024] = f32::INFINITY;
        x[2048..2560].fill(f32::MIN_POSITIVE / 4.0);
        let w = noise(DType::F32, 2 * 1024, 4);
        assert_eq!(gemm_slices(2, 1024), 2);
        assert_eq!(bits(&matmul(&x, &w, 2, 1024, 2)), bits(&plainly(&x, &w, 2, 1024)));
    }
}
