//! Rows of a transposed matrix: a row of the result needs a column of the operand, so the operand is read once and kept
//! until the last row is taken.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::rows::Rows;
use crate::checkpoint::TensorSource;
use crate::error::Result;

/// The transpose of `of`, and its data while it is being read.
#[derive(Clone)]
pub struct Transposed {
    of: Rows,
    data: Arc<Mutex<Vec<u8>>>,
}

impl fmt::Debug for Transposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transposed").field(&self.of).finish()
    }
}

impl Transposed {
    /// The transpose of `of`.
    pub fn new(of: Rows) -> Self {
        Transposed { of, data: Arc::default() }
    }

    /// What is transposed.
    pub fn of(&self) -> &Rows {
        &self.of
    }

    /// Reads `range` of the transpose's rows into `out`, which is exactly as long.
    ///
    /// # Errors
    /// What the source says.
    pub fn read(&self, source: &dyn TensorSource, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        let size = self.of.dtype.size();
        let row_bytes = self.of.row_bytes();
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        if data.is_empty() {
            let mut whole = vec![0; self.of.rows * row_bytes];
            self.of.read(source, 0..self.of.rows, &mut whole)?;
            *data = whole;
        }
        let columns = range.clone().map(|column| column * size);
        for (column, row) in columns.zip(out.chunks_exact_mut((self.of.rows * size).max(1))) {
            for (element, from) in row.chunks_exact_mut(size).zip(data.chunks_exact(row_bytes)) {
                element.copy_from_slice(&from[column..column + size]);
            }
        }
        if range.end == self.of.row_len {
            *data = Vec::new();
        }
        Ok(())
    }
}
