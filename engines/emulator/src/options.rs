//! Which device is emulated, and how.

use lathe_device::Arch;

use crate::check::CheckOptions;

/// The facts of a device that programs can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceModel {
    /// Name for people.
    pub name: String,
    /// Architecture.
    pub arch: Arch,
    /// Multiprocessors.
    pub sm_count: u32,
    /// Most shared memory of a block, with opt-in, in bytes.
    pub max_shared_bytes: u32,
    /// Device memory in bytes. Pages of the host are taken only when they are touched.
    pub total_bytes: u64,
}

impl DeviceModel {
    /// A usual device of an architecture; the nearest one below where it is not known.
    pub fn of(arch: Arch) -> Self {
        let (sm_count, shared_kib, gib) = match (arch.major, arch.minor) {
            (..=8, 0) => (108, 163, 80),
            (8, 6) => (84, 99, 24),
            (8, _) => (142, 99, 24),
            (9, _) => (132, 227, 80),
            (10, _) => (148, 227, 180),
            _ => (170, 99, 32),
        };
        DeviceModel {
            name: format!("emulated {arch}"),
            arch,
            sm_count,
            max_shared_bytes: shared_kib * 1024,
            total_bytes: gib << 30,
        }
    }
}

/// How an emulator runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulatorOptions {
    /// What it emulates.
    pub device: DeviceModel,
    /// Checks all accesses; an order of magnitude slower.
    pub check: Option<CheckOptions>,
    /// Runs blocks and warps by chance, and dependent launches early; in order where absent.
    pub seed: Option<u64>,
    /// Host threads; as many as there are cores where absent.
    pub threads: Option<usize>,
}

impl EmulatorOptions {
    /// Unchecked, in order, on all cores.
    pub fn new(device: DeviceModel) -> Self {
        EmulatorOptions { device, check: None, seed: None, threads: None }
    }
}
