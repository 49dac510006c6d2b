//! Checks one block: every access meets the shadow, every synchronisation moves the order.

use std::cell::Cell;

use super::barrier::Barriers;
use super::copies::Copies;
use super::local::Local;
use super::order::{BlockOrder, View};
use super::record::{Party, WHOLE};
use super::report::{self, Verb};
use super::shadow::{Conflict, Shadow, Slot, words};
use super::{CheckedLaunch, Region};
use crate::monitor::{Access, At, BlockMonitor, Finding, LANES, Order, SHARED_START, Space, Use};

/// Checks a block.
#[derive(Debug)]
pub struct CheckedBlock<'l> {
    launch: &'l CheckedLaunch<'l>,
    order: BlockOrder<'l>,
    shared: Shadow<Cell<u64>>,
    local: Local,
    copies: Vec<Copies>,
    barriers: Barriers,
    /// Index of the region that was accessed last.
    region: usize,
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        (left != 0).then(|| {
            left &= left - 1;
            lane as usize
        })
    })
}

const fn ones(n: u32) -> u64 {
    if n >= 64 { !0 } else { (1 << n) - 1 }
}

/// Bits of the undefined among `len` bytes from offset `at` on.
#[inline(always)]
fn read<S: Slot>(shadow: &Shadow<S>, at: u64, len: u32, view: &View<'_>) -> Result<u64, Conflict> {
    let mut undefined = 0;
    if at.is_multiple_of(4) && len.is_multiple_of(4) {
        for k in 0..len / 4 {
            let bits = shadow.read((at / 4) as usize + k as usize, WHOLE, view)?;
            undefined |= u64::from(bits) << (4 * k);
        }
    } else {
        for (i, mask) in words(at, u64::from(len)) {
            let bits = u64::from(shadow.read(i, mask, view)?);
            let start = 4 * i as u64;
            undefined |= if start >= at { bits << (start - at) } else { bits >> (at - start) };
        }
    }
    Ok(undefined)
}

/// `len` bytes from offset `at` on are written, `undefined` of them with undefined data.
#[inline(always)]
fn write<S: Slot>(
    shadow: &Shadow<S>,
    at: u64,
    len: u32,
    undefined: u64,
    pending: bool,
    view: &View<'_>,
) -> Result<(), Conflict> {
    if at.is_multiple_of(4) && len.is_multiple_of(4) {
        for k in 0..len / 4 {
            let init = !(undefined >> (4 * k)) as u8 & WHOLE;
            shadow.write((at / 4) as usize + k as usize, WHOLE, init, pending, view)?;
        }
    } else {
        for (i, mask) in words(at, u64::from(len)) {
            let start = 4 * i as u64;
            let bits = if start >= at { undefined >> (start - at) } else { undefined << (at - start) };
            shadow.write(i, mask, !(bits as u8) & mask, pending, view)?;
        }
    }
    Ok(())
}

/// The region of `len` bytes from `at` on, its offset in it. `last` speeds the next search up.
#[inline(always)]
fn region<'r>(
    launch: &'r CheckedLaunch<'_>,
    last: &mut usize,
    at: u64,
    len: u32,
) -> Option<(&'r Region, u64)> {
    let holds = |r: &Region| r.range.start <= at && at + u64::from(len) <= r.range.end;
    let regions = &launch.regions;
    if !regions.get(*last).is_some_and(|r| holds(r)) {
        *last = regions.partition_point(|r| r.range.start <= at).checked_sub(1)?;
    }
    let region: &'r Region = regions.get(*last).filter(|r| holds(r))?;
    Some((region, at - region.range.start))
}

/// Two lanes of one store whose addresses are equal and whose values are not.
fn clash(access: &Access<'_>, values: &[[u64; LANES]]) -> Option<(usize, usize)> {
    let bytes = u64::from(access.element * access.elements);
    let mut end = 0;
    let apart = lanes(access.at.mask).all(|lane| {
        let at = access.addresses[lane];
        let after = at >= end;
        end = at + bytes;
        after
    });
    if apart {
        return None;
    }
    let mut sorted = [(u64::MAX, 0); LANES];
    let n = lanes(access.at.mask).map(|lane| sorted[lane] = (access.addresses[lane], lane)).count();
    sorted.sort_unstable();
    let kept = ones(access.element * 8);
    let differ = |a: usize, b: usize| values.iter().any(|v| (v[a] ^ v[b]) & kept != 0);
    sorted[..n].windows(2).find(|w| w[0].0 == w[1].0 && differ(w[0].1, w[1].1)).map(|w| (w[0].1, w[1].1))
}

