//! Where a plan runs: the CPU, a GPU, or the emulator that runs CUDA programs on the CPU.

use std::str::FromStr;
use std::sync::Arc;

use lathe_api::Engine;
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_cuda::{CudaEngine, CudaOptions, GpuDriver};
use lathe_device::{Arch, Driver, DriverError};
use lathe_diagnostics::{Diagnostic, Exit};
use lathe_emulator::{CheckOptions, DeviceModel, Emulator, EmulatorOptions};
use lathe_plan::Plan;
use lathe_plan::schema::{Program, Target};

use super::faults::{self, Outcome};
use super::load::EngineSettings;

/// The value of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU that the plan has a program for, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU by number.
    Cuda(u32),
    /// The emulator.
    Emulator {
        /// Checks every access, for finding faults of kernels; some ten times slower.
        checked: bool,
    },
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "emulator" => Ok(Device::Emulator { checked: false }),
            "emulator:checked" => Ok(Device::Emulator { checked: true }),
            _ => match s.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Device::Cuda(ordinal)),
                _ => Err(format!("{s:?} is not one of auto, cpu, cuda, cuda:N, emulator, emulator:checked")),
            },
        }
    }
}

/// The program of `plan` that `settings` ask for, before any device was opened: for a GPU or the emulator the first CUDA
/// program, for the CPU its own.
pub fn program<'a>(plan: &'a Plan, settings: &EngineSettings) -> Option<&'a Program> {
    let named = || plan.programs().iter().filter(|p| p.name == settings.program);
    let cpu = || named().find(|p| p.target == Target::Cpu);
    let cuda = || named().find(|p| p.target != Target::Cpu);
    match settings.device {
        Device::Cpu => cpu(),
        Device::Cuda(_) | Device::Emulator { .. } => cuda(),
        Device::Auto => cpu().or_else(cuda),
    }
}

/// Loads the engine on the device that `settings` name.
///
/// # Errors
/// A device that is not there, or on which the plan does not fit.
pub fn load(plan: &Arc<Plan>, settings: &EngineSettings) -> Outcome<Box<dyn Engine>> {
    match settings.device {
        Device::Cpu => cpu(plan, settings),
        Device::Cuda(ordinal) => cuda(plan, settings, open(ordinal)?),
        Device::Emulator { checked } => cuda(plan, settings, emulator(plan, settings, checked)?),
        Device::Auto => auto(plan, settings),
    }
}

/// A GPU is taken where the plan was compiled for one and the machine has it; whichever it is, the log says so.
fn auto(plan: &Arc<Plan>, settings: &EngineSettings) -> Outcome<Box<dyn Engine>> {
    let has = |wanted: fn(&Target) -> bool| plan.programs().iter().any(|p| wanted(&p.target));
    let (on_cpu, on_cuda) = (has(|t| *t == Target::Cpu), has(|t| *t != Target::Cpu));
    if on_cuda {
        match GpuDriver::open(0) {
            Ok(gpu) => return cuda(plan, settings, Box::new(gpu)),
            Err(DriverError::Unavailable { what, why }) if on_cpu => {
                tracing::info!(what, why, "no GPU: the plan's CPU program runs");
            }
            Err(error) => {
                return Err(driver(error).remedy(
                    "run it where a GPU is, try --device emulator, or compile with --target cpu as well",
                ));
            }
        }
    }
    cpu(plan, settings)
}

fn cpu(plan: &Arc<Plan>, settings: &EngineSettings) -> Outcome<Box<dyn Engine>> {
    let options = CpuOptions {
        threads: settings.threads,
        isa: settings.isa,
        kv_bytes: settings.kv_bytes,
        program: Some(settings.program.to_owned()),
        ..CpuOptions::default()
    };
    Ok(Box::new(CpuEngine::load(plan.clone(), &options).map_err(faults::engine)?))
}

fn cuda(plan: &Arc<Plan>, settings: &EngineSettings, driver: Box<dyn Driver>) -> Outcome<Box<dyn Engine>> {
    let options = CudaOptions {
        kv_bytes: settings.kv_bytes,
        reserve_bytes: settings.reserve_bytes,
        program: Some(settings.program.to_owned()),
        allow_ptx_jit: settings.allow_ptx_jit,
        ..CudaOptions::default()
    };
    Ok(Box::new(CudaEngine::load(plan.clone(), driver, &options).map_err(faults::engine)?))
}

/// An emulated device of the architecture that the plan's CUDA program was compiled for.
fn emulator(plan: &Plan, settings: &EngineSettings, checked: bool) -> Outcome<Box<dyn Driver>> {
    let target = program(plan, settings).map(|p| &p.target);
    let arch = match target {
        Some(Target::Cuda { arch }) => lathe_cuda::arch_of(arch),
        _ => None,
    };
    // A plan without such a program is refused by the engine, which says what it holds.
    let model = DeviceModel::of(arch.unwrap_or(Arch { major: 8, minor: 0 }));
    let options = EmulatorOptions {
        check: checked.then(CheckOptions::default),
        threads: (settings.threads > 0).then_some(settings.threads),
        ..EmulatorOptions::new(model)
    };
    Ok(Box::new(Emulator::new(&options).map_err(driver)?))
}

fn open(ordinal: u32) -> Outcome<Box<dyn Driver>> {
    Ok(Box::new(GpuDriver::open(ordinal).map_err(driver)?))
}

fn driver(error: DriverError) -> Diagnostic {
    let exit = match error {
        DriverError::Unavailable { .. } | DriverError::OutOfMemory { .. } | DriverError::NoImage { .. } => {
            Exit::Fit
        }
        DriverError::Fault { .. } | DriverError::Api { .. } => Exit::Bug,
    };
    Diagnostic::new(exit, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("emulator", Device::Emulator { checked: false }),
            ("emulator:checked", Device::Emulator { checked: true }),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["gpu", "cuda:", "cuda:x", "emulator:", ""] {
            assert!(text.parse::<Device>().unwrap_err().contains("emulator:checked"));
        }
    }
}
