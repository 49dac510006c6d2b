//! Rows of a table by token id. The table is row-major or packed for a GEMM (tied embeddings are stored once).

use std::ops::Range;

use crate::error::{KernelError, at_least, at_most, product, span};
use crate::gemm::{packed_index, packed_len, padded_k};
use crate::view::{float, same, with_float};
use crate::{Dst, Element, IsaPath, Kernel, Src};

#[cfg(feature = "cuda")]
pub mod cuda;

/// How a table is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableLayout {
    /// `[vocab, h]`.
    RowMajor,
    /// Panels of 16 rows, see `gemm`.
    Panel16,
}

/// Operands of an [`Embedding`].
pub struct EmbeddingArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// Token ids, one per row.
    pub ids: &'a [u32],
    /// The table.
    pub table: Src<'a>,
    /// How it is stored.
    pub layout: TableLayout,
    /// Rows of the table.
    pub vocab: usize,
    /// Columns.
    pub h: usize,
    /// `[ids, h]`, the table's dtype.
    pub out: Dst<'a>,
}

/// A checked look-up; a unit is a row.
pub struct Embedding<'a>(EmbeddingArgs<'a>);

impl<'a> Embedding<'a> {
    /// Checks operands against shapes and every id against the vocabulary.
    ///
    /// # Errors
    /// `Shape` for short buffers and ids at or above `vocab`, `Unsupported` for dtypes.
    pub fn new(a: EmbeddingArgs<'a>) -> Result<Self, KernelError> {
        const NAME: &str = "embedding";
        float(NAME, a.table.dtype())?;
        same(NAME, "out dtype", a.table.dtype(), a.out.dtype())?;
        at_least(NAME, "vocab", 1, a.vocab)?;
        let need = match a.layout {
            TableLayout::RowMajor => product(NAME, "table", &[a.vocab, a.h])?,
            TableLayout::Panel16 => packed_len(a.table.dtype(), a.vocab, a.h)?,
        };
        at_least(NAME, "table elements", need, a.table.len())?;
        at_least(NAME, "out elements", span(NAME, "h", a.ids.len(), a.h, a.h)?, a.out.len())?;
        for id in a.ids {
            at_most(NAME, "token id", a.vocab - 1, *id as usize)?;
        }
        Ok(Embedding(a))
    }
}

impl Kernel for Embedding<'_> {
    fn units(&self) -> usize {
        self.0.ids.len()
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        with_float!(a.table.dtype(), T => a.path.run(#[inline(always)] || for r in units {
            let id = a.ids[r] as usize;
            // SAFETY: the unit owns its output row, checked when built.
            let out = unsafe { a.out.slice::<T>(r * a.h, a.h) };
            match a.layout {
                // SAFETY: id < vocab was checked when built.
                TableLayout::RowMajor => out.copy_from_slice(unsafe { a.table.slice::<T>(id * a.h, a.h) }),
                TableLayout::Panel16 => {
                    let stored = padded_k(<T as Element>::DTYPE, a.h);
                    for (k, o) in out.iter_mut().enumerate() {
                        let i = packed_index(<T as Element>::DTYPE, stored, id, k);
                        // SAFETY: row id and element k are within the packed table.
                        *o = unsafe { *a.table.ptr::<T>().add(i) };
                    }
                }
            }
        }));
    }
}

#[cfg(test)]
mod tests;
