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

    /// Rows of the tensor as a matrix: all extents but the last, or the elements of a vector.
    pub fn rows(&self) -> usize {
        match &self.shape[..] {
            [n] => *n,
            [leading @ .., _] => leading.iter().product(),
            [] => 1,
        }
    }

    /// Elements in one row: the last extent, or 1 in a vector.
    pub fn row_len(&self) -> usize {
        match &self.shape[..] {
            [] | [_] => 1,
            [.., last] => *last,
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_len() * self.dtype.size()
    }

    /// Checks a [`TensorSource::read_rows`] call: both are the caller's to get right.
    pub(super) fn check_rows(&self, name: &str, rows: &Range<usize>, out_bytes: usize) -> Result<()> {
        let n = self.rows();
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

    /// Copies `rows` of the tensor as a matrix (see [`TensorInfo::rows`]) into `out`, little endian as stored; `out` is
    /// exactly `rows.len() * info.row_bytes()` bytes.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()>;
}
