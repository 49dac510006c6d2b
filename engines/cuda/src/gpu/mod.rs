//! A real GPU behind [`Driver`]: the CUDA driver API, loaded dynamically, on one stream of the primary context.
//!
//! Every call's status is looked at. Handles are given back when the driver is dropped, after the stream has come to
//! rest. The library is absent on most machines: everything begins with [`GpuDriver::open`], which says so.

mod api;
mod context;

use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use cudarc::driver::sys;
use lathe_device::{
    Arch, ArgValue, DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph,
    HostBuffer, Image, LaunchConfig, Module,
};

use api::{check, is_foreign_image, text};
use context::{Context, Pinned, count, describe};

/// Arguments that a launch may have.
const MAX_ARGS: usize = 64;
/// Events made when the driver is opened; more are made when more are awaited at a time.
const EVENTS: usize = 16;
/// Bytes for what the driver's compiler says of PTX.
const LOG_BYTES: usize = 8 << 10;
/// Architecture from which on a launch may overlap the one before.
const DEPENDENT_FROM: Arch = Arch { major: 9, minor: 0 };

/// A kernel with the sizes of its parameters, against which arguments are held.
struct Kernel {
    handle: sys::CUfunction,
    name: String,
    params: Vec<usize>,
}

/// A CUDA device.
pub struct GpuDriver {
    context: Arc<Context>,
    info: DeviceInfo,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    kernels: Vec<Kernel>,
    /// Captured and instantiated.
    graphs: Vec<sys::CUgraphExec>,
    events: Vec<sys::CUevent>,
    /// Indices of events that nobody waits for.
    idle: Vec<u32>,
    /// Lengths by address.
    allocations: BTreeMap<u64, u64>,
}

// SAFETY: handles are of the context, which each method makes current on the thread that it is called on.
unsafe impl Send for GpuDriver {}

fn refused(call: &'static str, why: impl Into<String>) -> DriverError {
    DriverError::Api { call, why: why.into() }
}

impl GpuDriver {
    /// What the devices of this machine are. Their memory counts as free: only an open device knows.
    ///
    /// # Errors
    /// `Unavailable` without a driver.
    pub fn devices() -> Result<Vec<DeviceInfo>, DriverError> {
        (0..count()?).map(|ordinal| Ok(describe(ordinal)?.1)).collect()
    }

    /// Opens the device of an ordinal.
    ///
    /// # Errors
    /// `Unavailable` without a driver or without this device.
    pub fn open(ordinal: u32) -> Result<Self, DriverError> {
        let (device, mut info) = describe(ordinal)?;
        let context = Arc::new(Context::retain(device)?);
        (info.free_bytes, info.total_bytes) = context.memory()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the pointer is to a live handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        let mut driver = GpuDriver {
            context,
            info,
            stream,
            modules: Vec::new(),
            kernels: Vec::new(),
            graphs: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            idle: Vec::with_capacity(EVENTS),
            allocations: BTreeMap::new(),
        };
        for _ in 0..EVENTS {
            let event = driver.new_event()?;
            driver.idle.push(event);
        }
        Ok(driver)
    }

    fn new_event(&mut self) -> Result<u32, DriverError> {
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; the pointer is to a live handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        self.events.push(event);
        Ok(self.events.len() as u32 - 1)
    }

    /// Refuses a range that does not lie within one allocation.
    fn within(&self, call: &'static str, at: DevicePtr, len: u64) -> Result<(), DriverError> {
        let inside = self.allocations.range(..=at.0).next_back().is_some_and(|(start, bytes)| {
            at.0.checked_add(len).is_some_and(|end| end <= start.saturating_add(*bytes))
        });
        if inside {
            return Ok(());
        }
        Err(refused(call, format!("{len} bytes at {:#x} are not within an allocation", at.0)))
    }

