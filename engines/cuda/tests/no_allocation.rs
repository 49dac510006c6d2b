//! After load the engine's step path allocates nothing: a prompt, decodes ahead of their answers, scores and logits under
//! a counting allocator, which does not count what the driver does (the emulator allocates as it executes).

// What is computed by hand there is for steps.rs.
#[allow(dead_code)]
mod toy;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use lathe_api::{
    Engine, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource, Wanted,
};
use lathe_cuda::{CudaEngine, CudaOptions};
use lathe_device::{Arch, Delegate, Driver};
use lathe_emulator::{DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::Plan;

thread_local! {
    /// Allocations of this thread, and whether they count.
    static COUNTED: Cell<u64> = const { Cell::new(0) };
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    // A thread that ends has no such values any more, and nothing to count.
    let _ = COUNTS.try_with(|counts| {
        if counts.get() {
            let _ = COUNTED.try_with(|n| n.set(n.get() + 1));
        }
    });
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// The emulator, whose own allocations do not count; a step that has it take memory does.
struct Uncounted(Emulator);

impl Delegate for Uncounted {
    fn driver(&self) -> &dyn Driver {
        &self.0
    }

    fn driver_mut(&mut self) -> &mut dyn Driver {
        &mut self.0
    }

    fn step<T>(&mut self, call: impl FnOnce(&mut dyn Driver) -> T) -> T {
        let before = COUNTS.replace(false);
        let result = call(&mut self.0);
        COUNTS.set(before);
        result
    }
}

const PROMPT: [u32; 5] = [3, 44, 7, 9, 12];

/// Positions `from..to` of slot 0, the last of which is wanted; `None` is the token of the step before.
fn step(plan: &mut StepPlan, from: usize, to: usize, wanted: Wanted) {
    plan.clear();
    for position in from..to {
        plan.tokens.push(PROMPT.get(position).map_or(TokenSource::Row(0), |&id| TokenSource::Literal(id)));
        plan.positions.push(position as u32);
    }
    plan.blocks[0].extend([2, 5]);
    plan.seqs.push(SeqStep {
        slot: Slot(0),
        q_start: 0,
        q_len: (to - from) as u32,
        kv_len: to as u32,
        blocks_start: 0,
        blocks_len: (to as u32).div_ceil(toy::BLOCK),
        adapter: None,
    });
    plan.blocks[0].truncate(to.div_ceil(toy::BLOCK as usize));
    plan.rows.push(SampleRow {
        row: (to - from) as u32 - 1,
        slot: Slot(0),
        position: to as u32,
        wanted,
        params: SamplingParams::default(),
        top_logprobs: Some(3),
        suppress_stops: false,
    });
}

#[test]
fn steps_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.plan");
    toy::write(&path, &["sm_80"], |_| ());
    let plan = Arc::new(Plan::open(&path).unwrap());
    for graphs in [true, false] {
        let device = DeviceModel::of(Arch { major: 8, minor: 0 });
        let driver = Box::new(Uncounted(Emulator::new(&EmulatorOptions::new(device)).unwrap()));
        let options = CudaOptions { graphs, ..CudaOptions::default() };
        let mut engine = CudaEngine::load(plan.clone(), driver, &options).unwrap();
        let (mut ahead, mut next) =
            (StepPlan::with_capacity(8, 1, 1, 2, 1), StepPlan::with_capacity(8, 1, 1, 2, 1));
        let mut out = StepOutput::with_capacity(1);
        COUNTED.set(0);
        COUNTS.set(true);
        engine.bind(Slot(0), SlotState { prompt: &PROMPT, ..SlotState::default() }).unwrap();
        step(&mut ahead, 0, 3, Wanted::Score(9));
        let mut before = engine.submit(&ahead).unwrap();
        engine.sample(before, None).unwrap();
        engine.collect(before, &mut out).unwrap();
        step(&mut ahead, 3, 5, Wanted::Sample);
        before = engine.submit(&ahead).unwrap();
        engine.sample(before, None).unwrap();
        // Each step is submitted before the one that draws its token is collected.
        for position in 5..24 {
            step(&mut next, position, position + 1, Wanted::Sample);
            let ticket = engine.submit(&next).unwrap();
            engine.sample(ticket, None).unwrap();
            engine.collect(before, &mut out).unwrap();
            before = ticket;
        }
        engine.collect(before, &mut out).unwrap();
        COUNTS.set(false);
        assert_eq!(COUNTED.get(), 0, "allocations with graphs {graphs}");
        assert_eq!(out.rows.len(), 1);
    }
    // The allocator does count.
    COUNTS.set(true);
    drop(std::hint::black_box(Box::new(1)));
    COUNTS.set(false);
    assert_eq!(COUNTED.get(), 1);
}
