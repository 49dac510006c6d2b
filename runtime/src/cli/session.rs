//! A plan loaded for one user at the terminal: the server's own engine thread without HTTP.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use lathe_diagnostics::{Diagnostic, Exit};

use super::faults::{self, Outcome};
use super::load::{self, EngineSettings};
use crate::engine_thread::{self, EngineHandle, Policy};
use crate::metrics::Metrics;
use crate::model::Model;

/// Engine thread and model.
pub struct Session {
    /// Runs sequences.
    pub handle: EngineHandle,
    /// Tokenizer, templates, defaults.
    pub model: Arc<Model>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Loads a plan.
    ///
    /// # Errors
    /// The plan, the engine or the tokenizer does not load.
    pub fn open(plan_path: &Path, settings: &EngineSettings) -> Outcome<Self> {
        let plan = load::plan(plan_path)?;
        let (engine, model) = load::both(&plan, settings, load::stem(plan_path))?;
        // One prompt with its choices is all that ever waits.
        let policy = Policy { max_queue: 4096, chunk_limit: settings.chunk_limit, warm: false };
        let metrics = Arc::new(Metrics::new(model.max_seq_len));
        let (handle, thread) = engine_thread::start(engine, policy, metrics).map_err(faults::start)?;
        Ok(Session { handle, model: Arc::new(model), thread })
    }

    /// Ends the engine thread.
    ///
    /// # Errors
    /// It panicked in a way that it could not report.
    pub fn close(self) -> Outcome<()> {
        self.handle.stop();
        self.thread.join().map_err(|_| Diagnostic::new(Exit::Bug, "the engine thread panicked"))
    }
}

/// A small executor for one user.
///
/// # Errors
/// The system gives no event queue.
pub fn executor() -> Outcome<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(faults::io("event queue"))
}
