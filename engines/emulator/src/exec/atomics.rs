//! Read-modify-write: lanes take their turns by number, blocks by the host's atomics.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::access::lanes_of;
use super::block::{Cx, Stop};
use super::float::{self, BF16x2, F16x2};
use super::registers::Lane;
use crate::decode::op::{Atomic, AtomicKind, AtomicType};
use crate::monitor::{At, BlockMonitor, LANES, Space};

impl AtomicType {
    const fn bytes(self) -> u32 {
        match self {
            AtomicType::U64 | AtomicType::S64 | AtomicType::F64 => 8,
            AtomicType::B16 => 2,
            _ => 4,
        }
    }
}

/// The new value.
fn update(kind: AtomicKind, of: AtomicType, old: u64, b: u64, c: u64) -> u64 {
    let (old32, b32) = (old as u32, b as u32);
    match kind {
        AtomicKind::Exch => b,
        AtomicKind::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomicKind::And => old & b,
        AtomicKind::Or => old | b,
        AtomicKind::Xor => old ^ b,
        AtomicKind::Inc => u64::from(if old32 >= b32 { 0 } else { old32 + 1 }),
        AtomicKind::Dec => u64::from(if old32 == 0 || old32 > b32 { b32 } else { old32 - 1 }),
        AtomicKind::Add => match of {
            AtomicType::F32 => u64::from((f32::from_bits(old32) + f32::from_bits(b32)).to_bits()),
            AtomicType::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            AtomicType::F16x2 => u64::from(F16x2::of(old32).zip(F16x2::of(b32), |a, b| a + b).raw()),
            AtomicType::BF16x2 => u64::from(BF16x2::of(old32).zip(BF16x2::of(b32), |a, b| a + b).raw()),
            AtomicType::U64 | AtomicType::S64 => old.wrapping_add(b),
            _ => u64::from(old32.wrapping_add(b32)),
        },
        AtomicKind::Min => match of {
            AtomicType::S32 => u64::from((old32 as i32).min(b32 as i32) as u32),
            AtomicType::S64 => (old as i64).min(b as i64) as u64,
            AtomicType::F16x2 => u64::from(F16x2::of(old32).zip(F16x2::of(b32), float::min).raw()),
            AtomicType::BF16x2 => u64::from(BF16x2::of(old32).zip(BF16x2::of(b32), float::min).raw()),
            _ => old.min(b),
        },
        AtomicKind::Max => match of {
            AtomicType::S32 => u64::from((old32 as i32).max(b32 as i32) as u32),
            AtomicType::S64 => (old as i64).max(b as i64) as u64,
            AtomicType::F16x2 => u64::from(F16x2::of(old32).zip(F16x2::of(b32), float::max).raw()),
            AtomicType::BF16x2 => u64::from(BF16x2::of(old32).zip(BF16x2::of(b32), float::max).raw()),
            _ => old.max(b),
        },
    }
}

impl<B: BlockMonitor> Cx<'_, '_, B> {
    pub(super) fn atomic(&mut self, op: &Atomic, at: At) -> Result<(), Stop> {
        let bytes = op.of.bytes();
        let wide = bytes == 8;
        let addresses = self.addresses(&op.address, at)?;
        let read = |regs: &super::Registers, r| -> [u64; LANES] {
            if wide { *regs.r64(r) } else { regs.r32(r).map(u64::from) }
        };
        let b = read(self.regs, op.b);
        let c = op.c.map_or([0; LANES], |c| read(self.regs, c));
        let taint =
            if self.checked { self.regs.taint(op.b) | op.c.map_or(0, |c| self.regs.taint(c)) } else { 0 };
        self.parts(op.window, &addresses, u64::from(bytes), at, "atomic", &mut |cx, space, addresses, at| {
            let tainted =
                if cx.checked { cx.tell_atomic(space, addresses, bytes, taint & at.mask, at)? } else { 0 };
            for l in lanes_of(at.mask) {
                let new = |old: u64| update(op.kind, op.of, old, b[l], c[l]);
                let old = match space {
                    Space::Global => {
                        let p = cx.launch.memory.pointer(addresses[l]);
                        let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
                        let result = match bytes {
                            2 => {
                                // SAFETY: `check` has found the element in an allocation, aligned; so below.
                                let a = unsafe { AtomicU16::from_ptr(p.cast()) };
                                let result = a.fetch_update(set, get, |old| Some(new(old.into()) as u16));
                                result.map(u64::from).map_err(u64::from)
                            }
                            4 => {
                                // SAFETY: as above.
                                let a = unsafe { AtomicU32::from_ptr(p.cast()) };
                                let result = a.fetch_update(set, get, |old| Some(new(old.into()) as u32));
                                result.map(u64::from).map_err(u64::from)
                            }
                            _ => {
                                // SAFETY: as above.
                                let a = unsafe { AtomicU64::from_ptr(p.cast()) };
                                a.fetch_update(set, get, |old| Some(new(old)))
                            }
                        };
                        match result {
                            Ok(old) | Err(old) => old,
                        }
                    }
                    Space::Shared | Space::Local => {
                        let per_thread = cx.launch.kernel.local_bytes as usize;
                        let memory = match space {
                            Space::Shared => &mut cx.shared[addresses[l] as usize..],
                            _ => &mut cx.local[l * per_thread + addresses[l] as usize..],
                        };
                        let mut raw = [0; 8];
                        let n = bytes as usize;
                        raw[..n].copy_from_slice(&memory[..n]);
                        let old = u64::from_le_bytes(raw);
                        memory[..n].copy_from_slice(&new(old).to_le_bytes()[..n]);
                        old
                    }
                };
                if let Some(d) = op.d {
                    if wide {
                        cx.regs.r64_mut(d)[l] = old;
                    } else {
                        cx.regs.r32_mut(d)[l] = old as u32;
                    }
                }
            }
            if let Some(d) = op.d
                && cx.checked
            {
                cx.regs.set_taint(d, at.mask, tainted);
            }
            Ok(())
        })
    }
}
