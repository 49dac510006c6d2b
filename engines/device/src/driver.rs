//! What an engine asks of a device. One stream: work runs in the order of submission, only [`Driver::wait`] blocks.

use std::fmt;

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub const fn add(self, bytes: u64) -> Self {
        DevicePtr(self.0 + bytes)
    }
}

/// A compute architecture, e.g. 9.0 of sm_90.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Digits before the last.
    pub major: u32,
    /// Last digit.
    pub minor: u32,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name for people.
    pub name: String,
    /// Its own architecture.
    pub arch: Arch,
    /// Multiprocessors.
    pub sm_count: u32,
    /// Most shared memory of a block, with opt-in.
    pub max_shared_bytes: u32,
    /// All device memory.
    pub total_bytes: u64,
    /// Device memory that was free when the driver was opened.
    pub free_bytes: u64,
    /// Driver version for people, e.g. `CUDA 13.0`; empty for the emulator.
    pub driver: String,
}

/// Code of one module in the forms that a plan holds; a driver takes the one it can run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Image<'a> {
    /// Machine code for one architecture.
    pub cubin: Option<&'a [u8]>,
    /// PTX, without a terminating NUL.
    pub ptx: Option<&'a str>,
    /// True if the driver may compile the PTX (`--allow-ptx-jit`); the emulator runs PTX in any case.
    pub allow_jit: bool,
}

/// A loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module(pub u32);

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u32);

/// A captured sequence of launches and copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub u32);

/// A point in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(pub u32);

/// What a kernel needs of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Registers per thread; 0 where the driver cannot tell.
    pub registers: u32,
    /// Local memory per thread in bytes.
    pub local_bytes: u32,
    /// Static shared memory per block in bytes.
    pub static_shared_bytes: u32,
    /// Most threads of a block.
    pub max_threads: u32,
}

/// The value of a kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ArgValue {
    /// Address.
    Ptr(DevicePtr),
    /// 32 bits.
    U32(u32),
    /// 64 bits.
    U64(u64),
    /// Single precision.
    F32(f32),
}

/// One launch with all numbers known.
#[derive(Clone, Copy, Debug)]
pub struct LaunchConfig<'a> {
    /// The kernel.
    pub function: Function,
    /// Blocks, none zero.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// See `DeviceLaunch::dependent`.
    pub dependent: bool,
    /// Arguments.
    pub args: &'a [ArgValue],
    /// What it computes, for reports of faults.
    pub label: &'a str,
}

/// Host memory that the device copies from and to. The owner must not touch bytes of a copy that is under way.
pub trait HostBuffer: Send {
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// Why a driver refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// There is no such device, or no driver at all.
    #[error("no {what}: {why}")]
    Unavailable {
        /// Device or library.
        what: String,
        /// Reason.
        why: String,
    },
    /// The device has not enough memory.
    #[error("{what}: {bytes} bytes do not fit, {free} are free on the device")]
    OutOfMemory {
        /// Purpose.
        what: String,
        /// Wanted.
        bytes: u64,
        /// Left.
        free: u64,
    },
    /// None of a module's forms runs on the device.
    #[error("module {module}: {why}")]
    NoImage {
        /// Module.
        module: String,
        /// What was there and what is wanted.
        why: String,
    },
    /// A kernel did what it must not. The driver is unusable afterwards.
    #[error("{kernel}: {report}")]
    Fault {
        /// Kernel and label of the launch.
        kernel: String,
        /// What, where: source line, block, thread, address, allocation as far as known.
        report: String,
    },
    /// A call failed.
    #[error("{call} failed: {why}")]
    Api {
        /// The call.
        call: &'static str,
        /// The driver's words.
        why: String,
    },
}

/// A device. Calls come from one thread.
pub trait Driver: Send {
    /// What it is.
    fn info(&self) -> &DeviceInfo;

    /// Device memory that is free now.
    ///
    /// # Errors
    /// The device failed.
    fn free_bytes(&self) -> Result<u64, DriverError>;

    /// Takes device memory, aligned to 256 bytes, its contents undefined. `name` stands in reports.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError>;

    /// Gives memory back; work that uses it must be over.
    ///
    /// # Errors
    /// An address that `allocate` did not give.
    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError>;

    /// Takes host memory that copies may use (pinned), zeroed.
    ///
    /// # Errors
    /// The system gave none.
    fn host_buffer(&mut self, bytes: usize) -> Result<Box<dyn HostBuffer>, DriverError>;

    /// Copies `len` bytes at `from` of `host` to the device. Captured into a graph while one is being captured.
    ///
    /// # Safety
    /// `host` lives and its range is not written until a later `wait` has returned (or the graph is dropped).
    ///
    /// # Errors
    /// A range outside of the buffer or of an allocation.
    unsafe fn copy_to_device(
        &mut self,
        to: DevicePtr,
        host: &dyn HostBuffer,
        from: usize,
        len: usize,
    ) -> Result<(), DriverError>;

    /// Copies `len` bytes to `to` of `host`.
    ///
    /// # Safety
    /// `host` lives and its range is neither read nor written until a later `wait` has returned.
    ///
    /// # Errors
    /// As `copy_to_device`.
    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError>;

    /// Sets `len` bytes.
    ///
    /// # Errors
    /// A range outside of an allocation.
    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError>;

    /// Loads a module; `name` stands in reports.
    ///
    /// # Errors
    /// `NoImage`, or code that does not load.
    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError>;

    /// Looks a kernel up and allows it `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// No such kernel; more shared memory than a block may have.
    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError>;

    /// Submits a launch, or records it while a graph is being captured.
    ///
    /// # Safety
    /// The kernel, its arguments and the memory they name belong together: device code is trusted.
    ///
    /// # Errors
    /// A configuration that the device refuses. Faults of the kernel itself surface at `wait`.
    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError>;

    /// Starts recording instead of running.
    ///
    /// # Errors
    /// A capture is under way.
    fn begin_capture(&mut self) -> Result<(), DriverError>;

    /// Ends recording and uploads the graph.
    ///
    /// # Errors
    /// No capture is under way, or it was spoiled.
    fn end_capture(&mut self) -> Result<Graph, DriverError>;

    /// Submits a graph.
    ///
    /// # Safety
    /// As for the launches and copies in it.
    ///
    /// # Errors
    /// The device failed.
    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError>;

    /// Marks the stream's present end.
    ///
    /// # Errors
    /// The device failed.
    fn record(&mut self) -> Result<Event, DriverError>;

    /// Blocks until everything before the event is done. An event is waited for once.
    ///
    /// # Errors
    /// `Fault` and failures of anything before the event.
    fn wait(&mut self, event: Event) -> Result<(), DriverError>;
}
