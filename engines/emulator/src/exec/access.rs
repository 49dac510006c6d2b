//! Loads, stores and copies: addresses are checked, then all lanes move.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::block::{Cx, SYSTEM_SHARED, Stop};
use super::registers::Reg;
use super::windows::{GLOBAL_BASE, LOCAL_BASE, SHARED_BASE, WINDOW};
use crate::decode::op::{Address, Cell, CopyAsync, Matrix, Memory, Window};
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

pub(super) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |l| mask >> l & 1 == 1)
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
    #[inline(always)]
    pub(super) fn parts(
        &mut self,
        window: Window,
        addresses: &[u64; LANES],
        bytes: u64,
        at: At,
        verb: &str,
        mut each: impl FnMut(&mut Self, Space, &[u64; LANES], At) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let space = match window {
            Window::Global => Space::Global,
            Window::Shared => Space::Shared,
            Window::Local => Space::Local,
            Window::Generic => return self.generic_parts(addresses, bytes, at, verb, &mut each),
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
        each: &mut impl FnMut(&mut Self, Space, &[u64; LANES], At) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        for (window, space, base) in [
            (Window::Global, Space::Global, 0),
            (Window::Shared, Space::Shared, SHARED_BASE),
            (Window::Local, Space::Local, LOCAL_BASE),
        ] {
            let mask = lanes_of(at.mask).filter(|l| window_of(addresses[*l]) == window).fold(0, |m, l| m | 1 << l);
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
        self.parts(op.window, &addresses, bytes, at, "load", |cx, space, addresses, at| {
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
            match op.element {
                1 => cx.load_as::<u8>(space, addresses, op, at),
                2 => cx.load_as::<u16>(space, addresses, op, at),
                4 => cx.load_as::<u32>(space, addresses, op, at),
                _ => cx.load_as::<u64>(space, addresses, op, at),
            }
            if cx.checked {
                for (cell, taint) in op.cells.iter().zip(taints) {
                    cx.regs.set_taint(cell.reg, at.mask, taint);
                }
            }
            Ok(())
        })
    }

    #[inline(always)]
    fn load_as<E: Element>(&mut self, space: Space, addresses: &[u64; LANES], op: &Memory, at: At) {
        match space {
            Space::Global => {
                let memory = self.launch.memory;
                // SAFETY: `check` has found the element in an allocation, aligned.
                self.fill::<E>(op, at.mask, |l, skip, _, _| unsafe { E::read(memory.pointer(addresses[l] + skip)) });
            }
            Space::Shared => self.fill::<E>(op, at.mask, |l, skip, shared, _| {
                let from = (addresses[l] + skip) as usize;
                E::of(&shared[from..from + E::BYTES])
            }),
            Space::Local => {
                let per_thread = self.launch.kernel.local_bytes as usize;
                self.fill::<E>(op, at.mask, |l, skip, _, local| {
                    let from = l * per_thread + (addresses[l] + skip) as usize;
                    E::of(&local[from..from + E::BYTES])
                });
            }
        }
    }

    /// Elements to registers; `read` gives the element of a lane at a distance.
    #[inline(always)]
    fn fill<E: Element>(&mut self, op: &Memory, mask: u32, read: impl Fn(usize, u64, &[u8], &[u8]) -> u64) {
        for (i, Cell { reg, wide }) in op.cells.iter().enumerate() {
            let skip = (i * E::BYTES) as u64;
            let (shared, local) = (&*self.shared, &*self.local);
            let extend = |v: u64| {
                let unused = 64 - 8 * E::BYTES as u32;
                if op.signed { ((v << unused) as i64 >> unused) as u64 } else { v }
            };
            if *wide {
                let row = self.regs.r64_mut(*reg);
                for l in lanes_of(mask) {
                    row[l] = extend(read(l, skip, shared, local));
                }
            } else {
                let row = self.regs.r32_mut(*reg);
                for l in lanes_of(mask) {
                    row[l] = extend(read(l, skip, shared, local)) as u32;
                }
            }
        }
    }

    pub(super) fn store(&mut self, op: &Memory, at: At) -> Result<(), Stop> {
        let addresses = self.addresses(&op.address, at)?;
        let bytes = u64::from(op.element) * op.cells.len() as u64;
        self.parts(op.window, &addresses, bytes, at, "store", |cx, space, addresses, at| {
            if cx.checked {
                cx.tell_store(space, addresses, op, at)?;
            }
            match op.element {
                1 => cx.store_as::<u8>(space, addresses, op, at),
                2 => cx.store_as::<u16>(space, addresses, op, at),
                4 => cx.store_as::<u32>(space, addresses, op, at),
                _ => cx.store_as::<u64>(space, addresses, op, at),
            }
            Ok(())
        })
    }

    fn tell_store(&mut self, space: Space, addresses: &[u64; LANES], op: &Memory, at: At) -> Result<(), Stop> {
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

    #[inline(always)]
    fn store_as<E: Element>(&mut self, space: Space, addresses: &[u64; LANES], op: &Memory, at: At) {
        let per_thread = self.launch.kernel.local_bytes as usize;
        let memory = self.launch.memory;
        for (i, Cell { reg, wide }) in op.cells.iter().enumerate() {
            let skip = (i * E::BYTES) as u64;
            let regs = &*self.regs;
            let value = |l: usize| if *wide { regs.r64(*reg)[l] } else { u64::from(regs.r32(*reg)[l]) };
            for l in lanes_of(at.mask) {
                let to = addresses[l] + skip;
                match space {
                    // SAFETY: `check` has found the element in an allocation, aligned.
                    Space::Global => unsafe { E::write(memory.pointer(to), value(l)) },
                    Space::Shared => E::to(&mut self.shared[to as usize..to as usize + E::BYTES], value(l)),
                    Space::Local => {
                        let to = l * per_thread + to as usize;
                        E::to(&mut self.local[to..to + E::BYTES], value(l));
                    }
                }
            }
        }
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
                        | <u16 as Element>::of(&self.shared[b..b + 2]) << 16) as u32;
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
        debug_assert!(GLOBAL_BASE > LOCAL_BASE + WINDOW);
        Window::Global
    }
}
