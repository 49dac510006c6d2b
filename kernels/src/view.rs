//! Typed views of buffers. `Dst` is a raw view, so that threads can write disjoint parts of one buffer.

use std::marker::PhantomData;

use half::{bf16, f16};
use lathe_numerics::DType;

use crate::convert::Element;
use crate::error::KernelError;

/// Read-only view of `len` elements of one dtype.
#[derive(Clone, Copy)]
pub struct Src<'a> {
    ptr: *const u8,
    len: usize,
    dtype: DType,
    life: PhantomData<&'a [u8]>,
}

/// View of `len` elements of one dtype that several threads may write, each its own part.
#[derive(Clone, Copy)]
pub struct Dst<'a> {
    ptr: *mut u8,
    len: usize,
    dtype: DType,
    life: PhantomData<&'a mut [u8]>,
}

// SAFETY: a `Src` only reads memory that its maker borrowed or vouched for.
unsafe impl Send for Src<'_> {}
// SAFETY: as above.
unsafe impl Sync for Src<'_> {}
// SAFETY: writes go through `Kernel::run`, whose callers promise disjoint units.
unsafe impl Send for Dst<'_> {}
// SAFETY: as above.
unsafe impl Sync for Dst<'_> {}

fn check(dtype: DType, addr: usize, bytes: usize) -> Result<usize, KernelError> {
    if !addr.is_multiple_of(dtype.size()) {
        return Err(KernelError::Unsupported {
            kernel: "view",
            what: format!("address is no multiple of {} bytes, the size of {dtype}", dtype.size()),
        });
    }
    if !bytes.is_multiple_of(dtype.size()) {
        return Err(KernelError::Unsupported {
            kernel: "view",
            what: format!("{bytes} bytes are no whole number of {dtype} elements"),
        });
    }
    Ok(bytes / dtype.size())
}

impl<'a> Src<'a> {
    /// The bytes as elements of `dtype`.
    ///
    /// # Errors
    /// `Unsupported` when the address or length is no multiple of the element size.
    pub fn bytes(dtype: DType, bytes: &'a [u8]) -> Result<Self, KernelError> {
        let len = check(dtype, bytes.as_ptr() as usize, bytes.len())?;
        Ok(Src { ptr: bytes.as_ptr(), len, dtype, life: PhantomData })
    }

    /// As [`Src::bytes`], from a raw pointer.
    ///
    /// # Safety
    /// `ptr` is readable for `bytes` bytes during `'a`, and nobody writes there while a kernel that reads it runs.
    ///
    /// # Errors
    /// As [`Src::bytes`].
    pub unsafe fn raw(dtype: DType, ptr: *const u8, bytes: usize) -> Result<Self, KernelError> {
        Ok(Src { ptr, len: check(dtype, ptr as usize, bytes)?, dtype, life: PhantomData })
    }

    fn of<T: Element>(s: &'a [T]) -> Self {
        Src { ptr: s.as_ptr().cast(), len: s.len(), dtype: T::DTYPE, life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Elements `start..start + len`.
    ///
    /// # Panics
    /// When they reach past the view.
    pub(crate) fn part(&self, start: usize, len: usize) -> Self {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        Src { ptr: self.ptr.wrapping_add(start * self.dtype.size()), len, ..*self }
    }

    #[inline(always)]
    pub(crate) fn ptr<T: Element>(&self) -> *const T {
        debug_assert_eq!(self.dtype, T::DTYPE);
        self.ptr.cast()
    }

    #[inline(always)]
    pub(crate) fn byte_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// # Safety
    /// `dtype` is `T`'s and `start + len` is within the view.
    #[inline(always)]
    pub(crate) unsafe fn slice<T: Element>(&self, start: usize, len: usize) -> &'a [T] {
        debug_assert!(start + len <= self.len);
        // SAFETY: the maker vouched for the memory, the caller for the range.
        unsafe { std::slice::from_raw_parts(self.ptr::<T>().add(start), len) }
    }
}

impl<'a> Dst<'a> {
    /// The bytes as elements of `dtype`.
    ///
    /// # Errors
    /// `Unsupported` when the address or length is no multiple of the element size.
    pub fn bytes(dtype: DType, bytes: &'a mut [u8]) -> Result<Self, KernelError> {
        let len = check(dtype, bytes.as_ptr() as usize, bytes.len())?;
        Ok(Dst { ptr: bytes.as_mut_ptr(), len, dtype, life: PhantomData })
    }

    /// As [`Dst::bytes`], from a raw pointer.
    ///
    /// # Safety
    /// `ptr` is readable and writable for `bytes` initialised bytes during `'a`, and nobody else touches them while
    /// a kernel that uses this view runs.
    ///
    /// # Errors
    /// As [`Dst::bytes`].
    pub unsafe fn raw(dtype: DType, ptr: *mut u8, bytes: usize) -> Result<Self, KernelError> {
        Ok(Dst { ptr, len: check(dtype, ptr as usize, bytes)?, dtype, life: PhantomData })
    }

    fn of<T: Element>(s: &'a mut [T]) -> Self {
        Dst { ptr: s.as_mut_ptr().cast(), len: s.len(), dtype: T::DTYPE, life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    #[inline(always)]
    pub(crate) fn byte_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// # Safety
    /// `dtype` is `T`'s, the range is within the view, and no other reference to it exists while this one lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice<T: Element>(&self, start: usize, len: usize) -> &'a mut [T] {
        debug_assert_eq!(self.dtype, T::DTYPE);
        debug_assert!(start + len <= self.len);
        // SAFETY: the maker vouched for the memory, the caller for range and exclusivity.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast::<T>().add(start), len) }
    }
}

macro_rules! from_slices {
    ($($t:ty),*) => {$(
        impl<'a> From<&'a [$t]> for Src<'a> {
            fn from(s: &'a [$t]) -> Self {
                Src::of(s)
            }
        }
        impl<'a> From<&'a mut [$t]> for Dst<'a> {
            fn from(s: &'a mut [$t]) -> Self {
                Dst::of(s)
            }
        }
    )*};
}
from_slices!(f32, f16, bf16);

/// Runs `$body` with `$t` bound to the Rust type of a float dtype; other dtypes were refused when the problem was built.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            lathe_numerics::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            lathe_numerics::DType::F16 => {
                type $t = half::f16;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use with_float;

/// Refuses integer dtypes.
pub(crate) fn float(kernel: &'static str, dtype: DType) -> Result<(), KernelError> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(KernelError::Unsupported { kernel, what: format!("dtype {dtype}; known are f32, f16, bf16") })
}

/// Refuses a second dtype that must equal the first.
pub(crate) fn same(kernel: &'static str, what: &str, want: DType, got: DType) -> Result<(), KernelError> {
    if want == got {
        return Ok(());
    }
    Err(KernelError::Unsupported { kernel, what: format!("{what} is {got}, {want} is needed") })
}
