//! Which of a plan's programs runs on a device.

use lathe_api::EngineError;
use lathe_device::{Arch, DeviceInfo};
use lathe_plan::Plan;
use lathe_plan::schema::{Program, Target};

/// Architectures that `compile --target` makes machine code for, newest last.
const COMPILED: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120a"];

/// A program and how its code gets onto the device.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The program.
    pub program: &'a Program,
    /// Its target's name, e.g. `sm_80`.
    pub target: &'a str,
    /// The architecture that its kernels were compiled for.
    pub arch: Arch,
    /// True if the driver compiles the program's PTX at load.
    pub jit: bool,
}

/// A target's name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// `sm_80`: runs on its major version from its minor version on.
    Family(Arch),
    /// `sm_90a`: runs on exactly this architecture.
    Exact(Arch),
    /// `compute_80`: PTX that newer devices can compile.
    Ptx(Arch),
}

fn parse(target: &str) -> Option<Code> {
    let arch = |digits: &str| {
        let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
        Some(Arch { major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    if let Some(digits) = target.strip_prefix("compute_") {
        return Some(Code::Ptx(arch(digits)?));
    }
    let name = target.strip_prefix("sm_")?;
    Some(match name.strip_suffix('a') {
        Some(digits) => Code::Exact(arch(digits)?),
        None => Code::Family(arch(name)?),
    })
}

/// The architecture that a target's name stands for; `None` where it is no such name.
pub fn arch_of(target: &str) -> Option<Arch> {
    parse(target).map(Code::arch)
}

impl Code {
    fn arch(self) -> Arch {
        match self {
            Code::Family(arch) | Code::Exact(arch) | Code::Ptx(arch) => arch,
        }
    }

    /// Order of preference: machine code, the newest architecture, code for it alone.
    fn rank(self) -> (bool, Arch, bool) {
        (!matches!(self, Code::Ptx(_)), self.arch(), matches!(self, Code::Exact(_)))
    }

    fn runs_on(self, device: Arch, allow_ptx_jit: bool) -> bool {
        match self {
            Code::Family(arch) => arch.major == device.major && arch.minor <= device.minor,
            Code::Exact(arch) => arch == device,
            Code::Ptx(arch) => allow_ptx_jit && arch <= device,
        }
    }
}

/// The emulator has no driver to speak of, and runs any PTX.
pub fn is_emulated(device: &DeviceInfo) -> bool {
    device.driver.is_empty()
}

fn has_ptx(program: &Program) -> bool {
    program.modules.iter().all(|m| m.ptx.is_some())
}

/// The program named `name` that runs on `device`: machine code of the nearest architecture before PTX that the
/// driver must compile, which `allow_ptx_jit` permits. The emulator takes any program whose PTX is there, of the
/// nearest architecture where there is one.
///
/// # Errors
/// `Fit`, with what the plan holds and what to do, when none does.
pub fn choose<'a>(
    plan: &'a Plan,
    name: &str,
    device: &DeviceInfo,
    allow_ptx_jit: bool,
) -> Result<Choice<'a>, EngineError> {
    choose_among(plan.programs(), name, device, allow_ptx_jit)
}

fn choose_among<'a>(
    programs: &'a [Program],
    name: &str,
    device: &DeviceInfo,
    allow_ptx_jit: bool,
) -> Result<Choice<'a>, EngineError> {
    let of_name = || programs.iter().filter(|p| p.name == name && p.rank == 0 && p.n_ranks == 1);
    let candidates = || {
        of_name().filter_map(|program| match &program.target {
            Target::Cuda { arch } => Some((program, arch.as_str(), parse(arch)?)),
            Target::Cpu => None,
        })
    };
    let emulated = is_emulated(device);
    let runs = |code: Code| code.runs_on(device.arch, allow_ptx_jit || emulated);
    let usable = |program: &Program| !emulated || has_ptx(program);
    // Machine code first, then the nearest architecture; the emulator also takes what no such device would.
    let best = candidates()
        .filter(|(program, _, code)| usable(program) && (emulated || runs(*code)))
        .max_by_key(|(_, _, code)| (runs(*code), code.rank()));
    if let Some((program, target, code)) = best {
        let jit = matches!(code, Code::Ptx(_)) && !emulated;
        return Ok(Choice { program, target, arch: code.arch(), jit });
    }
    Err(refusal(programs, name, device, candidates().any(|(_, _, code)| matches!(code, Code::Ptx(_)))))
}

