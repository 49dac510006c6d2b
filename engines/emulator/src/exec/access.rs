//! Loads, stores and copies: addresses are checked, then all lanes move.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::block::{Cx, SYSTEM_SHARED, Stop};
use super::registers::{Bits, Reg, Registers};
use super::windows::{GLOBAL_BASE, LOCAL_BASE, SHARED_BASE, WINDOW};
use crate::decode::op::{Address, Cell, CopyAsync, Matrix, Memory, Window};
use crate::memory::DeviceMemory;
use crate::monitor::{Access, At, BlockMonitor, Finding, LANES, Order, Space, Use};

/// An element of memory, read and written as one: lanes of other blocks may be at the same place.
trait Element: Sized {
    const BYTES: usize;
    /// # Safety
    /// `at` is valid and aligned.
    unsafe fn read(at: *mut u8) -> u64;
    /// # Safety
    /// `at` is valid and aligned.
    unsafe fn write(at: *mut u8, value: u64);
    fn of(bytes: &[u8]) -> u64;
    fn to(bytes: &mut [u8], value: u64);
}

macro_rules! element {
    ($t:ty, $atomic:ty) => {
        impl Element for $t {
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            unsafe fn read(at: *mut u8) -> u64 {
                // SAFETY: the caller vouches for the address.
                u64::from(unsafe { <$atomic>::from_ptr(at.cast()) }.load(Ordering::Relaxed))
            }
            #[inline(always)]
            unsafe fn write(at: *mut u8, value: u64) {
                // SAFETY: the caller vouches for the address.
                unsafe { <$atomic>::from_ptr(at.cast()) }.store(value as $t, Ordering::Relaxed);
            }
            #[inline(always)]
            fn of(bytes: &[u8]) -> u64 {
                let mut raw = [0; Self::BYTES];
                raw.copy_from_slice(bytes);
                u64::from(<$t>::from_le_bytes(raw))
            }
            #[inline(always)]
            fn to(bytes: &mut [u8], value: u64) {
                bytes.copy_from_slice(&(value as $t).to_le_bytes());
            }
        }
    };
}
element!(u8, AtomicU8);
element!(u16, AtomicU16);
element!(u32, AtomicU32);
element!(u64, AtomicU64);

/// The lanes of a mask. A loop over bits, which the compiler does not unroll.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let l = mask.trailing_zeros();
        mask &= mask - 1;
        Some(l as usize)
    })
}

/// What to do with the part of an access that lies in one space.
pub(super) type Part<'f, C> = dyn FnMut(&mut C, Space, &[u64; LANES], At) -> Result<(), Stop> + 'f;

/// Where accesses of a warp go; the same for all monitors.
struct Place<'p> {
    space: Space,
    memory: &'p DeviceMemory,
    shared: &'p mut [u8],
    local: &'p mut [u8],
    per_thread: usize,
}

