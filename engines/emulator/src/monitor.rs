//! What watches a run: hooks that the interpreter calls, compiled away where nobody watches.
//!
//! Three levels: [`Monitor`] lives as long as the device and hears of memory; [`LaunchMonitor`] watches one grid and is
//! shared by the threads that run its blocks; [`BlockMonitor`] watches one block and belongs to one thread. The
//! interpreter has proved bounds and alignment before it calls a hook. With `CHECKED` it also carries one lane mask per
//! register that says in which lanes the value depends on data nobody has written ("tainted").

use std::ops::Range;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Which memory an access reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory; addresses are device addresses.
    Global,
    /// Shared memory of the block; addresses are offsets in the shared window, see [`SHARED_START`].
    Shared,
    /// Memory of one thread; addresses are offsets.
    Local,
}

/// Offset of the first byte of a block's own shared memory in the shared window. What lies below is the system's.
pub const SHARED_START: u32 = 1024;

/// Where a warp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index of the instruction in the kernel; [`crate::decode::Kernel::line`] finds the lines.
    pub pc: u32,
    /// Warp in the block. Thread `i` of the block is lane `i % 32` of warp `i / 32`.
    pub warp: u32,
    /// Lanes that execute the instruction.
    pub mask: u32,
    /// Lanes of the warp that have not exited; equal to `mask` where the warp is converged.
    pub alive: u32,
}

/// How strongly an access is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Plain accesses: a conflict is a race.
    Weak,
    /// `volatile`, `relaxed`, `acquire`, `release`: meant to conflict.
    Strong,
    /// Read-modify-write as one.
    Atomic,
}

/// Accesses of one instruction, one per lane of `at.mask`.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Who.
    pub at: At,
    /// Where to.
    pub space: Space,
    /// First address per lane; lanes outside of the mask hold anything.
    pub addresses: &'a [u64; LANES],
    /// Bytes per element: 1, 2, 4, 8.
    pub element: u32,
    /// Elements, side by side: 1, 2, 4, 8.
    pub elements: u32,
    /// Ordering.
    pub order: Order,
}

/// Something that must not happen, seen by a monitor; the interpreter adds kernel, line, block and thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The lane to name.
    pub lane: u32,
    /// What happened, with the other party if there is one.
    pub what: String,
    /// Where in memory.
    pub address: Option<(Space, u64)>,
}

/// What a tainted value was used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Guard of a branch, an exit or any other guarded instruction.
    Predicate,
    /// Address of an access.
    Address,
}

/// A launch as monitors see it.
#[derive(Clone, Copy, Debug)]
pub struct LaunchFacts<'a> {
    /// Counts the launches of the device.
    pub serial: u64,
    /// Its code.
    pub kernel: &'a crate::decode::Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Shared memory of a block in bytes, static and dynamic; it begins at [`SHARED_START`].
    pub shared_bytes: u32,
    /// `LaunchConfig::dependent` on an architecture that knows it: only from its `griddepcontrol.wait` on has the launch
    /// before ended.
    pub dependent: bool,
    /// The blocks run before launch `serial - 1` has begun, each up to its `griddepcontrol.wait`, and go on after it.
    pub early: bool,
}

/// Watches a device.
pub trait Monitor: Send + Sync {
    /// False compiles taint away.
    const CHECKED: bool;
    /// Watches a launch.
    type Launch<'m>: LaunchMonitor
    where
        Self: 'm;

    /// Memory was taken; its contents are undefined.
    fn allocated(&self, range: Range<u64>);
    /// Memory was given back.
    fn freed(&self, range: Range<u64>);
    /// A copy or fill by the host, in stream order.
    fn host_writes(&self, range: Range<u64>);
    /// A copy to the host, in stream order.
    ///
    /// # Errors
    /// The host would read what nobody wrote.
    fn host_reads(&self, range: Range<u64>) -> Result<(), Finding>;
    /// A launch begins. Its predecessor has ended unless `facts.early`; then it begins only after this call.
    fn launch<'m>(&'m self, facts: &LaunchFacts<'m>) -> Self::Launch<'m>;
}

/// Watches a grid.
pub trait LaunchMonitor: Sync {
    /// Watches a block.
    type Block<'l>: BlockMonitor
    where
        Self: 'l;

    /// A block begins. Registers and shared memory are undefined.
    fn block<'l>(&'l self, index: [u32; 3]) -> Self::Block<'l>;
    /// All blocks have ended without a fault.
    ///
    /// # Errors
    /// What can be seen only at the end.
    fn end(self) -> Result<(), Finding>;
}

