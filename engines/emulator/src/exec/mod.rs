//! Execution: a launch's blocks on the host's cores.

mod access;
pub mod alu;
mod atomics;
mod block;
pub mod float;
mod lanes;
pub mod mma;
pub mod registers;
pub mod windows;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

pub use alu::HostIsa;
use block::{Block, Progress};
use registers::Registers;

use crate::decode::{Fixed, Kernel, Special};
use crate::fault::Fault;
use crate::memory::DeviceMemory;
use crate::monitor::{LaunchFacts, LaunchMonitor, Monitor, SHARED_START};

/// In which order blocks and warps run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Blocks by number, each warp until it has to wait.
    #[default]
    InOrder,
    /// Blocks and warps by chance, warps changing after few instructions; the same chance for the same seed.
    Random(u64),
}

/// A launch: all that its blocks share.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Code.
    pub kernel: &'a Kernel,
    /// Device memory.
    pub memory: &'a DeviceMemory,
    /// Lane functions.
    pub isa: HostIsa,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// Parameters, as the kernel reads them.
    pub params: Vec<u8>,
    /// Counts the launches of the device.
    pub serial: u64,
    /// Multiprocessors.
    pub sm_count: u32,
    /// May begin before the launch before it has ended, on an architecture that knows it.
    pub dependent: bool,
    /// Order.
    pub schedule: Schedule,
    /// Stops a warp that executes more instructions than this.
    pub most_instructions: u64,
}