impl Place<'_> {
    /// Elements to registers.
    #[inline(never)]
    fn load<E: Element>(&self, regs: &mut Registers, op: &Memory, addresses: &[u64; LANES], mask: u32) {
        let unused = 64 - 8 * E::BYTES as u32;
        let extend = |v: u64| if op.signed { ((v << unused) as i64 >> unused) as u64 } else { v };
        for (i, Cell { reg, wide }) in op.cells.iter().enumerate() {
            let skip = (i * E::BYTES) as u64;
            let mut row = [0; LANES];
            match self.space {
                Space::Global => {
                    for l in lanes_of(mask) {
                        // SAFETY: the element was found in an allocation, aligned.
                        row[l] = unsafe { E::read(self.memory.pointer(addresses[l] + skip)) };
                    }
                }
                Space::Shared => {
                    for l in lanes_of(mask) {
                        let from = (addresses[l] + skip) as usize;
                        row[l] = E::of(&self.shared[from..from + E::BYTES]);
                    }
                }
                Space::Local => {
                    for l in lanes_of(mask) {
                        let from = l * self.per_thread + (addresses[l] + skip) as usize;
                        row[l] = E::of(&self.local[from..from + E::BYTES]);
                    }
                }
            }
            if *wide {
                u64::put(regs.r64_mut(*reg), mask, &row.map(extend));
            } else {
                u32::put(regs.r32_mut(*reg), mask, &row.map(|v| extend(v) as u32));
            }
        }
    }

    /// Registers to elements.
    #[inline(never)]
    fn store<E: Element>(&mut self, regs: &Registers, op: &Memory, addresses: &[u64; LANES], mask: u32) {
        for (i, Cell { reg, wide }) in op.cells.iter().enumerate() {
            let skip = (i * E::BYTES) as u64;
            let row: [u64; LANES] = if *wide { *regs.r64(*reg) } else { regs.r32(*reg).map(u64::from) };
            match self.space {
                Space::Global => {
                    for l in lanes_of(mask) {
                        // SAFETY: the element was found in an allocation, aligned.
                        unsafe { E::write(self.memory.pointer(addresses[l] + skip), row[l]) };
                    }
                }
                Space::Shared => {
                    for l in lanes_of(mask) {
                        let to = (addresses[l] + skip) as usize;
                        E::to(&mut self.shared[to..to + E::BYTES], row[l]);
                    }
                }
                Space::Local => {
                    for l in lanes_of(mask) {
                        let to = l * self.per_thread + (addresses[l] + skip) as usize;
                        E::to(&mut self.local[to..to + E::BYTES], row[l]);
                    }
                }
            }
        }
    }
}

impl<B: BlockMonitor> Cx<'_, '_, B> {
    /// Addresses of all lanes, of lanes that act or not.
    #[inline(always)]
    pub(super) fn addresses(&mut self, address: &Address, at: At) -> Result<[u64; LANES], Stop> {
        if self.checked {
            let taint = self.regs.taint(address.base) & at.mask;
            if taint != 0 {
                self.monitor.tainted(at, taint, Use::Address)?;
            }
        }
        let offset = address.offset as u64;
        let mut addresses = [0; LANES];
        if address.wide {
            let base = self.regs.r64(address.base);
            for l in 0..LANES {
                addresses[l] = base[l].wrapping_add(offset);
            }
        } else {
            let base = self.regs.r32(address.base);
            for l in 0..LANES {
                addresses[l] = u64::from(base[l].wrapping_add(offset as u32));
            }
        }
        Ok(addresses)
    }

    /// Lanes whose generic address lies in a window.
    pub(super) fn in_window(&self, window: Window, a: Reg) -> u32 {
        let addresses = self.regs.r64(a);
        (0..LANES).filter(|l| window_of(addresses[*l]) == window).fold(0, |m, l| m | 1 << l)
    }

    /// Cuts an access into parts of one space each, with addresses as the space counts them, and checks them.
    pub(super) fn parts(
        &mut self,
        window: Window,
        addresses: &[u64; LANES],
        bytes: u64,
        at: At,
        verb: &str,
        each: &mut Part<'_, Self>,
    ) -> Result<(), Stop> {
        let space = match window {
            Window::Global => Space::Global,
            Window::Shared => Space::Shared,
            Window::Local => Space::Local,
            Window::Generic => return self.generic_parts(addresses, bytes, at, verb, each),
        };
        self.check(space, addresses, bytes, at, verb)?;
        each(self, space, addresses, at)
    }

    fn generic_parts(
        &mut self,
        addresses: &[u64; LANES],
        bytes: u64,
        at: At,
        verb: &str,
        each: &mut Part<'_, Self>,
    ) -> Result<(), Stop> {
        for (window, space, base) in [
            (Window::Global, Space::Global, 0),
            (Window::Shared, Space::Shared, SHARED_BASE),
            (Window::Local, Space::Local, LOCAL_BASE),
        ] {
            let mask =
                lanes_of(at.mask).filter(|l| window_of(addresses[*l]) == window).fold(0, |m, l| m | 1 << l);
            if mask != 0 {
                let own = addresses.map(|a| a.wrapping_sub(base));
                let at = At { mask, ..at };
                self.check(space, &own, bytes, at, verb)?;
                each(self, space, &own, at)?;
            }
        }
        Ok(())
    }