/// Watches a block. Calls come in the order in which the interpreter executes the block's warps.
///
/// The defaults do nothing.
#[allow(unused_variables)]
pub trait BlockMonitor: Send {
    /// Before a load. Sets `taints[i]`, zero before, to the lanes whose element `i` is tainted.
    ///
    /// # Errors
    /// The access must not happen.
    #[inline(always)]
    fn load(&mut self, access: &Access<'_>, taints: &mut [u32]) -> Result<(), Finding> {
        Ok(())
    }
    /// Before a store; `taints[i]` are the lanes whose element `i` is tainted, `values[i]` the elements themselves.
    ///
    /// # Errors
    /// The access must not happen.
    #[inline(always)]
    fn store(&mut self, access: &Access<'_>, taints: &[u32], values: &[[u64; LANES]]) -> Result<(), Finding> {
        Ok(())
    }
    /// Before an atomic operation; `taint` are the lanes with a tainted operand. Answers the lanes whose old value is.
    ///
    /// # Errors
    /// The access must not happen.
    #[inline(always)]
    fn atomic(&mut self, access: &Access<'_>, taint: u32) -> Result<u32, Finding> {
        Ok(0)
    }
    /// Before `ldmatrix` (`stores` false) or `stmatrix`: 16 bytes at each of `rows`, shared offsets; register `i` has rows
    /// `8 * i ..`. `taints[i]` is set as by `load`, or given as to `store`.
    ///
    /// # Errors
    /// The access must not happen.
    #[inline(always)]
    fn matrix(
        &mut self,
        at: At,
        rows: &[u64],
        transposed: bool,
        stores: bool,
        taints: &mut [u32],
    ) -> Result<(), Finding> {
        Ok(())
    }
    /// Before `cp.async`: per lane `bytes` to `shared` (an offset), of which the first `source_bytes` come from `global`
    /// and the others are zero.
    ///
    /// # Errors
    /// The copy must not happen.
    #[inline(always)]
    fn copy_async(
        &mut self,
        at: At,
        shared: &[u64; LANES],
        global: &[u64; LANES],
        bytes: u32,
        source_bytes: &[u32; LANES],
    ) -> Result<(), Finding> {
        Ok(())
    }
    /// `cp.async.commit_group`.
    #[inline(always)]
    fn copy_commit(&mut self, at: At) {}
    /// `cp.async.wait_group n`, or `wait_all` where `pending` is `None` (which also waits for what is not committed).
    #[inline(always)]
    fn copy_wait(&mut self, at: At, pending: Option<u32>) {}
    /// The lanes arrive at barrier `id`, which waits for `threads` threads; `waits` is false for `bar.arrive`. `aligned`
    /// (all forms but `barrier` without `.aligned`): all lanes of the warp must come together.
    ///
    /// # Errors
    /// They must not arrive there.
    #[inline(always)]
    fn arrive(&mut self, at: At, id: u32, threads: u32, waits: bool, aligned: bool) -> Result<(), Finding> {
        Ok(())
    }
    /// Barrier `id` opens: all its threads have arrived.
    #[inline(always)]
    fn release(&mut self, id: u32) {}
    /// No warp can go on: `waiting` are warp, lanes and barrier.
    ///
    /// # Errors
    /// Always, in words better than the interpreter's own if it returns one.
    #[inline(always)]
    fn stuck(&mut self, waiting: &[(At, u32)]) -> Result<(), Finding> {
        Ok(())
    }
    /// The lanes are synchronised with each other: `bar.warp.sync`, `shfl`, votes, `mma`, `ldmatrix`.
    #[inline(always)]
    fn warp_sync(&mut self, at: At) {}
    /// `membar` or `fence`; also called before an access with `.release` and after one with `.acquire`. `device_wide` is
    /// false for the scope `.cta`.
    #[inline(always)]
    fn fence(&mut self, at: At, device_wide: bool) {}
    /// The lanes exit.
    ///
    /// # Errors
    /// They must not exit now.
    #[inline(always)]
    fn exit(&mut self, at: At) -> Result<(), Finding> {
        Ok(())
    }
    /// A value that depends on undefined data in `lanes` decides what happens.
    ///
    /// # Errors
    /// It must not.
    #[inline(always)]
    fn tainted(&mut self, at: At, lanes: u32, used_as: Use) -> Result<(), Finding> {
        Ok(())
    }
    /// `griddepcontrol.wait`: from here on the launch before has ended.
    #[inline(always)]
    fn dependency_wait(&mut self, at: At) {}
    /// `griddepcontrol.launch_dependents`.
    #[inline(always)]
    fn launch_dependents(&mut self, at: At) {}
    /// The block's last warp has exited.
    ///
    /// # Errors
    /// What is left unfinished.
    #[inline(always)]
    fn end(&mut self) -> Result<(), Finding> {
        Ok(())
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unchecked;

impl Monitor for Unchecked {
    const CHECKED: bool = false;
    type Launch<'m> = Unchecked;

    fn allocated(&self, _: Range<u64>) {}
    fn freed(&self, _: Range<u64>) {}
    fn host_writes(&self, _: Range<u64>) {}
    fn host_reads(&self, _: Range<u64>) -> Result<(), Finding> {
        Ok(())
    }
    fn launch<'m>(&'m self, _: &LaunchFacts<'m>) -> Unchecked {
        Unchecked
    }
}

impl LaunchMonitor for Unchecked {
    type Block<'l> = Unchecked;

    fn block(&self, _: [u32; 3]) -> Unchecked {
        Unchecked
    }
    fn end(self) -> Result<(), Finding> {
        Ok(())
    }
}

impl BlockMonitor for Unchecked {}
