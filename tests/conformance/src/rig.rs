//! Runs what a kernel family plans, on any driver: compiles, allocates workspaces, evaluates conditions, extents and
//! arguments, launches and waits.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use lathe_cuda::GpuDriver;
use lathe_device::{
    Arch, Arg, ArgValue, DeviceInfo, DeviceLaunch, DevicePtr, Driver, DriverError, Function, FunctionInfo,
    Image, LaunchConfig, Module, Sequence, StepTable, Symbols,
};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};
use lathe_kernels::cuda::{Launches, Source, Stage};
use lathe_numerics::DType;
use lathe_nvrtc::Compiler;

use crate::{bytes, code};

/// Where the operands of a node lie.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    /// As the launch's documentation lists them.
    pub inputs: Vec<DevicePtr>,
    /// The node's own results; the rig appends the workspaces.
    pub outputs: Vec<DevicePtr>,
    /// Tables that the kernels ask for.
    pub tables: Vec<(StepTable, DevicePtr)>,
}

/// A driver and what was loaded into it.
pub struct Rig {
    driver: Box<dyn Driver>,
    arch: String,
    compiler: Compiler,
    modules: BTreeMap<Source, Module>,
    functions: BTreeMap<(u32, String), (u32, Function, FunctionInfo)>,
    launched: Vec<String>,
    /// Memory that nobody wrote is filled with ones: NaN as a float, -1 as an integer. Not for drivers that notice reads
    /// of it by themselves.
    poison: bool,
}

