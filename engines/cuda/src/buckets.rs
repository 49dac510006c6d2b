//! Sizes for which a decode step's graph is captured.

/// 1, 2, 4, ... and `limit` itself.
pub fn sizes(limit: u32) -> Vec<u32> {
    let mut sizes: Vec<u32> =
        std::iter::successors(Some(1u32), |n| n.checked_mul(2)).take_while(|n| *n < limit).collect();
    if limit > 0 {
        sizes.push(limit);
    }
    sizes
}

/// Index of the smallest size that holds `n`.
pub fn index_of(sizes: impl Iterator<Item = u32>, n: u32) -> Option<usize> {
    sizes.into_iter().position(|size| size >= n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_up_to_the_limit() {
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(8), [1, 2, 4, 8]);
        assert_eq!(sizes(11), [1, 2, 4, 8, 11]);
        assert!(sizes(0).is_empty());
        assert_eq!(sizes(u32::MAX).len(), 33);
    }

    #[test]
    fn the_smallest_that_holds_the_step_is_taken() {
        let found = |n| index_of(sizes(11).into_iter(), n);
        assert_eq!([1, 2, 3, 5, 8, 9, 11].map(found), [0, 1, 2, 3, 3, 4, 4].map(Some));
        assert_eq!(found(12), None);
    }
}
