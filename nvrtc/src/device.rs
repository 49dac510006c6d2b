//! The architecture of this machine's GPU, asked of its driver.

use std::ffi::c_int;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

type Init = unsafe extern "C" fn(u32) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// The architecture of the first device, as NVRTC spells it (`sm_90`, `sm_120a`); it need not be a supported one.
///
/// # Errors
/// Why there is none, in words.
pub fn native_arch() -> Result<String, String> {
    // SAFETY: NVIDIA's driver: running its initialisers is what opening means.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("no CUDA driver: {error}"))?;
    let missing = |error: libloading::Error| format!("CUDA driver: {error}");
    // SAFETY: the types are the declarations of cuda.h; the library stays open while the symbols are used.
    let (init, get, attribute) = unsafe {
        (
            driver.get::<Init>("cuInit").map_err(missing)?,
            driver.get::<DeviceGet>("cuDeviceGet").map_err(missing)?,
            driver.get::<Attribute>("cuDeviceGetAttribute").map_err(missing)?,
        )
    };
    let checked = |call: &str, status: c_int| match status {
        0 => Ok(()),
        100 => Err(format!("{call}: there is no CUDA device")),
        _ => Err(format!("{call} failed with CUDA error {status}")),
    };
    let (mut device, mut version) = (0, [0; 2]);
    // SAFETY: initialised first; the pointers are to integers that outlive the calls.
    unsafe {
        checked("cuInit", init(0))?;
        checked("cuDeviceGet", get(&mut device, 0))?;
        for (number, name) in version.iter_mut().zip(CAPABILITY) {
            checked("cuDeviceGetAttribute", attribute(number, name, device))?;
        }
    }
    // The driver does not expect to be closed while the process lives.
    std::mem::forget(driver);
    Ok(spell(version))
}

/// Blackwell's consumer chips have kernels for the architecture-specific target alone.
fn spell([major, minor]: [c_int; 2]) -> String {
    match (major, minor) {
        (12, 0) => "sm_120a".to_owned(),
        _ => format!("sm_{major}{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_spelled_as_targets() {
        let names = [[8, 0], [8, 6], [8, 9], [9, 0], [12, 0], [10, 0]].map(spell);
        assert_eq!(&names[..5], crate::supported());
        assert_eq!(names[5], "sm_100");
    }

    #[test]
    fn a_machine_has_an_architecture_or_a_reason() {
        match native_arch() {
            Ok(name) => assert!(name.starts_with("sm_"), "{name}"),
            Err(why) => assert!(why.contains("CUDA d") || why.contains("libcuda"), "{why}"),
        }
    }
}
