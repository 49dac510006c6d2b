//! Where weights come from, one block of rows at a time.

use std::ops::Range;

use lathe_numerics::DType;

use crate::error::{CompileError, Result};

/// Type and extents of a checkpoint tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as stored.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if any extent is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements in one row: all extents but the first.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_len() * self.dtype.size()
    }

    /// Checks a [`TensorSource::read_rows`] call: both are the caller's to get right.
    pub(super) fn check_rows(&self, name: &str, rows: &Range<usize>, out_bytes: usize) -> Result<()> {
        let n = self.shape.first().copied().unwrap_or(1);
        if rows.start <= rows.end && rows.end <= n && out_bytes == rows.len() * self.row_bytes() {
            return Ok(());
        }
        let why = format!("rows {rows:?} of {n} into {out_bytes} bytes, {} bytes a row", self.row_bytes());
        Err(CompileError::Bug(format!("tensor {name}: {why}")))
    }
}

/// Named tensors that are read by rows, so that no caller ever holds one whole.
pub trait TensorSource: Sync {
    /// Type and shape of a tensor, `None` if it is absent.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// All names in ascending order.
    fn names(&self) -> Vec<&str>;

    /// The type as its file names it, also where it is one that Lathe does not read and `info` is `None`.
    fn stored_type(&self, name: &str) -> Option<String> {
        self.info(name).map(|i| i.dtype.to_string())
    }

    /// Copies `rows` of the first extent into `out`, little endian as stored; `out` is exactly
    /// `rows.len() * info.row_bytes()` bytes. A vector `[n]` has `n` rows of one element.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()>;
}
