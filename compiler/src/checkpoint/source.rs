//! Where weights come from, one block of rows at a time.

use std::ops::Range;

use lathe_numerics::DType;

use crate::error::Result;

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
}

/// Named tensors that are read by rows, so that no caller ever holds one whole.
pub trait TensorSource: Sync {
    /// Type and shape of a tensor, `None` if it is absent.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// All names in ascending order.
    fn names(&self) -> Vec<&str>;

    /// Copies `rows` of the first extent into `out`, little endian as stored; `out` is exactly
    /// `rows.len() * info.row_bytes()` bytes. A vector `[n]` has `n` rows of one element.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()>;
}