    fn kernel_info(&self, function: sys::CUfunction) -> Result<FunctionInfo, DriverError> {
        use sys::CUfunction_attribute as Attribute;
        let get = |which| -> Result<u32, DriverError> {
            let mut value = 0;
            // SAFETY: the function is of a loaded module; the pointer is to a live integer.
            check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&raw mut value, which, function) })?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        Ok(FunctionInfo {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            static_shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            max_threads: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    /// Loads PTX through the driver's compiler.
    fn compile(&self, ptx: &str) -> Result<sys::CUmodule, (sys::CUresult, String)> {
        // The driver reads up to a NUL.
        let image: Vec<u8> = ptx.bytes().chain([0]).collect();
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The second value is the number itself in a pointer's place, as the API has it.
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image ends in NUL; two options with two values; the log outlives the call.
        let status = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                image.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if status == sys::CUresult::CUDA_SUCCESS {
            return Ok(module);
        }
        let said = log.split(|b| *b == 0).next().unwrap_or_default();
        Err((status, String::from_utf8_lossy(said).trim().to_owned()))
    }
}

impl Driver for GpuDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        Ok(self.context.memory()?.0)
    }

    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError> {
        self.context.enter()?;
        let size = usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
        let mut at = 0;
        // SAFETY: the context is current; the pointer is to a live integer. Addresses are aligned to 256 bytes or more.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut at, size) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(DriverError::OutOfMemory { what: name.into(), bytes, free: self.free_bytes()? });
        }
        check("cuMemAlloc", status)?;
        self.allocations.insert(at, size as u64);
        Ok(DevicePtr(at))
    }

    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError> {
        self.context.enter()?;
        if self.allocations.remove(&at.0).is_none() {
            return Err(refused("cuMemFree", format!("{:#x} was not allocated", at.0)));
        }
        // SAFETY: the address came from `cuMemAlloc` and was not freed yet; work that uses it is over, says the caller.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(at.0) })
    }

    fn host_buffer(&mut self, bytes: usize) -> Result<Box<dyn HostBuffer>, DriverError> {
        Ok(Box::new(Pinned::new(&self.context, bytes)?))
    }

    unsafe fn copy_to_device(
        &mut self,
        to: DevicePtr,
        host: &dyn HostBuffer,
        from: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyHtoDAsync";
        self.context.enter()?;
        let source = from.checked_add(len).and_then(|end| host.bytes().get(from..end));
        let source = source.ok_or_else(|| refused(CALL, "the range is not within the host buffer"))?;
        self.within(CALL, to, len as u64)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked; that the source stays as it is until a wait is the caller's promise.
        check(CALL, unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, source.as_ptr().cast(), len, self.stream) })
    }

    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError> {
        const CALL: &str = "cuMemcpyDtoHAsync";
        self.context.enter()?;
        let target = to.checked_add(len).and_then(|end| host.bytes_mut().get_mut(to..end));
        let target = target.ok_or_else(|| refused(CALL, "the range is not within the host buffer"))?;
        self.within(CALL, from, len as u64)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked; that nobody touches the target until a wait is the caller's promise.
        check(CALL, unsafe {
            sys::cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), from.0, len, self.stream)
        })
    }

    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError> {
        const CALL: &str = "cuMemsetD8Async";
        self.context.enter()?;
        self.within(CALL, at, len)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the range lies within an allocation.
        check(CALL, unsafe { sys::cuMemsetD8Async(at.0, byte, len as usize, self.stream) })
    }

    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError> {
        self.context.enter()?;
        let no_image = |why: String| DriverError::NoImage { module: name.into(), why };
        let module = match image {
            Image { cubin: Some(cubin), .. } => {
                let mut module = std::ptr::null_mut();
                // SAFETY: machine code in a plan is trusted like a binary: its own header says how long it is.
                let status = unsafe {
                    sys::cuModuleLoadDataEx(
                        &raw mut module,
                        cubin.as_ptr().cast(),
                        0,
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                    )
                };
                if is_foreign_image(status) {
                    let why = format!("its machine code is not for {}: {}", self.info.arch, text(status));
                    return Err(no_image(why));
                }
                check("cuModuleLoadDataEx", status)?;
                module
            }
            Image { ptx: Some(ptx), allow_jit: true, .. } => self.compile(ptx).map_err(|(status, log)| {
                no_image(format!("its PTX does not compile for {}: {} {log}", self.info.arch, text(status)))
            })?,
            Image { ptx: Some(_), .. } => {
                return Err(no_image("it holds PTX alone, and compiling it at load was not allowed".into()));
            }
            Image { ptx: None, .. } => return Err(no_image("it holds no code".into())),
        };
        self.modules.push(module);
        Ok(Module(self.modules.len() as u32 - 1))
    }

    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError> {
        const CALL: &str = "cuModuleGetFunction";
        self.context.enter()?;
        let module = self.modules.get(module.0 as usize).copied();
        let module = module.ok_or_else(|| refused(CALL, "the module was not loaded"))?;
        let name = CString::new(entry).map_err(|_| refused(CALL, "the name holds a NUL"))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded; the name ends in NUL; the pointer is to a live handle.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut handle, module, name.as_ptr()) };
        check(CALL, status).map_err(|e| refused(CALL, format!("{entry}: {e}")))?;
        // Loaded now: code that is loaded lazily would be loaded while a graph is captured, which is not allowed.
        // SAFETY: the function is of a loaded module.
        check("cuFuncLoad", unsafe { sys::cuFuncLoad(handle) })?;
        let info = self.kernel_info(handle)?;
        let room = self.info.max_shared_bytes.saturating_sub(info.static_shared_bytes);
        if shared_bytes > room {
            let why = format!("{entry}: {shared_bytes} bytes of dynamic shared memory, {room} are there");
            return Err(refused("cuFuncSetAttribute", why));
        }
        let dynamic = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is of a loaded module.
        check("cuFuncSetAttribute", unsafe {
            sys::cuFuncSetAttribute(handle, dynamic, shared_bytes as c_int)
        })?;
        let mut params = Vec::new();
        loop {
            let (mut offset, mut size) = (0usize, 0usize);
            // SAFETY: the function is of a loaded module; both pointers are to live integers.
            let status =
                unsafe { sys::cuFuncGetParamInfo(handle, params.len(), &raw mut offset, &raw mut size) };
            match status {
                sys::CUresult::CUDA_SUCCESS if params.len() < MAX_ARGS => params.push(size),
                // Past the last one.
                sys::CUresult::CUDA_ERROR_INVALID_VALUE => break,
                sys::CUresult::CUDA_SUCCESS => {
                    return Err(refused(CALL, format!("{entry} has more than {MAX_ARGS} parameters")));
                }
                status => check("cuFuncGetParamInfo", status)?,
            }
        }
        self.kernels.push(Kernel { handle, name: entry.into(), params });
        Ok((Function(self.kernels.len() as u32 - 1), info))
    }

    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError> {
        const CALL: &str = "cuLaunchKernelEx";
        self.context.enter()?;
        let kernel = self.kernels.get(config.function.0 as usize);
        let kernel = kernel.ok_or_else(|| refused(CALL, "the function was not looked up"))?;
        let mut values = [0u64; MAX_ARGS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        let fits = config.args.len() == kernel.params.len()
            && config.args.iter().zip(&kernel.params).all(|(arg, size)| size_of_arg(arg) == *size);
        if !fits {
            return Err(refused(
                CALL,
                format!("{} ({}): the arguments are not those of the kernel", kernel.name, config.label),
            ));
        }
        for ((value, pointer), arg) in values.iter_mut().zip(&mut pointers).zip(config.args) {
            // The device reads as many of the lower bytes as the parameter has.
            *value = match *arg {
                ArgValue::Ptr(at) => at.0,
                ArgValue::U32(v) => u64::from(v),
                ArgValue::U64(v) => v,
                ArgValue::F32(v) => u64::from(v.to_bits()),
            };
            *pointer = std::ptr::from_mut(value).cast();
        }
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let dependent = config.dependent && self.info.arch >= DEPENDENT_FROM;
        let [grid_x, grid_y, grid_z] = config.grid;
        let launch = sys::CUlaunchConfig {
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: config.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: config.shared_bytes,
            hStream: self.stream,
            attrs: &raw mut overlap,
            numAttrs: u32::from(dependent),
        };
        // SAFETY: the function is of a loaded module, its parameters have the sizes of the arguments, and configuration,
        // attribute and arguments outlive the call, which copies them. What the kernel does is the caller's promise.
        let status = unsafe {
            sys::cuLaunchKernelEx(
                &raw const launch,
                kernel.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(CALL, status).map_err(|e| match e {
            DriverError::Api { call, why } => {
                DriverError::Api { call, why: format!("{} ({}): {why}", kernel.name, config.label) }
            }
            other => other,
        })
    }

    fn begin_capture(&mut self) -> Result<(), DriverError> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is the driver's own.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })
    }

    fn end_capture(&mut self) -> Result<Graph, DriverError> {
        self.context.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) })?;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph was just captured; the instance is independent of it, so it may go.
        let (made, gone) = unsafe {
            (
                check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)),
                check("cuGraphDestroy", sys::cuGraphDestroy(graph)),
            )
        };
        made.and(gone)?;
        self.graphs.push(exec);
        // SAFETY: the instance was just made.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(exec, self.stream) })?;
        Ok(Graph(self.graphs.len() as u32 - 1))
    }

    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError> {
        const CALL: &str = "cuGraphLaunch";
        self.context.enter()?;
        let exec = self.graphs.get(graph.0 as usize).copied();
        let exec = exec.ok_or_else(|| refused(CALL, "the graph was not captured"))?;
        // SAFETY: the instance lives as long as the driver; what its kernels do is the caller's promise.
        check(CALL, unsafe { sys::cuGraphLaunch(exec, self.stream) })
    }

    fn record(&mut self) -> Result<Event, DriverError> {
        self.context.enter()?;
        let index = match self.idle.pop() {
            Some(index) => index,
            None => self.new_event()?,
        };
        let event = self.events[index as usize];
        // SAFETY: both handles are the driver's own.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event, self.stream) })?;
        Ok(Event(index))
    }

    fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        const CALL: &str = "cuEventSynchronize";
        self.context.enter()?;
        let handle = self.events.get(event.0 as usize).copied();
        let handle = handle.ok_or_else(|| refused(CALL, "the event was not recorded"))?;
        // SAFETY: the handle is the driver's own.
        let status = unsafe { sys::cuEventSynchronize(handle) };
        self.idle.push(event.0);
        check(CALL, status)
    }
}

