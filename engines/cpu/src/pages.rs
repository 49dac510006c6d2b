//! Pages taken in the background before a step needs them, out of the way of everybody else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use lathe_plan::Plan;

use crate::region::Memory;

/// Bytes of the KV pool taken at a time: a large page, so that whoever maps memory or begins a step waits no longer.
const PIECE: usize = 2 << 20;
/// Rest after each piece while a step runs, in times that it took: a tenth of one core is what a step may lose.
const REST: u32 = 10;
/// Bytes of weights looked at before the thread sees whether anybody needs them still.
const WEIGHTS: usize = 32 << 20;

/// What the thread that takes the KV pool's pages and the engine tell each other.
#[derive(Default)]
pub struct Pages {
    /// A step runs.
    stepping: AtomicBool,
    /// Why the system gave no more pages.
    starved: OnceLock<String>,
}

impl Pages {
    /// Why the system gave no more pages for the KV pool, if it did not.
    pub fn starved(&self) -> Option<&str> {
        self.starved.get().map(String::as_str)
    }

    /// Runs a step, for which the thread makes room.
    pub fn during_step<T>(&self, step: impl FnOnce() -> T) -> T {
        self.stepping.store(true, Ordering::Relaxed);
        let outcome = step();
        self.stepping.store(false, Ordering::Relaxed);
        outcome
    }
}

fn background(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("lathe-pages".into()).spawn(work).map(drop)
}

/// Reads and maps the weights on a thread of its own, while a tokenizer loads on another.
///
/// # Errors
/// The system's when it gives no thread.
pub fn map_weights(plan: &Arc<Plan>) -> std::io::Result<()> {
    plan.prefetch_weights();
    let plan = Arc::clone(plan);
    background(move || {
        let bytes = plan.data_bytes() as usize;
        for start in (0..bytes).step_by(WEIGHTS) {
            // The engine is gone: nobody needs the rest.
            if Arc::strong_count(&plan) == 1 {
                return;
            }
            plan.touch_weights(start..bytes.min(start + WEIGHTS));
        }
    })
}

/// Takes the pages of the KV pool on a thread of its own, which ends with the engine.
///
/// # Errors
/// The system's when it gives no thread.
pub fn take(pages: &Arc<Pages>, kv: &Arc<Memory>) -> std::io::Result<()> {
    let (pages, kv) = (Arc::clone(pages), Arc::clone(kv));
    background(move || {
        for start in (0..kv.len()).step_by(PIECE) {
            // As above.
            if Arc::strong_count(&kv) == 1 {
                return;
            }
            let began = Instant::now();
            if let Err(e) = kv.populate_range(start..kv.len().min(start + PIECE)) {
                // Only this thread sets it.
                drop(pages.starved.set(e.to_string()));
                return;
            }
            if pages.stepping.load(Ordering::Relaxed) {
                std::thread::sleep(began.elapsed() * REST);
            }
        }
    })
}
