//! Anonymous memory from the system: zeroed, page-aligned, large pages where the system has them.

use std::ptr::NonNull;

/// A block of zeroed memory that is fixed for the engine's life.
pub struct Memory {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; who may touch which part when is up to the users of `ptr`, as with any raw pointer.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeroed bytes at a page boundary. Pages are taken from the system when first touched, or by
    /// [`Memory::populate`].
    ///
    /// # Errors
    /// The system's error.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let mapped = len.max(1);
        // SAFETY: a fresh private anonymous mapping touches no existing memory.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let Some(ptr) = NonNull::new(ptr.cast::<u8>()) else {
            return Err(std::io::Error::other("the system mapped the null page"));
        };
        // SAFETY: advice on our own mapping; a refusal is harmless.
        unsafe { libc::madvise(ptr.as_ptr().cast(), mapped, libc::MADV_HUGEPAGE) };
        Ok(Memory { ptr, len })
    }

    /// First byte.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Takes all pages from the system now, so that a lack of memory shows before a request meets it.
    ///
    /// # Errors
    /// As [`Memory::populate_range`].
    pub fn populate(&self) -> std::io::Result<()> {
        self.populate_range(0..self.len)
    }

    /// Takes the pages of `range`, whose start is a multiple of the page size. Contents stay as they are, so others
    /// may use the memory meanwhile.
    ///
    /// # Errors
    /// The system's error when pages cannot be had. Kernels without the call (before 5.14) take pages on touch.
    pub fn populate_range(&self, range: std::ops::Range<usize>) -> std::io::Result<()> {
        debug_assert!(range.end <= self.len);
        let at = self.ptr().wrapping_add(range.start);
        // SAFETY: advice on a part of our own mapping.
        let rc = unsafe { libc::madvise(at.cast(), range.len().max(1), libc::MADV_POPULATE_WRITE) };
        match rc {
            0 => Ok(()),
            _ => match std::io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                e => Err(e),
            },
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody holds views into it: they borrow the engine that owns this.
        unsafe { libc::munmap(self.ptr().cast(), self.len.max(1)) };
    }
}

/// Bytes that the system can hand out without swapping, if it says so.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        let m = Memory::new(3 << 20).unwrap();
        m.populate().unwrap();
        assert_eq!(m.ptr() as usize % 4096, 0);
        // SAFETY: within the mapping, nobody else uses it.
        let bytes = unsafe { std::slice::from_raw_parts(m.ptr(), m.len()) };
        assert!(bytes.iter().all(|b| *b == 0));
        assert!(available().unwrap() > 1 << 20);
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Memory::new(usize::MAX / 4).is_err());
    }
}