fn refusal(programs: &[Program], name: &str, device: &DeviceInfo, ptx_set: bool) -> EngineError {
    let held: Vec<String> = programs
        .iter()
        .map(|p| {
            let target = match &p.target {
                Target::Cpu => "cpu",
                Target::Cuda { arch } => arch,
            };
            format!("{} for {target}", p.name)
        })
        .collect();
    let held = if held.is_empty() { "nothing".to_owned() } else { held.join(", ") };
    let for_cuda = programs.iter().any(|p| p.name == name && matches!(p.target, Target::Cuda { .. }));
    let (why, remedy) = if is_emulated(device) {
        let why = format!("it holds {held}; the emulator needs a CUDA program with its PTX");
        let remedy = if for_cuda {
            "compile the model again: the PTX of this plan was stripped".to_owned()
        } else {
            "compile the model with --target sm_80".to_owned()
        };
        (why, remedy)
    } else {
        let why = format!("it holds {held}; {} is {}", device.name, device.arch);
        let nearest = COMPILED
            .iter()
            .rev()
            .find(|target| parse(target).is_some_and(|code| code.runs_on(device.arch, false)));
        let remedy = match nearest {
            Some(target) => format!("compile the model with --target {target}"),
            None if ptx_set => {
                "pass --allow-ptx-jit: the driver then compiles the plan's PTX at load".to_owned()
            }
            None => "no kernels exist for this device yet; run the plan elsewhere".to_owned(),
        };
        (why, remedy)
    };
    EngineError::Fit { what: "plan".into(), why, remedy }
}

#[cfg(test)]
mod tests {
    use lathe_plan::schema::{Blob, Module};
    use lathe_plan::testing::{small_plan, small_tables};

    use super::*;

    fn device(major: u32, minor: u32, driver: &str) -> DeviceInfo {
        DeviceInfo {
            name: "device under test".into(),
            arch: Arch { major, minor },
            sm_count: 1,
            max_shared_bytes: 1 << 16,
            total_bytes: 1 << 30,
            free_bytes: 1 << 30,
            driver: driver.into(),
        }
    }

    fn programs(targets: &[&str]) -> Vec<Program> {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let program = small_tables(plan.weights()).programs.remove(0);
        let blob = Blob { offset: 0, bytes: 1, hash: [0; 32] };
        let of = |target: &&str| {
            let mut program = program.clone();
            // A bar stands for stripped PTX.
            let (target, ptx) = match target.strip_suffix('|') {
                Some(target) => (target, None),
                None => (*target, Some(blob)),
            };
            if target != "cpu" {
                program.target = Target::Cuda { arch: target.into() };
                program.modules = vec![Module { name: "m".into(), cubin: Some(blob), ptx, entries: vec![] }];
            }
            program
        };
        targets.iter().map(of).collect()
    }

    fn chosen(held: &[&str], device: &DeviceInfo, jit: bool) -> Result<String, String> {
        let programs = programs(held);
        let choice = choose_among(&programs, "decoder", device, jit).map_err(|e| e.to_string())?;
        Ok(format!("{}{}", choice.target, if choice.jit { " jit" } else { "" }))
    }

    #[test]
    fn the_nearest_machine_code_is_taken() {
        let all = ["cpu", "compute_80", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_120a"];
        for ((major, minor), want) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 7), "sm_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90a"),
            ((12, 0), "sm_120a"),
            ((10, 0), "compute_80 jit"),
        ] {
            assert_eq!(chosen(&all, &device(major, minor, "CUDA 13.0"), true).as_deref(), Ok(want));
        }
        assert_eq!(chosen(&["sm_80"], &device(8, 9, "CUDA 13.0"), false).as_deref(), Ok("sm_80"));
    }

    #[test]
    fn a_refusal_says_what_is_there_and_what_to_do() {
        let refused = |held: &[&str], (major, minor)| {
            chosen(held, &device(major, minor, "CUDA 13.0"), false).unwrap_err()
        };
        assert_eq!(
            refused(&["cpu", "sm_80"], (9, 0)),
            "plan does not fit: it holds decoder for cpu, decoder for sm_80; device under test is sm_90; compile the \
             model with --target sm_90"
        );
        assert!(refused(&["sm_86"], (8, 0)).ends_with("compile the model with --target sm_80"));
        assert!(refused(&["sm_120a"], (12, 1)).ends_with("run the plan elsewhere"));
        assert!(refused(&["compute_80"], (10, 0)).contains("pass --allow-ptx-jit"));
        assert!(refused(&[], (8, 0)).contains("it holds nothing"));
    }

    #[test]
    fn the_emulator_takes_any_ptx() {
        let emulator = device(8, 0, "");
        assert_eq!(chosen(&["cpu", "sm_90"], &emulator, false).as_deref(), Ok("sm_90"));
        assert_eq!(chosen(&["sm_90", "sm_80", "compute_80"], &emulator, false).as_deref(), Ok("sm_80"));
        assert_eq!(chosen(&["sm_90", "sm_80|"], &emulator, false).as_deref(), Ok("sm_90"));
        assert!(chosen(&["sm_80|"], &emulator, false).unwrap_err().contains("was stripped"));
        assert!(chosen(&["cpu"], &emulator, false).unwrap_err().contains("--target sm_80"));
    }
}
