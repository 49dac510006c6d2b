//! Library errors as diagnostics with exit codes.

use lathe_api::EngineError;
use lathe_diagnostics::{Diagnostic, Exit};
use lathe_plan::PlanError;
use lathe_text::LoadError;

use super::settings::SettingsError;
use crate::engine_thread::StartError;
use crate::generation::GenerationError;
use crate::http::ApiError;

/// What a command ends with when it cannot do its work.
pub type Outcome<T> = Result<T, Diagnostic>;

/// A plan that cannot be opened or has changed.
pub fn plan(error: PlanError) -> Diagnostic {
    let exit = match &error {
        PlanError::Io { .. }
        | PlanError::Truncated { .. }
        | PlanError::Modified { .. }
        | PlanError::DiskFull { .. } => Exit::Io,
        PlanError::Foreign { .. }
        | PlanError::Version { .. }
        | PlanError::Damaged { .. }
        | PlanError::Invalid { .. } => Exit::Input,
        _ => Exit::Bug,
    };
    Diagnostic::new(exit, error.to_string())
}

/// An engine that does not load or has failed.
pub fn engine(error: EngineError) -> Diagnostic {
    match error {
        EngineError::Fit { what, why, remedy } => {
            Diagnostic::new(Exit::Fit, format!("{what} does not fit this machine")).why(why).remedy(remedy)
        }
        EngineError::Plan { .. } => Diagnostic::new(Exit::Input, error.to_string())
            .remedy("compile the checkpoint again with this version"),
        EngineError::Request(_) | EngineError::Failed(_) => Diagnostic::new(Exit::Bug, error.to_string()),
    }
}

/// A tokenizer or template that does not load.
pub fn text(error: LoadError) -> Diagnostic {
    Diagnostic::new(Exit::Input, error.to_string())
}

/// A setting that cannot be used.
pub fn settings(error: SettingsError) -> Diagnostic {
    Diagnostic::new(Exit::Usage, error.to_string())
}

/// An engine thread that does not start.
pub fn start(error: StartError) -> Diagnostic {
    let exit = match error {
        StartError::Limits(_) => Exit::Input,
        StartError::Thread(_) => Exit::Io,
    };
    Diagnostic::new(exit, error.to_string())
}

/// Arguments that make no request.
pub fn request(error: ApiError) -> Diagnostic {
    Diagnostic::new(if error.status < 500 { Exit::Usage } else { Exit::Bug }, error.message)
}

/// A generation that broke off.
pub fn generation(error: GenerationError) -> Diagnostic {
    let exit = if matches!(error, GenerationError::Refused(_)) { Exit::Usage } else { Exit::Bug };
    Diagnostic::new(exit, error.to_string())
}

/// A file or the console.
pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Diagnostic {
    let what = what.into();
    move |e| Diagnostic::new(Exit::Io, what).why(e)
}
