//! A plan that is cut short while it is mapped: reading past the new end is a SIGBUS, which would end the process
//! without a word. The handler says which file it was and ends the process as an I/O error.
//!
//! `Plan::still_whole` finds most cuts before the first bad read; the handler is for the rest.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::reader::Plan;

/// Exit status of a process whose plan was cut: the one of I/O errors.
pub const EXIT_STATUS: i32 = 5;

/// The mapped plan that the handler speaks for: message, its length, first and one past last address.
struct Watched {
    message: AtomicPtr<u8>,
    length: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
}

static WATCHED: Watched = Watched {
    message: AtomicPtr::new(std::ptr::null_mut()),
    length: AtomicUsize::new(0),
    start: AtomicUsize::new(0),
    end: AtomicUsize::new(0),
};

/// Installs the handler for `plan`, once per process; a later call watches its plan instead. The plan must stay
/// mapped while its weights are read, which the borrow of them sees to.
pub fn watch(plan: &Plan) -> io::Result<()> {
    let mut message = b"engine plan ".to_vec();
    message.extend(plan.path().as_os_str().as_bytes());
    message.extend(b" was truncated while in use\n");
    // A handler may run at any time from now on, so the message lives as long as the process.
    let message: &'static mut [u8] = message.leak();
    let map = plan.bytes().as_ptr_range();
    WATCHED.end.store(0, Ordering::SeqCst);
    WATCHED.length.store(0, Ordering::SeqCst);
    WATCHED.message.store(message.as_mut_ptr(), Ordering::SeqCst);
    WATCHED.length.store(message.len(), Ordering::SeqCst);
    WATCHED.start.store(map.start as usize, Ordering::SeqCst);
    // The last page reaches past the file's end.
    WATCHED.end.store((map.end as usize).next_multiple_of(4096), Ordering::SeqCst);

    static INSTALL: Once = Once::new();
    let mut result = Ok(());
    INSTALL.call_once(|| result = install());
    result
}

fn install() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: all-zero bytes are a valid `sigaction`: no flags, an empty mask, no restorer.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised and the handler only makes async-signal-safe calls.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `siginfo_t` to a handler that asked for it with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let within =
        WATCHED.start.load(Ordering::SeqCst) <= address && address < WATCHED.end.load(Ordering::SeqCst);
    if within {
        let message = WATCHED.message.load(Ordering::SeqCst);
        let length = WATCHED.length.load(Ordering::SeqCst);
        // SAFETY: `write` and `_exit` are async-signal-safe; the message was leaked and holds `length` bytes.
        unsafe {
            libc::write(libc::STDERR_FILENO, message.cast(), length);
            libc::_exit(EXIT_STATUS);
        }
    }
    // Not the plan: the default action, as if there were no handler, when the instruction runs again.
    // SAFETY: `signal` is async-signal-safe.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}
