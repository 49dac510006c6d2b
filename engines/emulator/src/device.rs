//! An emulated device: modules, a stream of deferred work, graphs.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use lathe_device::{
    Arch, ArgValue, DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph,
    HostBuffer, Image, LaunchConfig, Module,
};

use crate::decode::op::Op;
use crate::decode::{Kernel, decode, globals};
use crate::exec::{HostIsa, Launch, Outcome, Schedule, run, run_overlapped};
use crate::memory::DeviceMemory;
use crate::monitor::Monitor;
use crate::options::EmulatorOptions;
use crate::ptx::parse;

/// Dynamic shared memory that a kernel may have without asking.
const USUAL_SHARED: u32 = 48 * 1024;
/// A warp that executes more instructions is taken for one that never ends.
const MOST_INSTRUCTIONS: u64 = 1 << 32;

/// Host memory as a copy under way sees it.
#[derive(Clone, Copy, Debug)]
struct HostRange {
    at: *mut u8,
    len: usize,
}

// SAFETY: by the contract of `Driver` the memory lives and stays untouched while work refers to it.
unsafe impl Send for HostRange {}

#[derive(Clone, Debug)]
struct LaunchWork {
    kernel: Arc<Kernel>,
    label: String,
    grid: [u32; 3],
    threads: u32,
    dynamic_shared: u32,
    dependent: bool,
    params: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Work {
    ToDevice { to: u64, from: HostRange },
    ToHost { to: HostRange, from: u64 },
    Fill { at: u64, byte: u8, len: u64 },
    Launch(LaunchWork),
}

#[derive(Debug)]
struct LoadedModule {
    name: String,
    kernels: Vec<Arc<Kernel>>,
}

#[derive(Debug)]
struct LoadedFunction {
    kernel: Arc<Kernel>,
    dynamic_shared: u32,
}

pub(crate) struct Device<M> {
    info: DeviceInfo,
    memory: DeviceMemory,
    monitor: M,
    pool: rayon::ThreadPool,
    isa: HostIsa,
    schedule: Schedule,
    modules: Vec<LoadedModule>,
    functions: Vec<LoadedFunction>,
    queue: VecDeque<Work>,
    /// Work that has left the queue since the beginning.
    done: u64,
    /// Events by number: how much work was submitted before them.
    events: Vec<u64>,
    capture: Option<Vec<Work>>,
    graphs: Vec<Vec<Work>>,
    launches: u64,
    thread_instructions: u64,
    failed: Option<DriverError>,
}

impl<M: Monitor> Device<M> {
    pub(crate) fn new(options: &EmulatorOptions, monitor: M) -> Result<Self, DriverError> {
        let model = &options.device;
        let mut pool = rayon::ThreadPoolBuilder::new().thread_name(|i| format!("emulator-{i}"));
        if let Some(n) = options.threads {
            pool = pool.num_threads(n.max(1));
        }
        let pool = pool
            .build()
            .map_err(|e| DriverError::Unavailable { what: "threads".into(), why: e.to_string() })?;
        Ok(Device {
            info: DeviceInfo {
                name: model.name.clone(),
                arch: model.arch,
                sm_count: model.sm_count,
                max_shared_bytes: model.max_shared_bytes,
                total_bytes: model.total_bytes,
                free_bytes: model.total_bytes,
                driver: String::new(),
            },
            memory: DeviceMemory::new(model.total_bytes)?,
            monitor,
            pool,
            isa: HostIsa::detect(),
            schedule: options.seed.map_or(Schedule::InOrder, Schedule::Random),
            modules: Vec::new(),
            functions: Vec::new(),
            queue: VecDeque::new(),
            done: 0,
            events: Vec::new(),
            capture: None,
            graphs: Vec::new(),
            launches: 0,
            thread_instructions: 0,
            failed: None,
        })
    }

    pub(crate) fn thread_instructions(&self) -> u64 {
        self.thread_instructions
    }

    pub(crate) fn set_isa(&mut self, isa: HostIsa) {
        self.isa = isa;
    }

    fn usable(&self) -> Result<(), DriverError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn submit(&mut self, work: Work) {
        match &mut self.capture {
            Some(capture) => capture.push(work),
            None => self.queue.push_back(work),
        }
    }

