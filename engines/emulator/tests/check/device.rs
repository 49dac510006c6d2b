//! A checked device with an input and an output buffer.

use lathe_device::{Arch, ArgValue, DevicePtr, Driver, DriverError, Event, Image, LaunchConfig, Module};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};

/// Kernels with faults and their twins.
pub const KERNELS: &str = include_str!("../ptx/check.ptx");
/// Kernels that depend on each other.
pub const DEPENDENT: &str = include_str!("../ptx/check_dependent.ptx");
/// Words of each buffer.
pub const WORDS: usize = 512;

/// An emulator, its module and its buffers.
pub struct Device {
    pub driver: Emulator,
    module: Module,
    pub input: DevicePtr,
    pub output: DevicePtr,
}

impl Device {
    /// A device whose input holds 0, 1, 2, .. and whose output holds zeros. `seed` shuffles warps and blocks.
    pub fn new(ptx: &str, seed: Option<u64>) -> Self {
        let model = DeviceModel::of(Arch { major: 9, minor: 0 });
        let options =
            EmulatorOptions { check: Some(CheckOptions::default()), seed, ..EmulatorOptions::new(model) };
        let mut driver = Emulator::new(&options).unwrap();
        let module =
            driver.load_module("check", Image { cubin: None, ptx: Some(ptx), allow_jit: false }).unwrap();
        let bytes = 4 * WORDS;
        let input = driver.allocate("input", bytes as u64).unwrap();
        let output = driver.allocate("output", bytes as u64).unwrap();
        let mut device = Device { driver, module, input, output };
        let words: Vec<u32> = (0..WORDS as u32).collect();
        device.write(input, &words);
        device.driver.fill(output, 0, bytes as u64).unwrap();
        device
    }

    pub fn write(&mut self, to: DevicePtr, words: &[u32]) {
        let mut host = self.driver.host_buffer(4 * words.len()).unwrap();
        for (to, word) in host.bytes_mut().chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        // SAFETY: the buffer lives until after the wait.
        unsafe { self.driver.copy_to_device(to, &*host, 0, 4 * words.len()).unwrap() };
        self.wait().unwrap();
    }

    pub fn read(&mut self, from: DevicePtr, n: usize) -> Result<Vec<u32>, DriverError> {
        let mut host = self.driver.host_buffer(4 * n)?;
        // SAFETY: the buffer is not touched before the wait.
        unsafe { self.driver.copy_to_host(&mut *host, 0, from, 4 * n)? };
        self.wait()?;
        Ok(host.bytes().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
    }

    /// Submits a launch.
    pub fn launch(
        &mut self,
        kernel: &str,
        blocks: u32,
        threads: u32,
        pointers: &[DevicePtr],
        dependent: bool,
    ) -> Result<(), DriverError> {
        let (function, _) = self.driver.function(self.module, kernel, 0)?;
        let args: Vec<ArgValue> = pointers.iter().map(|p| ArgValue::Ptr(*p)).collect();
        let config = LaunchConfig {
            function,
            grid: [blocks, 1, 1],
            block: threads,
            shared_bytes: 0,
            dependent,
            args: &args,
            label: "check",
        };
        // SAFETY: the emulator checks what the kernel does.
        unsafe { self.driver.launch(&config) }
    }

    pub fn wait(&mut self) -> Result<(), DriverError> {
        let event: Event = self.driver.record()?;
        self.driver.wait(event)
    }
}

/// Runs one kernel over input and output, answers the output.
pub fn run(kernel: &str, blocks: u32, threads: u32, seed: Option<u64>) -> Result<Vec<u32>, DriverError> {
    let mut device = Device::new(KERNELS, seed);
    let (input, output) = (device.input, device.output);
    device.launch(kernel, blocks, threads, &[input, output], false)?;
    device.wait()?;
    device.read(output, WORDS)
}
