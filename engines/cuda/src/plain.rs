//! Structs that kernels share with the host, as bytes.

use lathe_device::{Answer, DrawParams, Sequence};

/// A type whose bytes are all meaningful.
///
/// # Safety
/// `#[repr(C)]`, no padding, every bit pattern valid.
pub unsafe trait Plain: Copy {}

// SAFETY: repr(C) of 4-byte numbers alone.
unsafe impl Plain for Sequence {}
// SAFETY: repr(C); sixteen 4-byte numbers, then an 8-byte one at offset 64 of 72.
unsafe impl Plain for DrawParams {}
// SAFETY: repr(C) of 4-byte numbers and arrays of them alone.
unsafe impl Plain for Answer {}

const _: () = assert!(size_of::<Sequence>() == 4 * 4);
const _: () = assert!(size_of::<DrawParams>() == 16 * 4 + 8);
const _: () = assert!(size_of::<Answer>() == (4 + 2 * 20) * 4);

/// Writes `value` as the element `index` of `bytes`. Panics where a slice would.
pub fn put<T: Plain>(bytes: &mut [u8], index: usize, value: &T) {
    // SAFETY: `Plain` has no padding, so all its bytes are initialised.
    let source =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) };
    bytes[index * size_of::<T>()..][..size_of::<T>()].copy_from_slice(source);
}

/// The element `index` of `bytes`. Panics where a slice would.
pub fn get<T: Plain>(bytes: &[u8], index: usize) -> T {
    let source = &bytes[index * size_of::<T>()..][..size_of::<T>()];
    // SAFETY: `source` holds a whole `T`, whose every bit pattern is valid.
    unsafe { source.as_ptr().cast::<T>().read_unaligned() }
}

/// Fills the front of `bytes` with 4-byte numbers.
pub fn put_words<T: Into<Word>>(bytes: &mut [u8], values: impl Iterator<Item = T>) {
    for (place, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *place = value.into().0.to_ne_bytes();
    }
}

/// The bytes of numbers.
pub fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: an f32 has no padding and takes any bits; the slice is borrowed for as long as its bytes are.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), len) }
}

/// 32 bits of a table.
#[derive(Clone, Copy)]
pub struct Word(u32);

impl From<u32> for Word {
    fn from(value: u32) -> Self {
        Word(value)
    }
}

impl From<i32> for Word {
    fn from(value: i32) -> Self {
        Word(value.cast_unsigned())
    }
}

impl From<f32> for Word {
    fn from(value: f32) -> Self {
        Word(value.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_survive_their_bytes() {
        let s = Sequence { q_start: 1, q_len: -2, kv_len: i32::MAX, blocks_start: 7 };
        let mut bytes = [0u8; 40];
        put(&mut bytes[8..], 1, &s);
        assert_eq!(get::<Sequence>(&bytes[8..], 1), s);
        assert_eq!(&bytes[24..28], &1i32.to_ne_bytes());
        put_words(&mut bytes[..8], [-1i32, 5].into_iter());
        assert_eq!(&bytes[..8], [[0xff; 4], 5i32.to_ne_bytes()].concat());
    }
}
