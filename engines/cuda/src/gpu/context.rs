//! A device's primary context, and the handles that live in it and go with it.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use cudarc::driver::sys;
use lathe_device::{Arch, DeviceInfo, DriverError, HostBuffer};

use super::api::{check, open};

/// A retained primary context.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: a context handle may be used from any thread that made the context current, which every use here does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver API locks for itself.
unsafe impl Sync for Context {}

/// Devices of this machine.
///
/// # Errors
/// `Unavailable` without a driver.
pub fn count() -> Result<u32, DriverError> {
    open()?;
    let mut n = 0;
    // SAFETY: the library is initialised; the pointer is to a live integer.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut n) })?;
    Ok(u32::try_from(n).unwrap_or(0))
}

/// What the device of an ordinal is; all of its memory counts as free, which only a context can tell.
///
/// # Errors
/// `Unavailable` without a driver or without this device.
pub fn describe(ordinal: u32) -> Result<(sys::CUdevice, DeviceInfo), DriverError> {
    let driver = open()?.to_owned();
    let n = count()?;
    if ordinal >= n {
        return Err(DriverError::Unavailable {
            what: format!("CUDA device {ordinal}"),
            why: format!("this machine has {n}, counted from 0"),
        });
    }
    let mut device = 0;
    // SAFETY: the ordinal is below the count; the pointer is to a live integer.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) })?;
    let mut name = [0u8; 256];
    // SAFETY: the driver writes at most the given number of bytes, the last of them NUL.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device)
    })?;
    let mut total_bytes = 0usize;
    // SAFETY: the pointer is to a live integer.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut total_bytes, device) })?;
    let attribute = |which| -> Result<u32, DriverError> {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) })?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    use sys::CUdevice_attribute as Attribute;
    let info = DeviceInfo {
        name: String::from_utf8_lossy(name.split(|b| *b == 0).next().unwrap_or_default()).into_owned(),
        arch: Arch {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        max_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_bytes: total_bytes as u64,
        free_bytes: total_bytes as u64,
        driver,
    };
    Ok((device, info))
}

impl Context {
    /// Retains the primary context of `device` and makes it current.
    ///
    /// # Errors
    /// The driver's.
    pub fn retain(device: sys::CUdevice) -> Result<Self, DriverError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut handle, device) })?;
        let context = Context { device, handle };
        context.enter()?;
        Ok(context)
    }

    /// Makes the context current on this thread. Cheap where it already is; an engine may have moved since.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(u64, u64), DriverError> {
        self.enter()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both pointers are to live integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `retain`. A failure while going away has nobody to tell.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Page-locked host memory.
pub struct Pinned {
    at: *mut u8,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: the memory is the buffer's own; the pointer is to no thread's state.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `len` bytes, zeroed.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(context: &Arc<Context>, len: usize) -> Result<Self, DriverError> {
        context.enter()?;
        let mut at: *mut c_void = std::ptr::null_mut();
        // SAFETY: the pointer is to a live pointer; no flags: memory of this context, cached.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut at, len.max(1), 0) })?;
        let at = at.cast::<u8>();
        // SAFETY: the driver gave `len` bytes.
        unsafe { at.write_bytes(0, len.max(1)) };
        Ok(Pinned { at, len, context: context.clone() })
    }
}

impl HostBuffer for Pinned {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as `self`; copies under way are the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, exclusive by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: it came from `cuMemHostAlloc` and is given back once.
            let _ = unsafe { sys::cuMemFreeHost(self.at.cast()) };
        }
    }
}