impl Rig {
    /// A rig over a driver; kernels are compiled for `arch` (`sm_80`) through the user's cache.
    pub fn new(driver: Box<dyn Driver>, arch: &str) -> Self {
        Rig {
            driver,
            arch: arch.to_owned(),
            compiler: code::compiler(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            launched: Vec::new(),
            poison: true,
        }
    }

    /// A rig over an emulated sm_90 device. Checked, it runs blocks, warps and dependent launches in an order of chance
    /// (always the same one) and fails on races, missing waits and use of undefined data; an order of magnitude slower.
    ///
    /// # Errors
    /// The emulator's.
    pub fn emulator(check: bool) -> Result<Self> {
        let seed = check.then_some(1);
        Self::emulated(Arch { major: 9, minor: 0 }, check.then(CheckOptions::default), seed)
    }

    /// A rig over an emulated device of any architecture, in an order of chance if there is a seed.
    ///
    /// # Errors
    /// The emulator's; an architecture without kernels.
    pub fn emulated(arch: Arch, check: Option<CheckOptions>, seed: Option<u64>) -> Result<Self> {
        let options = EmulatorOptions { check, seed, ..EmulatorOptions::new(DeviceModel::of(arch)) };
        let rig = Rig::new(Box::new(Emulator::new(&options)?), target(arch)?);
        Ok(Rig { poison: check.is_none(), ..rig })
    }

    /// A rig over the first GPU; `None`, with a line on standard error, where there is none.
    ///
    /// # Errors
    /// No GPU although `REQUIRE_GPU=1` asks for one; a GPU of an architecture without kernels.
    pub fn gpu() -> Result<Option<Self>> {
        let driver = match GpuDriver::open(0) {
            Ok(driver) => driver,
            Err(DriverError::Unavailable { what, why }) => {
                ensure!(
                    std::env::var("REQUIRE_GPU").as_deref() != Ok("1"),
                    "REQUIRE_GPU=1: no {what}: {why}"
                );
                eprintln!("skipped: no device ({what}: {why})");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let arch = target(driver.info().arch)?;
        Ok(Some(Rig::new(Box::new(driver), arch)))
    }

    /// What tests of kernels run on: the first GPU where `LATHE_RIG=gpu` says so, else the emulator, as [`Rig::emulator`].
    ///
    /// # Errors
    /// As the two; no GPU where one is asked for.
    pub fn chosen(check: bool) -> Result<Self> {
        match std::env::var("LATHE_RIG").as_deref() {
            Ok("gpu") => Self::gpu()?.context("LATHE_RIG=gpu: there is no GPU"),
            Ok(other) => bail!("LATHE_RIG={other}: it is `gpu` or not set"),
            Err(_) => Self::emulator(check),
        }
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    /// The driver, for what the rig does not do.
    pub fn driver(&mut self) -> &mut dyn Driver {
        &mut *self.driver
    }

    /// Device memory that holds `bytes`.
    ///
    /// # Errors
    /// The driver's.
    pub fn buffer(&mut self, name: &str, bytes: &[u8]) -> Result<DevicePtr> {
        let at = self.driver.allocate(name, bytes.len().max(1) as u64)?;
        self.write(at, bytes)?;
        Ok(at)
    }

    /// Device memory whose contents are undefined.
    ///
    /// # Errors
    /// The driver's.
    pub fn empty(&mut self, name: &str, len: usize) -> Result<DevicePtr> {
        let at = self.driver.allocate(name, len.max(1) as u64)?;
        if self.poison {
            self.driver.fill(at, 0xff, len as u64)?;
        }
        Ok(at)
    }

    /// Gives memory back.
    ///
    /// # Errors
    /// The driver's.
    pub fn free(&mut self, at: DevicePtr) -> Result<()> {
        Ok(self.driver.free(at)?)
    }

    /// Writes `bytes` to device memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn write(&mut self, at: DevicePtr, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut host = self.driver.host_buffer(bytes.len())?;
        host.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the buffer lives and stays as it is until `wait` below has returned.
        unsafe { self.driver.copy_to_device(at, &*host, 0, bytes.len()) }?;
        self.wait()
    }

    /// Bytes of device memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn read(&mut self, at: DevicePtr, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut host = self.driver.host_buffer(len)?;
        // SAFETY: the buffer lives and is not touched until `wait` below has returned.
        unsafe { self.driver.copy_to_host(&mut *host, 0, at, len) }?;
        self.wait()?;
        Ok(host.bytes()[..len].to_vec())
    }

    /// Waits for everything that was submitted.
    ///
    /// # Errors
    /// Faults of what was submitted.
    pub fn wait(&mut self) -> Result<()> {
        let event = self.driver.record()?;
        Ok(self.driver.wait(event)?)
    }

    /// `buffer` of values rounded to a float dtype.
    ///
    /// # Errors
    /// The driver's.
    pub fn floats(&mut self, name: &str, dtype: DType, values: &[f32]) -> Result<DevicePtr> {
        self.buffer(name, &bytes::of(dtype, values))
    }

    /// `buffer` of `f32`.
    ///
    /// # Errors
    /// The driver's.
    pub fn f32s(&mut self, name: &str, values: &[f32]) -> Result<DevicePtr> {
        self.buffer(name, &bytes::of_f32(values))
    }

    /// `buffer` of `u16`.
    ///
    /// # Errors
    /// The driver's.
    pub fn u16s(&mut self, name: &str, values: &[u16]) -> Result<DevicePtr> {
        self.buffer(name, &bytes::of_u16(values))
    }

    /// `buffer` of `i32`.
    ///
    /// # Errors
    /// The driver's.
    pub fn i32s(&mut self, name: &str, values: &[i32]) -> Result<DevicePtr> {
        self.buffer(name, &bytes::of_i32(values))
    }

    /// `buffer` of [`StepTable::Sequences`].
    ///
    /// # Errors
    /// The driver's.
    pub fn sequences(&mut self, name: &str, values: &[Sequence]) -> Result<DevicePtr> {
        self.buffer(name, &bytes::of_sequences(values))
    }

    /// Reads `n` values of a float dtype.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_floats(&mut self, at: DevicePtr, dtype: DType, n: usize) -> Result<Vec<f32>> {
        Ok(bytes::to(dtype, &self.read(at, n * dtype.size())?))
    }

    /// Reads `n` `f32`.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_f32(&mut self, at: DevicePtr, n: usize) -> Result<Vec<f32>> {
        Ok(bytes::to_f32(&self.read(at, n * 4)?))
    }

