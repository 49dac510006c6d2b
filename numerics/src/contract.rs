//! Slices, leaves and folds: the summation orders that never depend on the batch.

/// Identifies the summation rules that a plan was compiled for; stored in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContractId(pub u32);

/// The rules of this module: K slices, 128-position leaves, left folds, 16-lane trees.
pub const CONTRACT: ContractId = ContractId(1);

/// Absolute positions per attention leaf. Each leaf has its own maximum and a zero-started accumulator.
pub const ATTENTION_LEAF: usize = 128;

/// Lanes of the fixed tree that sums a row (norms, softmax): element `i` goes to lane `i % 16` in ascending `i`,
/// then lanes are added pairwise at distance 8, 4, 2, 1.
pub const TREE_LANES: usize = 16;

/// Output features per packed weight panel, the same for every CPU ISA.
pub const PANEL: usize = 16;

/// Number of equal K slices of a GEMM whose weight is `[n, k]`; a function of the weight's shape alone.
///
/// A narrow and deep weight has too few output tiles to fill a device, so K is cut: the smallest S in {1, 2, 4, 8}
/// with at least 128 tiles of 64 features by S, as long as slices stay whole multiples of 128 and at least 512 deep.
pub const fn gemm_slices(n: usize, k: usize) -> usize {
    let mut slices = 1;
    while slices < 8 {
        let next = slices * 2;
        if n.div_ceil(64) * slices >= 128 || !k.is_multiple_of(next * 128) || k / next < 512 {
            break;
        }
        slices = next;
    }
    slices
}

/// Adds 16 lanes in the contract's order.
pub fn tree16(lanes: &[f32; TREE_LANES]) -> f32 {
    let mut l = *lanes;
    let mut half = TREE_LANES / 2;
    while half > 0 {
        for i in 0..half {
            l[i] += l[i + half];
        }
        half /= 2;
    }
    l[0]
}

/// Running softmax state of one attention row: maximum, sum of weights; the weighted value sum lives beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafState {
    /// Largest score seen.
    pub max: f32,
    /// Sum of `exp(score - max)`.
    pub sum: f32,
}

/// Folds leaf `b` into the state `a` that covers all earlier leaves. Returns the new state and the factors that the
/// accumulators of `a` and `b` are multiplied with: `acc = acc_a * fa + acc_b * fb`, two products and one sum, unfused.
pub fn fold_leaf(a: LeafState, b: LeafState) -> (LeafState, f32, f32) {
    let max = if b.max > a.max { b.max } else { a.max };
    let fa = crate::exp::exp(a.max - max);
    let fb = crate::exp::exp(b.max - max);
    (LeafState { max, sum: a.sum * fa + b.sum * fb }, fa, fb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_the_shape() {
        // (n, k, slices): Llama-3.2-1B's weights, then borders.
        for (n, k, s) in [
            (3072, 2048, 4),
            (2048, 2048, 4),
            (16384, 2048, 1),
            (2048, 8192, 4),
            (128_256, 2048, 1),
            (256, 8192, 8),
            (64, 1024, 2),
            (64, 1023, 1),
            (1, 512, 1),
        ] {
            assert_eq!(gemm_slices(n, k), s, "n {n} k {k}");
            assert_eq!(k % s, 0);
        }
    }

    #[test]
    fn tree_order_is_pairwise() {
        let mut lanes = [0.0; 16];
        lanes[0] = 1e8;
        lanes[8] = -1e8;
        lanes[1] = 1.0;
        assert_eq!(tree16(&lanes), 1.0);
    }

    #[test]
    fn folding_an_equal_leaf_doubles_the_sum() {
        let a = LeafState { max: 2.0, sum: 3.0 };
        let (s, fa, fb) = fold_leaf(a, a);
        assert_eq!((s.max, s.sum, fa, fb), (2.0, 6.0, 1.0, 1.0));
    }
}
