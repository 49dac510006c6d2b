//! Drivers that leave everything to another one.

use crate::driver::{
    DeviceInfo, DevicePtr, Driver, DriverError, Event, Function, FunctionInfo, Graph, HostBuffer, Image,
    LaunchConfig, Module,
};

/// A driver before another one, by which it is a [`Driver`] itself.
pub trait Delegate: Send {
    /// The other one.
    fn driver(&self) -> &dyn Driver;

    /// The other one.
    fn driver_mut(&mut self) -> &mut dyn Driver;

    /// Makes a call of those that steps consist of: all that take no memory and load no code.
    fn step<T>(&mut self, call: impl FnOnce(&mut dyn Driver) -> T) -> T {
        call(self.driver_mut())
    }
}

impl<D: Delegate> Driver for D {
    fn info(&self) -> &DeviceInfo {
        self.driver().info()
    }

    fn free_bytes(&self) -> Result<u64, DriverError> {
        self.driver().free_bytes()
    }

    fn allocate(&mut self, name: &str, bytes: u64) -> Result<DevicePtr, DriverError> {
        self.driver_mut().allocate(name, bytes)
    }

    fn free(&mut self, at: DevicePtr) -> Result<(), DriverError> {
        self.driver_mut().free(at)
    }

    fn host_buffer(&mut self, bytes: usize) -> Result<Box<dyn HostBuffer>, DriverError> {
        self.driver_mut().host_buffer(bytes)
    }

    unsafe fn copy_to_device(
        &mut self,
        to: DevicePtr,
        host: &dyn HostBuffer,
        from: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promises are passed on.
        self.step(|driver| unsafe { driver.copy_to_device(to, host, from, len) })
    }

    unsafe fn copy_to_host(
        &mut self,
        host: &mut dyn HostBuffer,
        to: usize,
        from: DevicePtr,
        len: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: as above.
        self.step(|driver| unsafe { driver.copy_to_host(host, to, from, len) })
    }

    fn fill(&mut self, at: DevicePtr, byte: u8, len: u64) -> Result<(), DriverError> {
        self.step(|driver| driver.fill(at, byte, len))
    }

    fn load_module(&mut self, name: &str, image: Image<'_>) -> Result<Module, DriverError> {
        self.driver_mut().load_module(name, image)
    }

    fn function(
        &mut self,
        module: Module,
        entry: &str,
        shared_bytes: u32,
    ) -> Result<(Function, FunctionInfo), DriverError> {
        self.driver_mut().function(module, entry, shared_bytes)
    }

    unsafe fn launch(&mut self, config: &LaunchConfig<'_>) -> Result<(), DriverError> {
        // SAFETY: as above.
        self.step(|driver| unsafe { driver.launch(config) })
    }

    fn begin_capture(&mut self) -> Result<(), DriverError> {
        self.step(|driver| driver.begin_capture())
    }

    fn end_capture(&mut self) -> Result<Graph, DriverError> {
        self.step(|driver| driver.end_capture())
    }

    unsafe fn launch_graph(&mut self, graph: Graph) -> Result<(), DriverError> {
        // SAFETY: as above.
        self.step(|driver| unsafe { driver.launch_graph(graph) })
    }

    fn record(&mut self) -> Result<Event, DriverError> {
        self.step(|driver| driver.record())
    }

    fn wait(&mut self, event: Event) -> Result<(), DriverError> {
        self.step(|driver| driver.wait(event))
    }
}