    /// Bounds and alignment.
    #[inline(always)]
    pub(super) fn check(
        &mut self,
        space: Space,
        addresses: &[u64; LANES],
        bytes: u64,
        at: At,
        verb: &str,
    ) -> Result<(), Stop> {
        let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
        if at.mask == u32::MAX {
            for a in addresses {
                low = low.min(*a);
                high = high.max(*a);
                bits |= a;
            }
        } else {
            for l in lanes_of(at.mask) {
                low = low.min(addresses[l]);
                high = high.max(addresses[l]);
                bits |= addresses[l];
            }
        }
        let fits = match space {
            Space::Global => {
                let (start, len) = *self.near;
                low >= start && high.wrapping_sub(start) < len && len - (high - start) >= bytes
            }
            Space::Shared => {
                low >= SYSTEM_SHARED && high.saturating_add(bytes) <= u64::from(self.launch.shared_end())
            }
            Space::Local => high.saturating_add(bytes) <= u64::from(self.launch.kernel.local_bytes),
        };
        if fits && bits & (bytes - 1) == 0 {
            return Ok(());
        }
        self.check_lanes(space, addresses, bytes, at, verb)
    }

    /// Lane by lane: for accesses to several allocations and for the words of a fault.
    #[cold]
    fn check_lanes(
        &mut self,
        space: Space,
        addresses: &[u64; LANES],
        bytes: u64,
        at: At,
        verb: &str,
    ) -> Result<(), Stop> {
        for l in lanes_of(at.mask) {
            let a = addresses[l];
            let inside = match space {
                Space::Global => match self.launch.memory.find(a, bytes) {
                    Some(found) => {
                        *self.near = (found.start, found.len);
                        true
                    }
                    None => false,
                },
                Space::Shared => {
                    a >= SYSTEM_SHARED && a.saturating_add(bytes) <= u64::from(self.launch.shared_end())
                }
                Space::Local => a.saturating_add(bytes) <= u64::from(self.launch.kernel.local_bytes),
            };
            let what = if !inside {
                format!("{verb} of {bytes} bytes out of bounds")
            } else if a & (bytes - 1) != 0 {
                format!("{verb} of {bytes} bytes at an address that is not a multiple of {bytes}")
            } else {
                continue;
            };
            return Err(Stop { finding: Finding { lane: l as u32, what, address: Some((space, a)) } });
        }
        Ok(())
    }

    pub(super) fn load(&mut self, op: &Memory, at: At) -> Result<(), Stop> {
        let addresses = self.addresses(&op.address, at)?;
        let bytes = u64::from(op.element) * op.cells.len() as u64;
        self.parts(op.window, &addresses, bytes, at, "load", &mut |cx, space, addresses, at| {
            let mut taints = [0; 8];
            if cx.checked {
                let access = Access {
                    at,
                    space,
                    addresses,
                    element: op.element,
                    elements: op.cells.len() as u32,
                    order: op.order,
                };
                cx.monitor.load(&access, &mut taints[..op.cells.len()])?;
            }
            let (place, regs) = cx.place(space);
            match op.element {
                1 => place.load::<u8>(regs, op, addresses, at.mask),
                2 => place.load::<u16>(regs, op, addresses, at.mask),
                4 => place.load::<u32>(regs, op, addresses, at.mask),
                _ => place.load::<u64>(regs, op, addresses, at.mask),
            }
            if cx.checked {
                for (cell, taint) in op.cells.iter().zip(taints) {
                    cx.regs.set_taint(cell.reg, at.mask, taint);
                }
            }
            Ok(())
        })
    }

