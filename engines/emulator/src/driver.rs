//! The emulator as a driver.
//!
//! Work is queued and runs when it is waited for, so that host code that touches the buffers of a copy under way shows.

use lathe_device::{Delegate, Driver, DriverError};

use crate::check::Checker;
use crate::device::Device;
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

impl Delegate for Emulator {
    fn driver(&self) -> &dyn Driver {
        each!(self, device => device)
    }

    fn driver_mut(&mut self) -> &mut dyn Driver {
        each!(mut self, device => device)
    }
}