    /// Reads `n` `u16`.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_u16(&mut self, at: DevicePtr, n: usize) -> Result<Vec<u16>> {
        Ok(bytes::to_u16(&self.read(at, n * 2)?))
    }

    /// Reads `n` `i32`.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_i32(&mut self, at: DevicePtr, n: usize) -> Result<Vec<i32>> {
        Ok(bytes::to_i32(&self.read(at, n * 4)?))
    }

    /// Runs a node's launches for a step and waits for them. Workspaces are new, of exactly the step's size, and
    /// undefined.
    ///
    /// # Errors
    /// Sources that do not compile, operands that are not there, what the driver refuses, and faults, with its report.
    pub fn run(&mut self, launches: &Launches, symbols: Symbols, operands: &Operands) -> Result<()> {
        let mut outputs = operands.outputs.clone();
        for (i, workspace) in launches.workspaces.iter().enumerate() {
            let floats = u64::from(symbols.get(workspace.symbol)) * workspace.floats;
            let len = usize::try_from(floats * 4).context("workspace")?;
            outputs.push(self.empty(&format!("workspace {i}"), len)?);
        }
        let workspaces = outputs[operands.outputs.len()..].to_vec();
        self.submit(launches, symbols, &Operands { outputs, ..operands.clone() })?;
        self.wait()?;
        workspaces.into_iter().try_for_each(|at| self.free(at))
    }

    /// As [`Rig::run`] without waiting; `operands.outputs` hold the workspaces as well. For graphs and measurements.
    ///
    /// # Errors
    /// As [`Rig::run`], but for faults.
    pub fn submit(&mut self, launches: &Launches, symbols: Symbols, operands: &Operands) -> Result<()> {
        let stages: Vec<&Stage> = launches.stages.iter().filter(|s| s.when.holds(&symbols)).collect();
        self.load(&stages)?;
        self.launched.clear();
        for stage in stages {
            self.launch(stage, &symbols, operands, &operands.outputs)
                .with_context(|| format!("{}/{}", stage.source.name, stage.entry))?;
        }
        Ok(())
    }

    /// What the last `run` launched: `source/entry`, in order.
    pub fn launched(&self) -> &[String] {
        &self.launched
    }

    /// What a kernel that ran needs, as the driver says.
    pub fn function_info(&self, source: &Source, entry: &str) -> Option<FunctionInfo> {
        let module = self.modules.get(source)?;
        Some(self.functions.get(&(module.0, entry.to_owned()))?.2)
    }

    /// Compiles and loads the modules that are not loaded yet.
    fn load(&mut self, stages: &[&Stage]) -> Result<()> {
        let mut missing: Vec<&Source> =
            stages.iter().map(|s| &s.source).filter(|s| !self.modules.contains_key(s)).collect();
        missing.sort();
        missing.dedup();
        let compiled = code::compile(&self.compiler, &missing, &self.arch)?;
        for (source, code) in missing.iter().zip(compiled) {
            let image = Image { cubin: Some(&code.cubin), ptx: Some(&code.ptx), allow_jit: false };
            let module = self.driver.load_module(&source.name, image)?;
            self.modules.insert((*source).clone(), module);
        }
        Ok(())
    }

    fn launch(
        &mut self,
        stage: &Stage,
        symbols: &Symbols,
        operands: &Operands,
        outputs: &[DevicePtr],
    ) -> Result<()> {
        let module = *self.modules.get(&stage.source).context("module is not loaded")?;
        let launch = DeviceLaunch {
            module: module.0,
            entry: stage.entry.to_owned(),
            when: stage.when,
            grid: stage.grid.clone(),
            block: stage.block,
            shared_bytes: stage.shared_bytes,
            dependent: stage.dependent,
            args: stage.args.clone(),
        };
        let grid = launch.grid(symbols).context("grid does not fit 32 bits")?;
        if grid.contains(&0) {
            return Ok(());
        }
        ensure!(launch.block > 0 && launch.block.is_multiple_of(32), "block of {} threads", launch.block);
        let args = launch
            .args
            .iter()
            .map(|arg| value(*arg, symbols, operands, outputs))
            .collect::<Result<Vec<_>>>()?;
        let key = (module.0, launch.entry.clone());
        let known = self.functions.get(&key).filter(|(shared, ..)| *shared >= launch.shared_bytes).copied();
        let function = match known {
            Some((_, function, _)) => function,
            None => {
                let (function, info) = self.driver.function(module, &launch.entry, launch.shared_bytes)?;
                ensure!(
                    info.max_threads >= launch.block,
                    "{} threads, at most {}",
                    launch.block,
                    info.max_threads
                );
                self.functions.insert(key, (launch.shared_bytes, function, info));
                function
            }
        };
        let label = format!("{}/{}", stage.source.name, stage.entry);
        let config = LaunchConfig {
            function,
            grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            dependent: launch.dependent,
            args: &args,
            label: &label,
        };
        // SAFETY: the family planned source, arguments and grid together; the test gives operands of that shape.
        unsafe { self.driver.launch(&config) }?;
        self.launched.push(label);
        Ok(())
    }
}

