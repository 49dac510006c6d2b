//! The emulator as a driver.
//!
//! Work is queued and runs when it is waited for, so that host code that touches the buffers of a copy under way shows.

use lathe_device::{
    DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph, HostBuffer, Image,
    LaunchConfig, Module,
};

use crate::check::Checker;
use crate::device::{Device, Pinned};
use crate::exec::HostIsa;
use crate::monitor::Unchecked;
use crate::options::EmulatorOptions;

enum Inner {
    Unchecked(Device<Unchecked>),
    Checked(Device<Checker>),
}

/// A device that runs PTX on the host.
pub struct Emulator(Inner);

macro_rules! each {
    ($self:ident, $device:ident => $e:expr) => {
        match &$self.0 {
            Inner::Unchecked($device) => $e,
            Inner::Checked($device) => $e,
        }
    };
    (mut $self:ident, $device:ident => $e:expr) => {
        match &mut $self.0 {
            Inner::Unchecked($device) => $e,
            Inner::Checked($device) => $e,
        }
    };
}

impl Emulator {
    /// A device with nothing on it.
    ///
    /// # Errors
    /// The host has neither address space nor threads for it.
    pub fn new(options: &EmulatorOptions) -> Result<Self, DriverError> {
        Ok(Emulator(match options.check {
            None => Inner::Unchecked(Device::new(options, Unchecked)?),
            Some(check) => Inner::Checked(Device::new(options, Checker::new(check))?),
        }))
    }

    /// Instructions that were executed, times the threads that executed them.
    pub fn thread_instructions(&self) -> u64 {
        each!(self, device => device.thread_instructions())
    }

    /// Runs lane functions of another instruction set of the host from now on; results stay the same.
    pub fn set_host_isa(&mut self, isa: HostIsa) {
        each!(mut self, device => device.set_isa(isa));
    }
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        each!(self, device => device.info())
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        Ok(each!(self, device => device.free_bytes()))
    }

    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError> {
        each!(mut self, device => device.allocate(name, bytes))
    }

    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError> {
        each!(mut self, device => device.free(at))
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
        each!(mut self, device => device.copy_to_device(to, host, from, len))
    }

    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError> {
        each!(mut self, device => device.copy_to_host(host, to, from, len))
    }

    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError> {
        each!(mut self, device => device.fill(at, byte, len))
    }

    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError> {
        each!(mut self, device => device.load_module(name, image))
    }

    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError> {
        each!(mut self, device => device.function(module, entry, shared_bytes))
    }

    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError> {
        each!(mut self, device => device.launch(config))
    }

    fn begin_capture(&mut self) -> Result<(), DriverError> {
        each!(mut self, device => device.begin_capture())
    }

    fn end_capture(&mut self) -> Result<Graph, DriverError> {
        each!(mut self, device => device.end_capture())
    }

    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError> {
        each!(mut self, device => device.launch_graph(graph))
    }

    fn record(&mut self) -> Result<Event, DriverError> {
        each!(mut self, device => device.record())
    }

    fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        each!(mut self, device => device.wait(event))
    }
}
