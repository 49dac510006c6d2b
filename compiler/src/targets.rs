//! What `--target` takes: `cpu` and CUDA architectures, several of them in one plan.

use lathe_plan::schema::Target;

use crate::error::{CompileError, Result};

/// A CUDA architecture and the device that reports take for it; rates are the datasheet's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CudaArch {
    /// As flags, plans and NVRTC name it.
    pub name: &'static str,
    /// A device of it.
    pub device: &'static str,
    /// Its memory bandwidth.
    pub bytes_per_second: f64,
    /// Its dense bf16 rate with f32 sums.
    pub flops_per_second: f64,
}

const fn of(name: &'static str, device: &'static str, terabytes: f64, teraflops: f64) -> CudaArch {
    CudaArch { name, device, bytes_per_second: terabytes * 1e12, flops_per_second: teraflops * 1e12 }
}

/// CUDA architectures that the kernels run on. `compute_80` is PTX alone, which drivers of newer devices can compile where
/// they are allowed to.
pub const CUDA: &[CudaArch] = &[
    of("compute_80", "A100", 2.04, 312.0),
    of("sm_80", "A100", 2.04, 312.0),
    of("sm_86", "A40", 0.70, 150.0),
    of("sm_89", "L40S", 0.86, 362.0),
    of("sm_90", "H200", 4.80, 989.0),
    of("sm_120a", "RTX 5090", 1.79, 209.0),
];

impl CudaArch {
    /// The roofline that bounds work of `bytes` and `flops`.
    pub fn bound(&self, bytes: u64, flops: u64) -> &'static str {
        let (memory, compute) = (bytes as f64 / self.bytes_per_second, flops as f64 / self.flops_per_second);
        if compute > memory { "compute" } else { "memory" }
    }
}

/// The architecture of this name.
pub fn arch(name: &str) -> Option<&'static CudaArch> {
    CUDA.iter().find(|arch| arch.name == name)
}

/// The name of a target, as `--target` takes it.
pub fn name(target: &Target) -> &str {
    match target {
        Target::Cpu => "cpu",
        Target::Cuda { arch } => arch,
    }
}

/// Names of all targets, for messages.
pub fn known() -> String {
    let arches = CUDA.iter().map(|arch| arch.name);
    std::iter::once("cpu").chain(arches).chain(["native"]).collect::<Vec<_>>().join(", ")
}

/// Targets of a comma-separated list, in its order. `native` is the architecture that `device` names.
///
/// # Errors
/// An empty or unknown name, one given twice, an architecture without kernels, `native` without a device.
pub fn parse(list: &str, device: impl Fn() -> Result<String, String>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in list.split(',').map(str::trim) {
        let target = match name {
            "cpu" => Target::Cpu,
            "native" => cuda(&device().map_err(|why| {
                CompileError::usage("--target native", why).remedy(format!("name a target: {}", known()))
            })?)?,
            _ => cuda(name)?,
        };
        if targets.contains(&target) {
            return Err(CompileError::usage(
                format!("--target {list}"),
                format!("{name} stands there twice"),
            ));
        }
        targets.push(target);
    }
    Ok(targets)
}

fn cuda(name: &str) -> Result<Target> {
    if let Some(arch) = arch(name) {
        return Ok(Target::Cuda { arch: arch.name.into() });
    }
    let why = match name {
        "sm_100" | "sm_100a" | "sm_100f" | "sm_103a" | "sm_110a" => {
            format!("it needs tcgen05 kernels, which do not exist yet; known are {}", known())
        }
        "sm_90a" => format!(
            "its wgmma kernels do not exist yet; sm_90 runs on the same devices; known are {}",
            known()
        ),
        "sm_120" => format!("write sm_120a; known are {}", known()),
        _ => format!("known are {}", known()),
    };
    Err(CompileError::unsupported(format!("target {name}"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuda(arch: &str) -> Target {
        Target::Cuda { arch: arch.into() }
    }

    #[test]
    fn lists_are_read_in_order() {
        let none = || Err("no driver".to_owned());
        assert_eq!(parse("cpu", none).unwrap(), [Target::Cpu]);
        assert_eq!(parse("sm_80, cpu,sm_120a", none).unwrap(), [cuda("sm_80"), Target::Cpu, cuda("sm_120a")]);
        assert_eq!(parse("native,cpu", || Ok("sm_90".into())).unwrap(), [cuda("sm_90"), Target::Cpu]);
    }

    #[test]
    fn what_cannot_be_is_said_by_name() {
        let none = || Err("no CUDA driver on this machine".to_owned());
        for (list, want) in [
            (
                "",
                "unsupported target : known are cpu, compute_80, sm_80, sm_86, sm_89, sm_90, sm_120a, native",
            ),
            ("cpu,", "unsupported target : known are"),
            ("sm_100a", "unsupported target sm_100a: it needs tcgen05 kernels"),
            ("sm_90a", "unsupported target sm_90a: its wgmma kernels do not exist yet"),
            ("gpu", "unsupported target gpu: known are"),
            ("cpu,sm_80,cpu", "--target cpu,sm_80,cpu: cpu stands there twice"),
            ("native", "--target native: no CUDA driver on this machine"),
        ] {
            let error = parse(list, none).unwrap_err().to_string();
            assert!(error.starts_with(want), "{list}: {error}");
        }
    }
}
