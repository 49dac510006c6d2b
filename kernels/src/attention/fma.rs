//! Product of weights and values by fused multiply-adds, values widened to f32, of any instruction set with registers of f32.

use std::marker::PhantomData;

use lathe_numerics::contract::PANEL;
use lathe_numerics::{ATTENTION_LEAF, DType};

use super::ValueArgs;
use crate::Element;
use crate::sixteen::{self, Product, Sixteen, read_again};
use crate::view::with_float;

/// # Safety
/// `args` covers `rows` rows and `chunks` chunks; the instruction set is there.
pub(super) unsafe fn values<S: Sixteen>(dtype: DType, rows: usize, chunks: usize, args: &ValueArgs) {
    with_float!(dtype, T => {
        let values = Values::<T> { chunks, args, values: PhantomData };
        // SAFETY: passed on.
        unsafe { sixteen::run::<S>(&values, rows, chunks) }
    });
}

/// A product with values of one type.
struct Values<'a, T> {
    chunks: usize,
    args: &'a ValueArgs<'a>,
    values: PhantomData<T>,
}

impl<T: Element> Product for Values<'_, T> {
    #[inline(always)]
    unsafe fn part<S: Sixteen, const R: usize, const C: usize>(&self, row: usize, chunk: usize) {
        let a = self.args;
        let &ValueArgs { p, v, ahead, row_len, .. } = a;
        let (size, col) = (size_of::<T>(), a.col + chunk * PANEL);
        let cut = chunk + C == self.chunks && a.last < PANEL;
        // Columns that a value row has, from the first of this part.
        let cols = if cut { (C - 1) * PANEL + a.last } else { C * PANEL };
        let mut whole = [[0u8; PANEL * 4]; C];
        // SAFETY: accumulator rows are padded to whole chunks; a value row is read through a copy where its columns end
        // within a chunk.
        unsafe {
            let mut acc = [[S::zero(); C]; R];
            let sums = a.acc.add(row * a.acc_stride + chunk * PANEL);
            if a.resume {
                for r in 0..R {
                    for c in 0..C {
                        acc[r][c] = S::load(sums.add(r * a.acc_stride + c * PANEL).cast_const());
                    }
                }
            }
            for j in a.from..a.to {
                let panel = j / PANEL;
                let offset = ((j % PANEL) * row_len + col) * size;
                if let Some(ahead) = ahead {
                    crate::prefetch(ahead[panel].wrapping_add(offset));
                    crate::prefetch(ahead[panel].wrapping_add(offset + (C - 1) * PANEL * size));
                }
                let mut from = v[panel].add(offset);
                if cut {
                    std::ptr::copy_nonoverlapping(from, whole.as_mut_ptr().cast(), cols * size);
                    from = whole.as_ptr().cast();
                }
                for c in 0..C {
                    read_again(R * C > 5);
                    let v = S::load(from.cast::<T>().add(c * PANEL));
                    for r in 0..R {
                        acc[r][c] = acc[r][c].add_product(*p.add((row + r) * ATTENTION_LEAF + j), v);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    acc[r][c].store(sums.add(r * a.acc_stride + c * PANEL));
                }
            }
        }
    }
}
