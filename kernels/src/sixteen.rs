//! Sixteen f32 in the registers of an instruction set, and products that keep their sums there: they run in parts of few
//! rows, or of fewer rows of more columns. No closures where sums are: one that is not inlined would take all of them
//! through memory.

use std::sync::atomic::{Ordering, compiler_fence};

use crate::Element;

/// Most panels of a part with 1, 2, ... rows: at most six times sixteen sums.
const WIDTHS: [usize; 6] = [4, 2, 2, 1, 1, 1];

/// Sixteen f32 in registers.
pub(crate) trait Sixteen: Copy {
    /// # Safety
    /// As of all functions here: the instruction set is there, and what is read or written exists, at any alignment.
    unsafe fn zero() -> Self;

    /// Sixteen neighbours, widened.
    ///
    /// # Safety
    /// As `zero`.
    unsafe fn load<T: Element>(at: *const T) -> Self;

    /// The upper or lower halves of sixteen words, as bf16, widened.
    ///
    /// # Safety
    /// As `zero`.
    unsafe fn load_half(at: *const u32, upper: bool) -> Self;

    /// # Safety
    /// As `zero`.
    unsafe fn store(self, to: *mut f32);

    /// # Safety
    /// As `zero`.
    unsafe fn add(self, other: Self) -> Self;

    /// `self + x * w`, fused.
    ///
    /// # Safety
    /// As `zero`.
    unsafe fn add_product(self, x: f32, w: Self) -> Self;

    /// [`Product::part`], compiled for the instruction set.
    ///
    /// # Safety
    /// As `zero` and `part`.
    unsafe fn part<const R: usize, const P: usize>(product: &impl Product, row: usize, panel: usize);
}

/// A product of rows with panels, which are sixteen columns.
pub(crate) trait Product {
    /// Does R rows from `row` of P panels from `panel`. Inlined always, as is all that it calls.
    ///
    /// # Safety
    /// The part lies within the product; the instruction set is there.
    unsafe fn part<S: Sixteen, const R: usize, const P: usize>(&self, row: usize, panel: usize);
}

/// Has what was read before read again, if `crowded`: where the sums leave no register to keep it in, the compiler would
/// rather keep sums in memory.
#[inline(always)]
pub(crate) fn read_again(crowded: bool) {
    if crowded {
        compiler_fence(Ordering::SeqCst);
    }
}

/// Does all of a product, in parts.
///
/// # Safety
/// The product has so many rows and panels; the instruction set is there.
#[inline(always)]
pub(crate) unsafe fn run<S: Sixteen>(product: &impl Product, rows: usize, panels: usize) {
    let count = rows.div_ceil(WIDTHS.len());
    for i in 0..count {
        let (row, end) = (i * rows / count, (i + 1) * rows / count);
        let mut panel = 0;
        while panel < panels {
            let width = WIDTHS[end - row - 1].min(panels - panel);
            // SAFETY: passed on; the part lies within the product.
            unsafe {
                match (end - row, width) {
                    (1, 4) => S::part::<1, 4>(product, row, panel),
                    (1, 3) => S::part::<1, 3>(product, row, panel),
                    (1, 2) => S::part::<1, 2>(product, row, panel),
                    (1, 1) => S::part::<1, 1>(product, row, panel),
                    (2, 2) => S::part::<2, 2>(product, row, panel),
                    (2, 1) => S::part::<2, 1>(product, row, panel),
                    (3, 2) => S::part::<3, 2>(product, row, panel),
                    (3, 1) => S::part::<3, 1>(product, row, panel),
                    (4, 1) => S::part::<4, 1>(product, row, panel),
                    (5, 1) => S::part::<5, 1>(product, row, panel),
                    (6, 1) => S::part::<6, 1>(product, row, panel),
                    (rows, panels) => unreachable!("a part of {rows} rows and {panels} panels"),
                }
            }
            panel += width;
        }
    }
}