impl<'l> CheckedBlock<'l> {
    /// A block that has done nothing yet.
    pub fn new(launch: &'l CheckedLaunch<'l>, index: [u32; 3]) -> Self {
        let [x, y, _] = launch.order.grid;
        let block = index[0] + x * (index[1] + y * index[2]);
        let warps = launch.block.div_ceil(LANES as u32) as usize;
        CheckedBlock {
            launch,
            order: BlockOrder::new(&launch.checker.segments, launch.order.clone(), block, warps),
            shared: Shadow::new(u64::from(launch.shared_bytes)),
            local: Local::default(),
            copies: vec![Copies::default(); warps],
            barriers: Barriers::default(),
            region: 0,
        }
    }

    fn found(&self, verb: Verb, lane: usize, address: (Space, u64), conflict: Conflict) -> Finding {
        report::conflict(verb, lane as u32, address, conflict, &self.order, self.launch.kernel)
    }

    fn unknown(lane: usize, space: Space, at: u64) -> Finding {
        let what = "no memory is known there".to_string();
        Finding { lane: lane as u32, what, address: Some((space, at)) }
    }

    /// A weak access does not race with strong ones of others that an atomic operation of its block came after.
    fn excused(&self, address: u64, strong: bool, conflict: &Conflict) -> bool {
        match conflict {
            Conflict::Race { other, .. } => {
                !strong && other.strong && self.order.touched_after(address, *other)
            }
            Conflict::Pending { .. } => false,
        }
    }

    fn read_global(
        &mut self,
        at: At,
        lane: usize,
        address: u64,
        len: u32,
        (strong, verb): (bool, Verb),
    ) -> Result<u64, Finding> {
        let Some((region, offset)) = region(self.launch, &mut self.region, address, len) else {
            return Err(Self::unknown(lane, Space::Global, address));
        };
        let view = self.order.global(at.warp, lane as u32, at.pc, strong);
        match read(&region.shadow, offset, len, &view) {
            Ok(undefined) => Ok(undefined),
            Err(conflict) if self.excused(address, strong, &conflict) => {
                self.read_global(at, lane, address, len, (true, verb))
            }
            Err(conflict) => Err(self.found(verb, lane, (Space::Global, address), conflict)),
        }
    }

    fn shared_offset(&self, lane: usize, address: u64, len: u32) -> Result<u64, Finding> {
        address
            .checked_sub(u64::from(SHARED_START))
            .filter(|offset| (offset + u64::from(len)).div_ceil(4) <= self.shared.len() as u64)
            .ok_or_else(|| Self::unknown(lane, Space::Shared, address))
    }

    #[inline(always)]
    fn read_shared(
        &mut self,
        at: At,
        lane: usize,
        address: u64,
        len: u32,
        strong: bool,
    ) -> Result<u64, Finding> {
        let offset = self.shared_offset(lane, address, len)?;
        let view = self.order.shared(at.warp, lane as u32, at.pc, strong);
        let undefined = read(&self.shared, offset, len, &view);
        undefined.map_err(|c| self.found(Verb::Reads, lane, (Space::Shared, address), c))
    }

    #[inline(always)]
    fn write_shared(
        &mut self,
        at: At,
        lane: usize,
        address: u64,
        len: u32,
        (undefined, strong, verb): (u64, bool, Verb),
    ) -> Result<(), Finding> {
        let offset = self.shared_offset(lane, address, len)?;
        let view = self.order.shared(at.warp, lane as u32, at.pc, strong);
        let written = write(&self.shared, offset, len, undefined, verb == Verb::CopiesTo, &view);
        written.map_err(|c| self.found(verb, lane, (Space::Shared, address), c))
    }