    fn execute(&mut self, work: Work, until: u64) -> Result<(), DriverError> {
        match work {
            Work::ToDevice { to, from } => {
                // SAFETY: the caller of `copy_to_device` keeps the range alive and unwritten until after this wait.
                let bytes = unsafe { std::slice::from_raw_parts(from.at, from.len) };
                self.memory.write(to, bytes)?;
                self.monitor.host_writes(to..to + from.len as u64);
            }
            Work::ToHost { to, from } => {
                // SAFETY: the caller of `copy_to_host` keeps the range alive and untouched until after this wait.
                let bytes = unsafe { std::slice::from_raw_parts_mut(to.at, to.len) };
                self.memory.read(from, bytes)?;
                self.monitor.host_reads(from..from + to.len as u64).map_err(|finding| {
                    let place = finding.address.map(|(_, at)| self.memory.describe(at)).unwrap_or_default();
                    DriverError::Fault {
                        kernel: "copy to host".to_owned(),
                        report: format!("{}: {place}", finding.what),
                    }
                })?;
            }
            Work::Fill { at, byte, len } => {
                self.memory.fill(at, byte, len)?;
                self.monitor.host_writes(at..at + len);
            }
            Work::Launch(first) => {
                let next = self.overlapping(&first, until);
                let outcomes = {
                    let a = self.prepare(&first, self.launches);
                    match &next {
                        Some(second) => {
                            let b = self.prepare(second, self.launches + 1);
                            let (x, y) = run_overlapped(&a, &b, &self.monitor, &self.pool);
                            vec![(x, &first), (y, second)]
                        }
                        None => vec![(run(&a, &self.monitor, &self.pool), &first)],
                    }
                };
                for (Outcome { thread_instructions, fault }, work) in outcomes {
                    self.launches += 1;
                    self.thread_instructions += thread_instructions;
                    tracing::trace!(kernel = %work.kernel.name, label = %work.label, thread_instructions, "launch");
                    if let Some(fault) = fault {
                        let kernel = if work.label.is_empty() {
                            work.kernel.name.clone()
                        } else {
                            format!("{} ({})", work.kernel.name, work.label)
                        };
                        return Err(DriverError::Fault { kernel, report: fault.to_string() });
                    }
                }
            }
        }
        Ok(())
    }

    /// The next launch if it may start before `first` has ended, and chance wants it to.
    fn overlapping(&mut self, first: &LaunchWork, until: u64) -> Option<LaunchWork> {
        let Schedule::Random(seed) = self.schedule else { return None };
        let lets_start = |k: &Kernel| k.code.iter().any(|i| i.op == Op::LaunchDependents);
        let Some(Work::Launch(next)) = self.queue.front() else { return None };
        let chance = (seed ^ self.launches).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1;
        if !M::CHECKED || self.done >= until || !next.dependent || !lets_start(&first.kernel) || !chance {
            return None;
        }
        let Some(Work::Launch(next)) = self.queue.pop_front() else { return None };
        self.done += 1;
        Some(next)
    }