impl<'a> Launch<'a> {
    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }

    /// End of shared memory in the shared window.
    fn shared_end(&self) -> u32 {
        self.kernel.dynamic_at + self.dynamic_shared
    }

    /// What monitors see.
    pub fn facts(&self, early: bool) -> LaunchFacts<'a> {
        LaunchFacts {
            serial: self.serial,
            kernel: self.kernel,
            grid: self.grid,
            block: self.threads,
            shared_bytes: self.shared_end() - SHARED_START,
            dependent: self.dependent,
            early,
        }
    }

    fn index(&self, block: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(u64::from);
        [(block % x) as u32, (block / x % y) as u32, (block / x / y) as u32]
    }

    /// Registers of a warp with everything that is the same in all warps.
    fn template(&self, checked: bool) -> Registers {
        let kernel = self.kernel;
        let mut regs = Registers::new(kernel.rows as usize, kernel.preds as usize, checked);
        for (r, value) in &kernel.fixed {
            match *value {
                Fixed::Bits32(v) => *regs.r32_mut(*r) = [v; 32],
                Fixed::Bits64(v) => *regs.r64_mut(*r) = [v; 32],
                Fixed::Param { offset, bytes, signed, wide } => {
                    let mut raw = [0; 8];
                    let (from, n) = (offset as usize, bytes as usize);
                    raw[..n].copy_from_slice(&self.params[from..from + n]);
                    let mut v = u64::from_le_bytes(raw);
                    if signed && n < 8 {
                        let unused = 64 - 8 * bytes;
                        v = ((v << unused) as i64 >> unused) as u64;
                    }
                    if wide {
                        *regs.r64_mut(*r) = [v; 32];
                    } else {
                        let v = if n == 2 { v & 0xffff } else { v };
                        *regs.r32_mut(*r) = [v as u32; 32];
                    }
                }
                Fixed::Special(special) => {
                    let v = match special {
                        Special::Ntid(0) => self.threads,
                        Special::Ntid(_) => 1,
                        Special::Nctaid(i) => self.grid[usize::from(i)],
                        Special::NWarpId => 64,
                        Special::NSmId => self.sm_count,
                        Special::GridId => self.serial as u32,
                        Special::DynamicShared => self.dynamic_shared,
                        Special::TotalShared => self.shared_end(),
                        _ => continue,
                    };
                    *regs.r32_mut(*r) = [v; 32];
                }
            }
        }
        for r in &kernel.undefined {
            if checked {
                regs.set_taint(*r, u32::MAX, u32::MAX);
            }
        }
        for r in &kernel.undefined_preds {
            if checked {
                regs.set_pred_taint(*r, u32::MAX, u32::MAX);
            }
        }
        regs
    }

    fn fault(&self, index: [u32; 3], pc: Option<u32>, thread: u32, what: String, address: String) -> Fault {
        let place = pc.map(|pc| self.kernel.place(pc)).unwrap_or_default();
        Fault { kernel: self.kernel.name.clone(), what, place, block: index, thread, address }
    }

    fn order(&self) -> Vec<u64> {
        let mut order: Vec<u64> = (0..self.blocks()).collect();
        if let Schedule::Random(seed) = self.schedule {
            order.shuffle(&mut SmallRng::seed_from_u64(
                seed ^ self.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ));
        }
        order
    }

    /// Chance for one block.
    fn chance(&self, block: u64) -> Option<SmallRng> {
        let Schedule::Random(seed) = self.schedule else { return None };
        let mut rng = SmallRng::seed_from_u64(seed ^ self.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mixed: u64 = rng.random();
        Some(SmallRng::seed_from_u64(mixed ^ block.wrapping_mul(0xd134_2543_de82_ef95)))
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Instructions times threads that executed them.
    pub thread_instructions: u64,
    /// The first fault by the order of blocks.
    pub fault: Option<Fault>,
}

/// Runs all blocks of a launch.
pub fn run<M: Monitor>(launch: &Launch<'_>, monitor: &M, pool: &rayon::ThreadPool) -> Outcome {
    let watcher = monitor.launch(&launch.facts(false));
    let template = launch.template(M::CHECKED);
    let outcome = run_blocks::<M>(launch, &watcher, &template, &launch.order(), pool);
    finish(launch, watcher, outcome)
}

/// Runs a launch and the one that depends on it: blocks of `second` start before `first`, wait for it where they say so,
/// and go on after it. Answers the outcomes of both.
pub fn run_overlapped<M: Monitor>(
    first: &Launch<'_>,
    second: &Launch<'_>,
    monitor: &M,
    pool: &rayon::ThreadPool,
) -> (Outcome, Outcome) {
    let watcher = monitor.launch(&second.facts(true));
    let template = second.template(M::CHECKED);
    let order = second.order();
    // As many as can be on the device at once, and not more than the host wants to hold.
    let early = order.len().min(2 * second.sm_count as usize).min(64);
    let mut started = Vec::with_capacity(early);
    let mut outcome = Outcome::default();
    for number in &order[..early] {
        let index = second.index(*number);
        let mut block = Block::new(
            second,
            index,
            *number,
            watcher.block(index),
            &template,
            block::Scratch::default(),
            M::CHECKED,
            true,
        );
        match block.run() {
            Ok(Progress::Done) => outcome.thread_instructions += block.thread_instructions(),
            Ok(Progress::WaitsForLaunch) => started.push(block),
            Err(fault) => {
                outcome.fault = Some(fault);
                return (Outcome::default(), outcome);
            }
        }
    }
    let before = run(first, monitor, pool);
    if before.fault.is_some() {
        return (before, outcome);
    }
    for mut block in started {
        block.launch_ended();
        let result = block.run();
        outcome.thread_instructions += block.thread_instructions();
        if let Err(fault) = result {
            outcome.fault = Some(fault);
            return (before, outcome);
        }
    }
    let rest = run_blocks::<M>(second, &watcher, &template, &order[early..], pool);
    outcome.thread_instructions += rest.thread_instructions;
    outcome.fault = rest.fault;
    (before, finish(second, watcher, outcome))
}

fn finish(launch: &Launch<'_>, watcher: impl LaunchMonitor, mut outcome: Outcome) -> Outcome {
    if outcome.fault.is_none()
        && let Err(finding) = watcher.end()
    {
        let address = finding.address.map(|(space, at)| describe(launch, space, at)).unwrap_or_default();
        outcome.fault = Some(launch.fault([0; 3], None, finding.lane, finding.what, address));
    }
    outcome
}

fn run_blocks<'m, M: Monitor + 'm>(
    launch: &Launch<'_>,
    watcher: &M::Launch<'m>,
    template: &Registers,
    order: &[u64],
    pool: &rayon::ThreadPool,
) -> Outcome {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let total = AtomicU64::new(0);
    let faults: Mutex<Vec<(usize, Fault)>> = Mutex::new(Vec::new());
    let work = || {
        let mut scratch = block::Scratch::default();
        let mut done = 0;
        while !failed.load(Ordering::Relaxed) {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let Some(number) = order.get(turn).copied() else { break };
            let index = launch.index(number);
            let own = watcher.block(index);
            let mut block = Block::new(launch, index, number, own, template, scratch, M::CHECKED, false);
            let result = block.run();
            done += block.thread_instructions();
            scratch = block.into_scratch();
            if let Err(fault) = result {
                failed.store(true, Ordering::Relaxed);
                if let Ok(mut faults) = faults.lock() {
                    faults.push((turn, fault));
                }
            }
        }
        total.fetch_add(done, Ordering::Relaxed);
    };
    let workers = pool.current_num_threads().min(order.len());
    if workers <= 1 {
        work();
    } else {
        pool.scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|_| work());
            }
        });
    }
    let mut faults = faults.into_inner().unwrap_or_default();
    faults.sort_by_key(|(turn, _)| *turn);
    Outcome {
        thread_instructions: total.into_inner(),
        fault: faults.into_iter().next().map(|(_, fault)| fault),
    }
}

fn describe(launch: &Launch<'_>, space: crate::monitor::Space, at: u64) -> String {
    use crate::monitor::Space;
    match space {
        Space::Global => launch.memory.describe(at),
        Space::Shared => {
            let own = u64::from(launch.shared_end() - SHARED_START);
            match at.checked_sub(u64::from(SHARED_START)) {
                Some(byte) => format!("shared memory byte {byte} (the block has {own})"),
                None => format!("shared address {at:#x}, below the block's shared memory"),
            }
        }
        Space::Local => format!("local memory byte {at} (a thread has {})", launch.kernel.local_bytes),
    }
}