    fn place(&mut self, space: Space) -> (Place<'_>, &mut Registers) {
        let place = Place {
            space,
            memory: self.launch.memory,
            shared: self.shared,
            local: self.local,
            per_thread: self.launch.kernel.local_bytes as usize,
        };
        (place, self.regs)
    }

    pub(super) fn store(&mut self, op: &Memory, at: At) -> Result<(), Stop> {
        let addresses = self.addresses(&op.address, at)?;
        let bytes = u64::from(op.element) * op.cells.len() as u64;
        self.parts(op.window, &addresses, bytes, at, "store", &mut |cx, space, addresses, at| {
            if cx.checked {
                cx.tell_store(space, addresses, op, at)?;
            }
            let (mut place, regs) = cx.place(space);
            match op.element {
                1 => place.store::<u8>(regs, op, addresses, at.mask),
                2 => place.store::<u16>(regs, op, addresses, at.mask),
                4 => place.store::<u32>(regs, op, addresses, at.mask),
                _ => place.store::<u64>(regs, op, addresses, at.mask),
            }
            Ok(())
        })
    }

    fn tell_store(
        &mut self,
        space: Space,
        addresses: &[u64; LANES],
        op: &Memory,
        at: At,
    ) -> Result<(), Stop> {
        let mut taints = [0; 8];
        let mut values = [[0; LANES]; 8];
        let n = op.cells.len();
        for (i, Cell { reg, wide }) in op.cells.iter().enumerate() {
            taints[i] = self.regs.taint(*reg) & at.mask;
            values[i] = if *wide { *self.regs.r64(*reg) } else { self.regs.r32(*reg).map(u64::from) };
        }
        let access =
            Access { at, space, addresses, element: op.element, elements: n as u32, order: op.order };
        self.monitor.store(&access, &taints[..n], &values[..n])?;
        Ok(())
    }

    pub(super) fn copy_async(&mut self, op: &CopyAsync, at: At) -> Result<(), Stop> {
        let shared = self.addresses(&op.shared, at)?;
        let global = self.addresses(&op.global, at)?;
        let mut sizes = [op.bytes; LANES];
        if let Some(r) = op.source_bytes {
            sizes = *self.regs.r32(r);
        }
        if let Some((p, negated)) = op.ignore {
            let ignored = self.regs.pred(p) ^ if negated { u32::MAX } else { 0 };
            for l in lanes_of(ignored) {
                sizes[l] = 0;
            }
        }
        let bytes = u64::from(op.bytes);
        self.check(Space::Shared, &shared, bytes, at, "cp.async")?;
        for l in lanes_of(at.mask) {
            if sizes[l] > op.bytes {
                let what = format!("cp.async reads {} of {} bytes", sizes[l], op.bytes);
                return Err(Stop::new(l as u32, what));
            }
        }
        let whole = lanes_of(at.mask).filter(|l| sizes[*l] == op.bytes).fold(0, |m, l| m | 1 << l);
        if whole != 0 {
            self.check(Space::Global, &global, bytes, At { mask: whole, ..at }, "cp.async")?;
        }
        for l in lanes_of(at.mask & !whole) {
            let size = u64::from(sizes[l]);
            let what = if size > 0 && self.launch.memory.find(global[l], size).is_none() {
                format!("cp.async of {size} bytes out of bounds")
            } else if size > 0 && global[l] & (bytes - 1) != 0 {
                format!("cp.async at an address that is not a multiple of {bytes}")
            } else {
                continue;
            };
            let address = Some((Space::Global, global[l]));
            return Err(Stop { finding: Finding { lane: l as u32, what, address } });
        }
        if self.checked {
            if let Some(r) = op.source_bytes {
                let taint = self.regs.taint(r) & at.mask;
                if taint != 0 {
                    self.monitor.tainted(at, taint, Use::Address)?;
                }
            }
            self.monitor.copy_async(at, &shared, &global, op.bytes, &sizes)?;
        }
        for l in lanes_of(at.mask) {
            let (to, n) = (shared[l] as usize, sizes[l] as usize);
            let to = &mut self.shared[to..to + op.bytes as usize];
            to[n..].fill(0);
            let from = self.launch.memory.pointer(global[l]);
            if n == op.bytes as usize {
                // Words as one, like loads: other blocks may write nearby.
                for (i, word) in to.chunks_exact_mut(4).enumerate() {
                    // SAFETY: `check` has found the bytes in an allocation, aligned to 4 at least.
                    <u32 as Element>::to(word, unsafe { <u32 as Element>::read(from.wrapping_add(4 * i)) });
                }
            } else {
                for (i, byte) in to[..n].iter_mut().enumerate() {
                    // SAFETY: `find` has found the bytes in an allocation.
                    *byte = unsafe { <u8 as Element>::read(from.wrapping_add(i)) } as u8;
                }
            }
        }
        Ok(())
    }