/// What to compile for: machine code runs on its own major version from its minor version on.
fn target(device: Arch) -> Result<&'static str> {
    let runs = |name: &&&str| {
        let digits = name.trim_start_matches("sm_").trim_end_matches('a');
        let (major, minor) = digits.split_at(digits.len() - 1);
        let exact = name.ends_with('a');
        let minor: u32 = minor.parse().unwrap_or(u32::MAX);
        major.parse() == Ok(device.major) && if exact { minor == device.minor } else { minor <= device.minor }
    };
    let newest = lathe_nvrtc::supported().iter().rev().find(runs);
    newest.copied().with_context(|| format!("{device}: no kernels; there are {:?}", lathe_nvrtc::supported()))
}

fn value(arg: Arg, symbols: &Symbols, operands: &Operands, outputs: &[DevicePtr]) -> Result<ArgValue> {
    let operand = |what: &str, list: &[DevicePtr], index: u32| match list.get(index as usize) {
        Some(at) => Ok(ArgValue::Ptr(*at)),
        None => bail!("{what} {index} of {}", list.len()),
    };
    Ok(match arg {
        Arg::Input(index) => operand("input", &operands.inputs, index)?,
        Arg::Output(index) => operand("output", outputs, index)?,
        Arg::Table(table) => {
            let found = operands.tables.iter().find(|(t, _)| *t == table);
            ArgValue::Ptr(found.with_context(|| format!("no table {table:?}"))?.1)
        }
        Arg::Symbol(symbol) => ArgValue::U32(symbols.get(symbol)),
        Arg::U32(x) => ArgValue::U32(x),
        Arg::U64(x) => ArgValue::U64(x),
        Arg::F32(x) => ArgValue::F32(x),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_get_the_newest_code_that_runs_on_them() {
        for (device, want) in [((8, 0), "sm_80"), ((8, 7), "sm_86"), ((8, 9), "sm_89"), ((9, 0), "sm_90")] {
            assert_eq!(target(Arch { major: device.0, minor: device.1 }).unwrap(), want);
        }
        assert_eq!(target(Arch { major: 12, minor: 0 }).unwrap(), "sm_120a");
        for (major, minor) in [(7, 5), (10, 0), (12, 1)] {
            assert!(target(Arch { major, minor }).unwrap_err().to_string().contains("sm_120a"));
        }
    }

    /// What the tests of kernels do on a GPU, on the smallest of kernels.
    #[test]
    fn a_gpu_answers_or_is_not_there() {
        let Some(mut rig) = Rig::gpu().unwrap() else { return };
        let at = rig.i32s("numbers", &[1, -2, 3]).unwrap();
        assert_eq!(rig.read_i32(at, 3).unwrap(), [1, -2, 3]);
    }
}
