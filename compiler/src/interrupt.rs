//! Ctrl-C ends a compilation at once and leaves nothing behind.
//!
//! The handler itself removes the plan's temporary file: no worker has to notice, so no phase can delay it.

use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use lathe_diagnostics::Exit;

/// The file to remove, a NUL-terminated path that is never freed, or null.
static TEMPORARY: AtomicPtr<libc::c_char> = AtomicPtr::new(ptr::null_mut());

extern "C" fn on_signal(_signal: c_int) {
    let path = TEMPORARY.load(Ordering::SeqCst);
    // SAFETY: unlink, write and _exit are async-signal-safe; the path is null or a leaked C string.
    unsafe {
        if !path.is_null() {
            libc::unlink(path);
        }
        let line = b"\ninterrupted: no plan was written\n";
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(Exit::Interrupted as c_int);
    }
}

/// Installs the handler for Ctrl-C, termination and hang-up.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: a zeroed sigaction is valid, and the handler does only async-signal-safe calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(c_int) as libc::sighandler_t;
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

/// Names the file that an interrupt removes; `None` once it is in its final place.
pub fn remove_on_interrupt(path: Option<&Path>) {
    let raw = path
        .and_then(|p| CString::new(p.as_os_str().as_bytes()).ok())
        .map_or(ptr::null_mut(), CString::into_raw);
    // One path is leaked per compilation: the handler may be reading it at any time.
    TEMPORARY.store(raw, Ordering::SeqCst);
}
