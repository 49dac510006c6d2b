//! What a kernel refuses when its problem is built; a problem that was built cannot fail.

use std::fmt;

/// Why a problem could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// A buffer is too short, a stride too small or an index out of range.
    Shape {
        /// Kernel family.
        kernel: &'static str,
        /// The quantity that is wrong.
        what: &'static str,
        /// Smallest (lengths, strides) or largest (indices) accepted value.
        bound: usize,
        /// Value found.
        got: usize,
    },
    /// A dtype, dtype combination or size that has no kernel.
    Unsupported {
        /// Kernel family.
        kernel: &'static str,
        /// What was asked for and what there is.
        what: String,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelError::Shape { kernel, what, bound, got } => {
                write!(f, "{kernel}: {what} is {got}, outside the bound {bound}")
            }
            KernelError::Unsupported { kernel, what } => write!(f, "{kernel}: unsupported: {what}"),
        }
    }
}

impl std::error::Error for KernelError {}

/// Product of dimensions; an overflow is an error, as hostile plans name shapes.
pub(crate) fn product(
    kernel: &'static str,
    what: &'static str,
    dims: &[usize],
) -> Result<usize, KernelError> {
    dims.iter()
        .try_fold(1usize, |a, &d| a.checked_mul(d))
        .filter(|&p| p <= isize::MAX as usize / 8)
        .ok_or(KernelError::Shape { kernel, what, bound: isize::MAX as usize / 8, got: usize::MAX })
}

/// `got >= need`.
pub(crate) fn at_least(
    kernel: &'static str,
    what: &'static str,
    need: usize,
    got: usize,
) -> Result<(), KernelError> {
    if got < need { Err(KernelError::Shape { kernel, what, bound: need, got }) } else { Ok(()) }
}

/// `got <= bound`.
pub(crate) fn at_most(
    kernel: &'static str,
    what: &'static str,
    bound: usize,
    got: usize,
) -> Result<(), KernelError> {
    if got > bound { Err(KernelError::Shape { kernel, what, bound, got }) } else { Ok(()) }
}

/// Elements that `rows` rows of `cols` elements at `stride` span; `stride >= cols` is checked.
pub(crate) fn span(
    kernel: &'static str,
    what: &'static str,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<usize, KernelError> {
    at_least(kernel, what, cols, stride)?;
    if rows == 0 {
        return Ok(0);
    }
    Ok(product(kernel, what, &[rows, stride])? - stride + cols)
}