    fn write_global(
        &mut self,
        at: At,
        lane: usize,
        address: u64,
        len: u32,
        (undefined, strong): (u64, bool),
    ) -> Result<(), Finding> {
        let Some((region, offset)) = region(self.launch, &mut self.region, address, len) else {
            return Err(Self::unknown(lane, Space::Global, address));
        };
        let view = self.order.global(at.warp, lane as u32, at.pc, strong);
        match write(&region.shadow, offset, len, undefined, false, &view) {
            Ok(()) => Ok(()),
            Err(conflict) if self.excused(address, strong, &conflict) => {
                self.write_global(at, lane, address, len, (undefined, true))
            }
            Err(conflict) => Err(self.found(Verb::Writes, lane, (Space::Global, address), conflict)),
        }
    }
}

impl BlockMonitor for CheckedBlock<'_> {
    fn load(&mut self, access: &Access<'_>, taints: &mut [u32]) -> Result<(), Finding> {
        let at = access.at;
        let len = access.element * access.elements;
        let strong = access.order != Order::Weak;
        for lane in lanes(at.mask) {
            let address = access.addresses[lane];
            let undefined = match access.space {
                Space::Shared => self.read_shared(at, lane, address, len, strong)?,
                Space::Global => {
                    if strong {
                        self.order.talk(at.warp, address, true, false);
                    }
                    self.read_global(at, lane, address, len, (strong, Verb::Reads))?
                }
                Space::Local => {
                    u64::from(self.local.undefined(at.warp as usize * LANES + lane, address, len))
                }
            };
            if undefined != 0 {
                for (i, taint) in taints.iter_mut().enumerate() {
                    if undefined >> (i as u32 * access.element) & ones(access.element) != 0 {
                        *taint |= 1 << lane;
                    }
                }
            }
        }
        Ok(())
    }

    fn store(&mut self, access: &Access<'_>, taints: &[u32], values: &[[u64; LANES]]) -> Result<(), Finding> {
        let at = access.at;
        let len = access.element * access.elements;
        let strong = access.order != Order::Weak;
        if !strong
            && access.space != Space::Local
            && let Some((a, b)) = clash(access, values)
        {
            let what =
                format!("race: lanes {a} and {b} of the warp write different values to one address at once");
            return Err(Finding { lane: b as u32, what, address: Some((access.space, access.addresses[b])) });
        }
        for lane in lanes(at.mask) {
            let address = access.addresses[lane];
            let undefined = taints.iter().enumerate().fold(0, |bits, (i, taint)| {
                let element = if taint >> lane & 1 == 1 { ones(access.element) } else { 0 };
                bits | element << (i as u32 * access.element)
            });
            match access.space {
                Space::Shared => {
                    self.write_shared(at, lane, address, len, (undefined, strong, Verb::Writes))?;
                }
                Space::Global => {
                    if strong {
                        self.order.talk(at.warp, address, false, true);
                    }
                    self.write_global(at, lane, address, len, (undefined, strong))?;
                }
                Space::Local => {
                    self.local.write(at.warp as usize * LANES + lane, address, len, undefined as u32);
                }
            }
        }
        Ok(())
    }

    fn atomic(&mut self, access: &Access<'_>, taint: u32) -> Result<u32, Finding> {
        let at = access.at;
        let len = access.element * access.elements;
        let mut undefined = 0;
        for lane in lanes(at.mask) {
            let address = access.addresses[lane];
            let defined = taint >> lane & 1 == 0;
            let (offset, region) = match access.space {
                Space::Global => {
                    self.order.talk(at.warp, address, true, true);
                    let Some((region, offset)) = region(self.launch, &mut self.region, address, len) else {
                        return Err(Self::unknown(lane, Space::Global, address));
                    };
                    (offset, Some(region))
                }
                _ => (self.shared_offset(lane, address, len)?, None),
            };
            for (i, mask) in words(offset, u64::from(len)) {
                let old = match region {
                    Some(region) => {
                        let view = self.order.global(at.warp, lane as u32, at.pc, true);
                        region.shadow.update(i, mask, defined, &view)
                    }
                    None => {
                        let view = self.order.shared(at.warp, lane as u32, at.pc, true);
                        self.shared.update(i, mask, defined, &view)
                    }
                };
                let old = old.map_err(|c| self.found(Verb::Updates, lane, (access.space, address), c))?;
                undefined |= u32::from(old != 0) << lane;
            }
        }
        Ok(undefined)
    }

    fn matrix(
        &mut self,
        at: At,
        rows: &[u64],
        transposed: bool,
        stores: bool,
        taints: &mut [u32],
    ) -> Result<(), Finding> {
        // Bytes of a row that a lane's register holds: two of its own row, or one of each of two rows.
        let part = |lane: usize, row: usize| -> u64 {
            if transposed {
                if row / 2 == lane % 4 { 0b11 << (2 * (lane / 4)) } else { 0 }
            } else if row == lane / 4 {
                0b1111 << (4 * (lane % 4))
            } else {
                0
            }
        };
        for (i, taint) in taints.iter_mut().enumerate() {
            for row in 0..8 {
                let Some(address) = rows.get(8 * i + row).copied() else { continue };
                let lane = (8 * i + row) % LANES;
                if stores {
                    let undefined =
                        if *taint == 0 { 0 } else { lanes(*taint).fold(0, |u, l| u | part(l, row)) };
                    self.write_shared(at, lane, address, 16, (undefined, false, Verb::Writes))?;
                } else {
                    let undefined = self.read_shared(at, lane, address, 16, false)?;
                    if undefined != 0 {
                        *taint |=
                            lanes(!0).filter(|l| part(*l, row) & undefined != 0).fold(0, |m, l| m | 1 << l);
                    }
                }
            }
        }
        Ok(())
    }

    fn copy_async(
        &mut self,
        at: At,
        shared: &[u64; LANES],
        global: &[u64; LANES],
        bytes: u32,
        source_bytes: &[u32; LANES],
    ) -> Result<(), Finding> {
        let mut to = [0; LANES];
        for lane in lanes(at.mask) {
            let source = source_bytes[lane].min(bytes);
            let undefined = if source == 0 {
                0
            } else {
                self.read_global(at, lane, global[lane], source, (false, Verb::CopiesFrom))?
            };
            self.write_shared(at, lane, shared[lane], bytes, (undefined, false, Verb::CopiesTo))?;
            to[lane] = (shared[lane] - u64::from(SHARED_START)) as u32;
        }
        self.copies[at.warp as usize].issue(at.mask, at.pc, bytes, &to);
        Ok(())
    }

    fn copy_commit(&mut self, at: At) {
        self.copies[at.warp as usize].commit(at.mask);
    }

    fn copy_wait(&mut self, at: At, pending: Option<u32>) {
        let segment = self.order.segment(at.warp);
        let shared = &self.shared;
        self.copies[at.warp as usize].wait(at.mask, pending, |copy, done| {
            for lane in lanes(done) {
                let party = Party { segment, lane: lane as u32, pc: copy.pc, strong: false };
                for (i, mask) in words(u64::from(copy.to[lane]), u64::from(copy.bytes)) {
                    shared.complete(i, mask, party);
                }
            }
        });
    }

    fn arrive(&mut self, at: At, id: u32, threads: u32, waits: bool, aligned: bool) -> Result<(), Finding> {
        let counts = (threads, self.launch.block);
        self.barriers.arrive(at, id, counts, waits, aligned, self.launch.kernel)?;
        self.order.arrive(at.warp, id, waits);
        Ok(())
    }

    fn release(&mut self, id: u32) {
        self.barriers.release(id);
        self.order.release(id);
    }

    fn stuck(&mut self, waiting: &[(At, u32)]) -> Result<(), Finding> {
        Err(Barriers::stuck(waiting, self.launch.kernel))
    }

    fn fence(&mut self, at: At, device_wide: bool) {
        self.order.fence(at.warp, device_wide);
    }

    fn exit(&mut self, at: At) -> Result<(), Finding> {
        self.barriers.exit(at, self.launch.kernel)
    }

    fn tainted(&mut self, at: At, lanes: u32, used_as: Use) -> Result<(), Finding> {
        let used = match used_as {
            Use::Predicate => "decides what is executed",
            Use::Address => "is used as an address",
        };
        let what = format!("undefined data: a value that depends on what nobody wrote {used}");
        Err(Finding { lane: (lanes & at.mask).trailing_zeros() & 31, what, address: None })
    }

    fn dependency_wait(&mut self, at: At) {
        self.order.wait_for_previous(at.warp);
    }

    fn launch_dependents(&mut self, at: At) {
        if !self.order.has_waited(at.warp) {
            self.order.launch.hurry();
        }
    }

    fn end(&mut self) -> Result<(), Finding> {
        if !(0..self.copies.len()).any(|w| self.order.has_waited(w as u32)) {
            self.order.launch.hurry();
        }
        Ok(())
    }
}
