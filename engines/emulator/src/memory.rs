//! Device memory: one reserved mapping of the host, so that an address translates by one addition.

use std::fmt::Write as _;
use std::ptr::NonNull;

use lathe_device::DriverError;

use crate::exec::windows::GLOBAL_BASE;

/// Alignment of allocations.
const ALIGN: u64 = 256;
/// Unused bytes between allocations at least, so that a small overrun meets nobody's data.
const GUARD: u64 = 4096;

/// An allocation, or one that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// What it is for.
    pub name: String,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Not given back.
    pub alive: bool,
}

impl Allocation {
    /// True if the allocation lives and `len` bytes at `at` lie in it.
    #[inline(always)]
    pub const fn holds(&self, at: u64, len: u64) -> bool {
        self.alive && at >= self.start && len <= self.len && at - self.start <= self.len - len
    }
}

/// Memory of a device.
#[derive(Debug)]
pub struct DeviceMemory {
    base: NonNull<u8>,
    len: u64,
    /// By ascending address; the dead stay until their addresses are used again.
    table: Vec<Allocation>,
    next: u64,
    used: u64,
    total: u64,
}

// SAFETY: the mapping belongs to the value; access from several threads goes through atomics or is the caller's care.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// Reserves address space for a device with `total` bytes. Pages are taken when they are touched.
    ///
    /// # Errors
    /// The system gave no address space.
    pub fn new(total: u64) -> Result<Self, DriverError> {
        // Twice the memory and some: freed addresses need not be used again at once.
        let len = (total.saturating_mul(2).saturating_add(1 << 30)).min(1 << 45).next_multiple_of(1 << 21);
        let bytes = usize::try_from(len).map_err(|_| no_space(len))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the system's choice touches nothing that exists.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if at == libc::MAP_FAILED {
            return Err(no_space(len));
        }
        let base = NonNull::new(at.cast::<u8>()).ok_or_else(|| no_space(len))?;
        Ok(DeviceMemory { base, len, table: Vec::new(), next: GLOBAL_BASE + GUARD, used: 0, total })
    }

    /// Bytes that can still be taken.
    pub const fn free_bytes(&self) -> u64 {
        self.total - self.used
    }

    /// All allocations, the dead too.
    pub fn table(&self) -> &[Allocation] {
        &self.table
    }

    /// Takes memory; contents are undefined.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn allocate(&mut self, name: &str, bytes: u64) -> Result<u64, DriverError> {
        let full = || DriverError::OutOfMemory { what: name.to_owned(), bytes, free: self.total - self.used };
        let room = bytes.max(1).checked_next_multiple_of(ALIGN).ok_or_else(full)?;
        if room > self.free_bytes() {
            return Err(full());
        }
        let end = GLOBAL_BASE + self.len;
        let fits = |at: u64| at.checked_add(room + GUARD).is_some_and(|e| e <= end);
        let start = if fits(self.next) {
            self.next
        } else {
            // Round the corner: the first gap between the living that is large enough.
            self.table.retain(|a| a.alive);
            let mut at = GLOBAL_BASE + GUARD;
            for a in &self.table {
                if a.start >= at + room + GUARD {
                    break;
                }
                at = (a.start + a.len.max(1)).next_multiple_of(ALIGN) + GUARD;
            }
            if !fits(at) {
                return Err(full());
            }
            at
        };
        self.next = start + room + GUARD;
        self.used += room;
        let index = self.table.partition_point(|a| a.start < start);
        self.table.insert(index, Allocation { name: name.to_owned(), start, len: bytes, alive: true });
        Ok(start)
    }

    /// Gives memory back.
    ///
    /// # Errors
    /// `at` is not the start of a living allocation.
    pub fn free(&mut self, at: u64) -> Result<std::ops::Range<u64>, DriverError> {
        let found = self.table.binary_search_by_key(&at, |a| a.start).ok().map(|i| &mut self.table[i]);
        let Some(a) = found.filter(|a| a.alive) else {
            let why = format!("{at:#x} is no living allocation");
            return Err(DriverError::Api { call: "free", why });
        };
        a.alive = false;
        let room = a.len.max(1).next_multiple_of(ALIGN);
        self.used -= room;
        let range = at..at + a.len;
        let page = 4096;
        let (from, to) = ((at - GLOBAL_BASE).next_multiple_of(page), (at - GLOBAL_BASE + room) / page * page);
        if from < to {
            // SAFETY: whole pages within the mapping that no allocation uses; they read as zero afterwards.
            unsafe {
                let at = self.base.as_ptr().add(from as usize);
                libc::madvise(at.cast(), (to - from) as usize, libc::MADV_DONTNEED);
            }
        }
        Ok(range)
    }

    /// The living allocation that `len` bytes at `at` lie in.
    pub fn find(&self, at: u64, len: u64) -> Option<&Allocation> {
        let before = self.table.partition_point(|a| a.start <= at);
        self.table[..before].last().filter(|a| a.holds(at, len))
    }

    /// The host's pointer to a device address inside of the mapping.
    ///
    /// Only addresses that [`DeviceMemory::find`] accepted may be used.
    #[inline(always)]
    pub fn pointer(&self, at: u64) -> *mut u8 {
        self.base.as_ptr().wrapping_add(at.wrapping_sub(GLOBAL_BASE) as usize)
    }

    /// What is at or near an address, for reports.
    pub fn describe(&self, at: u64) -> String {
        let mut text = format!("{at:#x}");
        let before = self.table.partition_point(|a| a.start <= at);
        if let Some(a) = self.table[..before].last() {
            let distance = at - a.start;
            let _ = match (a.alive, distance < a.len) {
                (true, true) => write!(text, ", byte {distance} of `{}` ({} bytes)", a.name, a.len),
                (false, true) => write!(text, ", byte {distance} of freed `{}` ({} bytes)", a.name, a.len),
                (_, false) => {
                    write!(
                        text,
                        ", {} bytes past the end of `{}` ({} bytes)",
                        distance - a.len,
                        a.name,
                        a.len
                    )
                }
            };
            if a.alive && distance < a.len {
                return text;
            }
        }
        if let Some(a) = self.table.get(before) {
            let _ = write!(text, ", {} bytes before `{}`", a.start - at, a.name);
        }
        if self.table.is_empty() {
            text += ", nothing is allocated";
        }
        text
    }

    /// Copies from the host. The range lies in an allocation.
    ///
    /// # Errors
    /// It does not.
    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DriverError> {
        self.covered("copy to device", at, bytes.len() as u64)?;
        // SAFETY: the range is inside of the mapping, no kernel runs during a copy, and host memory is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(at), bytes.len()) };
        Ok(())
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// The range does not lie in an allocation.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
        self.covered("copy to host", at, bytes.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(at), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Sets bytes.
    ///
    /// # Errors
    /// The range does not lie in an allocation.
    pub fn fill(&self, at: u64, byte: u8, len: u64) -> Result<(), DriverError> {
        self.covered("fill", at, len)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(self.pointer(at), byte, len as usize) };
        Ok(())
    }

    /// Checks that a range lies in a living allocation.
    ///
    /// # Errors
    /// It does not.
    pub fn covered(&self, call: &'static str, at: u64, len: u64) -> Result<(), DriverError> {
        if len == 0 || self.find(at, len).is_some() {
            return Ok(());
        }
        let last = at.saturating_add(len - 1);
        let bad = if self.find(at, 1).is_some() { last } else { at };
        Err(DriverError::Api {
            call,
            why: format!("{len} bytes at {}: not inside of an allocation", self.describe(bad)),
        })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and nobody refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}

fn no_space(bytes: u64) -> DriverError {
    DriverError::Unavailable {
        what: "address space for the emulator".to_owned(),
        why: format!("the system reserves no {bytes} bytes; give the device less memory"),
    }
}