    pub(super) fn matrix(&mut self, op: &Matrix, at: At) -> Result<(), Stop> {
        let what = if op.stores { "stmatrix" } else { "ldmatrix" };
        self.whole_warp(at, what)?;
        self.monitor.warp_sync(at);
        let mut addresses = self.addresses(&op.address, at)?;
        if op.window == Window::Generic {
            addresses = addresses.map(|a| a.wrapping_sub(SHARED_BASE));
        }
        let n = op.regs.len();
        let lanes = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
        self.check(Space::Shared, &addresses, 16, At { mask: lanes, ..at }, what)?;
        let mut taints = [0; 4];
        if self.checked {
            if op.stores {
                for (t, r) in taints.iter_mut().zip(&op.regs) {
                    *t = self.regs.taint(*r);
                }
            }
            self.monitor.matrix(at, &addresses[..8 * n], op.transposed, op.stores, &mut taints[..n])?;
        }
        for (i, r) in op.regs.iter().enumerate() {
            let rows = &addresses[8 * i..8 * i + 8];
            // Lane `l` holds columns `2 * (l % 4)` and the next of row `l / 4`, or the same of the transposed tile.
            let place = |l: usize, half: usize| {
                let (row, column) = (l / 4, 2 * (l % 4) + half);
                let (row, column) = if op.transposed { (column, row) } else { (row, column) };
                rows[row] as usize + 2 * column
            };
            let row = self.regs.r32_mut(*r);
            for l in 0..LANES {
                if op.stores {
                    for half in 0..2 {
                        let to = place(l, half);
                        let bits = (row[l] >> (16 * half)) as u16;
                        self.shared[to..to + 2].copy_from_slice(&bits.to_le_bytes());
                    }
                } else if op.transposed {
                    let (a, b) = (place(l, 0), place(l, 1));
                    row[l] = (<u16 as Element>::of(&self.shared[a..a + 2])
                        | <u16 as Element>::of(&self.shared[b..b + 2]) << 16)
                        as u32;
                } else {
                    let a = place(l, 0);
                    row[l] = <u32 as Element>::of(&self.shared[a..a + 4]) as u32;
                }
            }
            if self.checked && !op.stores {
                self.regs.set_taint(*r, u32::MAX, taints[i]);
            }
        }
        Ok(())
    }

    /// Tells the monitor about an atomic access.
    pub(super) fn tell_atomic(
        &mut self,
        space: Space,
        addresses: &[u64; LANES],
        bytes: u32,
        taint: u32,
        at: At,
    ) -> Result<u32, Stop> {
        let access = Access { at, space, addresses, element: bytes, elements: 1, order: Order::Atomic };
        Ok(self.monitor.atomic(&access, taint)?)
    }
}

fn window_of(address: u64) -> Window {
    if address.wrapping_sub(SHARED_BASE) < WINDOW {
        Window::Shared
    } else if address.wrapping_sub(LOCAL_BASE) < WINDOW {
        Window::Local
    } else {
        const { assert!(GLOBAL_BASE > LOCAL_BASE + WINDOW) };
        Window::Global
    }
}
