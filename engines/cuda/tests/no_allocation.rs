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
use lathe_device::{
    Arch, DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph, HostBuffer,
    Image, LaunchConfig, Module,
};
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

/// The emulator, whose own allocations do not count.
struct Uncounted(Emulator);

impl Uncounted {
    fn within<T>(&mut self, call: impl FnOnce(&mut Emulator) -> T) -> T {
        let before = COUNTS.replace(false);
        let result = call(&mut self.0);
        COUNTS.set(before);
        result
    }
}

impl Driver for Uncounted {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }
    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.0.free_bytes()
    }
    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError> {
        self.0.allocate(name, bytes)
    }
    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError> {
        self.0.free(at)
    }
    fn host_buffer(&mut self, bytes: usize) -> Result<Box<dyn HostBuffer>, DriverError> {
        self.0.host_buffer(bytes)
    }
    unsafe fn copy_to_device(
        &mut self,
        to: DevicePtr,
        host: &dyn HostBuffer,
        from: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promises are passed on.
        self.within(|emulator| unsafe { emulator.copy_to_device(to, host, from, len) })
    }
    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promises are passed on.
        self.within(|emulator| unsafe { emulator.copy_to_host(host, to, from, len) })
    }
    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError> {
        self.within(|emulator| emulator.fill(at, byte, len))
    }
    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError> {
        self.0.load_module(name, image)
    }
    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError> {
        self.0.function(module, entry, shared_bytes)
    }
    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError> {
        // SAFETY: the caller's promises are passed on.
        self.within(|emulator| unsafe { emulator.launch(config) })
    }
    fn begin_capture(&mut self) -> Result<(), DriverError> {
        self.within(|emulator| emulator.begin_capture())
    }
    fn end_capture(&mut self) -> Result<Graph, DriverError> {
        self.within(|emulator| emulator.end_capture())
    }
    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError> {
        // SAFETY: the caller's promises are passed on.
        self.within(|emulator| unsafe { emulator.launch_graph(graph) })
    }
    fn record(&mut self) -> Result<Event, DriverError> {
        self.within(|emulator| emulator.record())
    }
    fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        self.within(|emulator| emulator.wait(event))
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