    fn prepare<'a>(&'a self, work: &'a LaunchWork, serial: u64) -> Launch<'a> {
        Launch {
            kernel: &work.kernel,
            memory: &self.memory,
            isa: self.isa,
            grid: work.grid,
            threads: work.threads,
            dynamic_shared: work.dynamic_shared,
            params: work.params.clone(),
            serial,
            sm_count: self.info.sm_count,
            dependent: work.dependent,
            schedule: self.schedule,
            most_instructions: MOST_INSTRUCTIONS,
        }
    }
}

impl<M: Monitor> Driver for Device<M> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        Ok(self.memory.free_bytes())
    }

    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError> {
        self.usable()?;
        let at = self.memory.allocate(name, bytes)?;
        self.monitor.allocated(at..at + bytes);
        Ok(DevicePtr(at))
    }

    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError> {
        let range = self.memory.free(at.0)?;
        self.monitor.freed(range);
        Ok(())
    }

    fn host_buffer(&mut self, bytes: usize) -> Result<Box<dyn HostBuffer>, DriverError> {
        Ok(Box::new(Pinned::new(bytes)?))
    }

    unsafe fn copy_to_device(
        &mut self,
        to: DevicePtr,
        host: &dyn HostBuffer,
        from: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        self.usable()?;
        let bytes = from.checked_add(len).and_then(|end| host.bytes().get(from..end));
        let bytes = bytes.ok_or_else(|| outside("copy to device", from, len, host.bytes().len()))?;
        self.memory.covered("copy to device", to.0, len as u64)?;
        let from = HostRange { at: bytes.as_ptr().cast_mut(), len };
        self.submit(Work::ToDevice { to: to.0, from });
        Ok(())
    }

    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError> {
        self.usable()?;
        let all = host.bytes().len();
        let bytes = to.checked_add(len).and_then(|end| host.bytes_mut().get_mut(to..end));
        let bytes = bytes.ok_or_else(|| outside("copy to host", to, len, all))?;
        self.memory.covered("copy to host", from.0, len as u64)?;
        if M::CHECKED && self.capture.is_none() {
            // Whoever reads before the wait shall see that he does.
            bytes.fill(0xa5);
        }
        let to = HostRange { at: bytes.as_mut_ptr(), len };
        self.submit(Work::ToHost { to, from: from.0 });
        Ok(())
    }

    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError> {
        self.usable()?;
        self.memory.covered("fill", at.0, len)?;
        self.submit(Work::Fill { at: at.0, byte, len });
        Ok(())
    }

    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError> {
        self.usable()?;
        let no_image = |why: String| DriverError::NoImage { module: name.to_owned(), why };
        let Some(text) = image.ptx else {
            let why = "no PTX is there, and the emulator runs nothing else; use a plan that keeps its PTX";
            return Err(no_image(why.to_owned()));
        };
        let module = parse(text).map_err(|e| no_image(e.to_string()))?;
        if !runs(module.target, self.info.arch) {
            let why = format!("its PTX is for {}, the device is {}", module.target, self.info.arch);
            return Err(no_image(why));
        }
        let mut addresses = Vec::new();
        for global in globals(&module) {
            let at = self.allocate(&format!("{name}: {}", global.name), u64::from(global.bytes))?;
            self.memory.fill(at.0, 0, u64::from(global.bytes))?;
            self.memory.write(at.0, &global.init)?;
            self.monitor.host_writes(at.0..at.0 + u64::from(global.bytes));
            addresses.push(at.0);
        }
        let kernels = decode(text, &module, &addresses).map_err(|e| no_image(e.to_string()))?;
        let kernels = kernels.into_iter().map(Arc::new).collect();
        self.modules.push(LoadedModule { name: name.to_owned(), kernels });
        Ok(Module(self.modules.len() as u32 - 1))
    }

    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError> {
        self.usable()?;
        let refused = |why: String| DriverError::Api { call: "function", why };
        let loaded = self.modules.get(module.0 as usize);
        let loaded = loaded.ok_or_else(|| refused(format!("there is no module {}", module.0)))?;
        let kernel = loaded.kernels.iter().find(|k| k.name == entry);
        let kernel =
            kernel.ok_or_else(|| refused(format!("module {} has no kernel `{entry}`", loaded.name)))?;
        let shared = u64::from(kernel.static_shared) + u64::from(shared_bytes);
        if shared > u64::from(self.info.max_shared_bytes) {
            let most = self.info.max_shared_bytes;
            return Err(refused(format!(
                "{entry} wants {shared} bytes of shared memory, a block may have {most}"
            )));
        }
        let info = FunctionInfo {
            registers: 0,
            local_bytes: kernel.local_bytes,
            static_shared_bytes: kernel.static_shared,
            max_threads: kernel.max_threads,
        };
        let dynamic_shared = shared_bytes.max(USUAL_SHARED.saturating_sub(kernel.static_shared));
        self.functions.push(LoadedFunction { kernel: kernel.clone(), dynamic_shared });
        Ok((Function(self.functions.len() as u32 - 1), info))
    }

    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError> {
        self.usable()?;
        let refused =
            |why: String| DriverError::Api { call: "launch", why: format!("{}: {why}", config.label) };
        let function = self.functions.get(config.function.0 as usize);
        let function =
            function.ok_or_else(|| refused(format!("there is no function {}", config.function.0)))?;
        let kernel = &function.kernel;
        let [x, y, z] = config.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(refused(format!("a grid of {x} x {y} x {z} blocks")));
        }
        if config.block == 0 || config.block > kernel.max_threads.min(1024) {
            let most = kernel.max_threads.min(1024);
            return Err(refused(format!("{} threads, {} may have {most}", config.block, kernel.name)));
        }
        if config.shared_bytes > function.dynamic_shared {
            let most = function.dynamic_shared;
            return Err(refused(format!(
                "{} bytes of dynamic shared memory, {} was allowed {most}",
                config.shared_bytes, kernel.name
            )));
        }
        if config.args.len() != kernel.params.len() {
            let (n, m) = (config.args.len(), kernel.params.len());
            return Err(refused(format!("{n} arguments, {} has {m} parameters", kernel.name)));
        }
        let end = kernel.params.last().map_or(0, |(offset, bytes)| offset + bytes);
        let mut params = vec![0; end as usize];
        for (i, (arg, (offset, bytes))) in config.args.iter().zip(&kernel.params).enumerate() {
            let (value, size) = match *arg {
                ArgValue::Ptr(DevicePtr(v)) | ArgValue::U64(v) => (v, 8),
                ArgValue::U32(v) => (u64::from(v), 4),
                ArgValue::F32(v) => (u64::from(v.to_bits()), 4),
            };
            if size != *bytes {
                return Err(refused(format!(
                    "argument {i} has {size} bytes, the parameter of {} has {bytes}",
                    kernel.name
                )));
            }
            let offset = *offset as usize;
            params[offset..offset + size as usize].copy_from_slice(&value.to_le_bytes()[..size as usize]);
        }
        let work = LaunchWork {
            kernel: kernel.clone(),
            label: config.label.to_owned(),
            grid: config.grid,
            threads: config.block,
            dynamic_shared: config.shared_bytes,
            dependent: config.dependent && self.info.arch >= Arch { major: 9, minor: 0 },
            params,
        };
        self.submit(Work::Launch(work));
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), DriverError> {
        self.usable()?;
        if self.capture.is_some() {
            let why = "a capture is under way".to_owned();
            return Err(DriverError::Api { call: "begin capture", why });
        }
        self.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph, DriverError> {
        self.usable()?;
        let Some(work) = self.capture.take() else {
            let why = "no capture is under way".to_owned();
            return Err(DriverError::Api { call: "end capture", why });
        };
        self.graphs.push(work);
        Ok(Graph(self.graphs.len() as u32 - 1))
    }

    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError> {
        self.usable()?;
        let refused = |why: String| DriverError::Api { call: "launch graph", why };
        if self.capture.is_some() {
            return Err(refused("a capture is under way".to_owned()));
        }
        let work = self.graphs.get(graph.0 as usize);
        let work = work.ok_or_else(|| refused(format!("there is no graph {}", graph.0)))?;
        self.queue.extend(work.iter().cloned());
        Ok(())
    }

    fn record(&mut self) -> Result<Event, DriverError> {
        self.usable()?;
        if self.capture.is_some() {
            let why = "events cannot be captured".to_owned();
            return Err(DriverError::Api { call: "record", why });
        }
        self.events.push(self.done + self.queue.len() as u64);
        Ok(Event(self.events.len() as u32 - 1))
    }

    fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        self.usable()?;
        let Some(until) = self.events.get(event.0 as usize).copied() else {
            return Err(DriverError::Api { call: "wait", why: format!("there is no event {}", event.0) });
        };
        while self.done < until {
            let Some(work) = self.queue.pop_front() else { break };
            self.done += 1;
            if let Err(error) = self.execute(work, until) {
                self.queue.clear();
                self.failed = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }
}

fn outside(call: &'static str, from: usize, len: usize, all: usize) -> DriverError {
    DriverError::Api { call, why: format!("bytes {from}.. ({len}) of a host buffer of {all}") }
}

/// `sm_90a` runs on 9.0 only, `sm_80` on 8.0 and later.
fn runs(target: &str, arch: Arch) -> bool {
    let Some(rest) = target.strip_prefix("sm_") else { return false };
    let digits = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let Ok(number) = digits.parse::<u32>() else { return false };
    let own = Arch { major: number / 10, minor: number % 10 };
    if digits.len() == rest.len() { own <= arch } else { own == arch }
}

/// Host memory whose address never changes.
#[derive(Debug)]
pub(crate) struct Pinned {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the value alone.
unsafe impl Send for Pinned {}

impl Pinned {
    fn layout(len: usize) -> Option<std::alloc::Layout> {
        std::alloc::Layout::from_size_align(len.max(1), 4096).ok()
    }

    pub(crate) fn new(len: usize) -> Result<Self, DriverError> {
        let full = || DriverError::Unavailable {
            what: "host memory".to_owned(),
            why: format!("the system gives no {len} bytes"),
        };
        let layout = Self::layout(len).ok_or_else(full)?;
        // SAFETY: the layout's size is not zero.
        let at = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(full)?;
        Ok(Pinned { at, len })
    }
}

impl HostBuffer for Pinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as the value.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated by `new` with the same layout.
            unsafe { std::alloc::dealloc(self.at.as_ptr(), layout) };
        }
    }
}
