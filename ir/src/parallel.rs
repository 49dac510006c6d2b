//! Work that is dealt out to threads. Who does a part changes nothing in it.

use std::sync::{Mutex, PoisonError};

/// Calls `each` with every part, on at most `threads` threads, the caller's among them.
pub(crate) fn for_each<T: Send>(
    threads: usize,
    parts: impl ExactSizeIterator<Item = T> + Send,
    each: impl Fn(T) + Sync,
) {
    let threads = threads.min(parts.len());
    let parts = Mutex::new(parts);
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(part) = next() {
            each(part);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}