/// Bytes that an argument takes.
fn size_of_arg(arg: &ArgValue) -> usize {
    match arg {
        ArgValue::Ptr(_) | ArgValue::U64(_) => 8,
        ArgValue::U32(_) | ArgValue::F32(_) => 4,
    }
}

impl Drop for GpuDriver {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // What fails while everything goes away has nobody to tell.
        // SAFETY: all handles are the driver's own and given back once, after the stream has come to rest.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.stream);
            for exec in &self.graphs {
                let _ = sys::cuGraphExecDestroy(*exec);
            }
            for event in &self.events {
                let _ = sys::cuEventDestroy_v2(*event);
            }
            for module in &self.modules {
                let _ = sys::cuModuleUnload(*module);
            }
            for at in self.allocations.keys() {
                let _ = sys::cuMemFree_v2(*at);
            }
            let _ = sys::cuStreamDestroy_v2(self.stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine with a driver, what it says of its devices must be sound; on one without, it says what is missing.
    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        // SAFETY: as in `api::open`.
        let present = unsafe { sys::is_culib_present() };
        match GpuDriver::devices() {
            Ok(devices) => {
                assert!(present);
                assert!(devices.iter().all(|d| d.sm_count > 0 && d.arch.major >= 5 && !d.driver.is_empty()));
            }
            Err(DriverError::Unavailable { what, why }) => {
                assert!(what.starts_with("CUDA d"), "{what}");
                assert!(present || why.contains("libcuda.so is not on this machine"), "{why}");
            }
            Err(other) => panic!("{other}"),
        }
        let error = GpuDriver::open(4096).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("no CUDA d"), "{error}");
    }

    #[test]
    fn arguments_have_the_size_of_their_parameters() {
        let sizes = [ArgValue::Ptr(DevicePtr(0)), ArgValue::U64(0), ArgValue::U32(0), ArgValue::F32(0.0)]
            .map(|a| size_of_arg(&a));
        assert_eq!(sizes, [8, 8, 4, 4]);
    }
}
