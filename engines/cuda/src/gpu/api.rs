//! The driver library: is it there, is it new enough, and every status it returns as an error with its name.

use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};
use lathe_device::DriverError;

/// The oldest driver that loads what the plans hold: machine code and PTX are made by NVRTC 13.0.
const OLDEST: c_int = 13_000;

/// A version as the driver counts: 1000 times major and 10 times minor.
fn version_text(version: c_int) -> String {
    format!("CUDA {}.{}", version / 1000, version % 1000 / 10)
}

fn unavailable(what: &str, why: String) -> DriverError {
    DriverError::Unavailable { what: what.into(), why }
}

/// Loads and initialises the library once; gives the driver's version for people.
///
/// # Errors
/// `Unavailable` when there is no library, no device, or the driver is too old.
pub fn open() -> Result<&'static str, DriverError> {
    static OPENED: OnceLock<Result<String, DriverError>> = OnceLock::new();
    OPENED.get_or_init(initialise).as_deref().map_err(Clone::clone)
}

fn initialise() -> Result<String, DriverError> {
    // Asked first: the bindings panic when they are called without the library.
    // SAFETY: loading libcuda runs its initialisers, as linking to it would.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "CUDA driver",
            "libcuda.so is not on this machine; install NVIDIA's driver, or use --device emulator".into(),
        ));
    }
    // SAFETY: the library is there; the flags must be 0.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        status => return Err(unavailable("CUDA device", text(status))),
    }
    let mut version = 0;
    // SAFETY: the pointer is to a live integer.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    if version < OLDEST {
        return Err(unavailable(
            "CUDA driver that can run plans",
            format!(
                "this one is for {}, plans need {}; update NVIDIA's driver to release 580 or later",
                version_text(version),
                version_text(OLDEST)
            ),
        ));
    }
    Ok(version_text(version))
}

/// A status as the driver names and explains it.
pub fn text(status: CUresult) -> String {
    let part = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut at = std::ptr::null();
        // SAFETY: the library is loaded wherever a status came from; it answers with a static string or null.
        unsafe {
            let found = get(status, &raw mut at) == CUresult::CUDA_SUCCESS && !at.is_null();
            found.then(|| CStr::from_ptr(at).to_string_lossy().into_owned())
        }
    };
    match (part(sys::cuGetErrorName), part(sys::cuGetErrorString)) {
        (Some(name), Some(what)) => format!("{name}: {what}"),
        _ => format!("status {}", status as u32),
    }
}

/// `Ok` for success, else the call with the driver's words.
///
/// # Errors
/// `Fault` where the status says that a kernel did what it must not, `Api` for the rest.
pub fn check(call: &'static str, status: CUresult) -> Result<(), DriverError> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ASSERT => Err(DriverError::Fault {
            kernel: "a kernel submitted before".into(),
            report: format!(
                "{} (seen by {call}; run with CUDA_LAUNCH_BLOCKING=1 to learn which)",
                text(status)
            ),
        }),
        _ => Err(DriverError::Api { call, why: text(status) }),
    }
}

/// True where the status says that a module's form is not for this device or driver.
pub fn is_foreign_image(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_the_driver_counts_them() {
        assert_eq!(version_text(13_000), "CUDA 13.0");
        assert_eq!(version_text(12_080), "CUDA 12.8");
    }
}
