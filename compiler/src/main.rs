//! `compile`: a checkpoint becomes one engine plan.

mod cli;
mod interrupt;
mod progress;
mod verify;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use lathe_compiler::error::CompileError;
use lathe_compiler::import::import;
use lathe_compiler::options::{Observer, Phase};
use lathe_compiler::pipeline;
use lathe_compiler::report::{Report, headline};
use lathe_diagnostics::{Diagnostic, Exit, LogFormat, init_logging, version};
use lathe_kernels::IsaPath;
use lathe_nvrtc::NvrtcError;
use lathe_plan::PlanError;
use lathe_plan::header::VERSION;

use crate::cli::{Args, Command, VerifyArgs};
use crate::progress::Progress;

fn main() -> ExitCode {
    let (major, minor) = VERSION;
    let version = version(&format!("{major}.{minor}"), &["cpu", "cuda"], IsaPath::detect().isa().name());
    // Clap keeps the version for the life of the process.
    let command = Args::command().version(&*version.leak());
    let args = match command.try_get_matches().and_then(|m| Args::from_arg_matches(&m)) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    let log_format = match &args.command {
        Some(Command::Verify(verify)) => verify.log_format,
        None => args.log_format,
    };
    init_logging(log_format, "info");
    interrupt::install();
    let outcome = std::panic::catch_unwind(|| match &args.command {
        Some(Command::Verify(args)) => run_verify(args),
        None => run(&args).map(|()| Exit::Ok),
    });
    let exit = match outcome {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => diagnostic(error).report(),
        Err(_) => Exit::Bug,
    };
    exit.into()
}

fn run(args: &Args) -> Result<(), CompileError> {
    args.check()?;
    let options = args.options()?;
    let progress = Progress::new(std::io::stderr().is_terminal() && args.log_format == LogFormat::Text);

    progress.phase_started(Phase::Import);
    let checkpoint = args.checkpoint()?;
    let imported = import(&checkpoint, &options)?;
    progress.phase_ended(Phase::Import);
    tracing::info!("{}", headline(&imported));

    let card = imported.card.clone();
    let outcome = pipeline::compile(imported, checkpoint.tensors.as_ref(), &options, &progress)?;
    let graph_text = (options.to != Phase::Emit).then(|| outcome.graph_text.clone());
    let plan = options.output.to_string_lossy();
    let report = Report::new(&card, outcome, &progress.times(), options.to, &plan);
    let text = match (args.json, graph_text) {
        (true, _) => serde_json::to_string_pretty(&report)
            .map_err(|e| CompileError::Bug(format!("the report is not JSON: {e}")))?,
        // What was asked for is the graph; the table is for whoever watches.
        (false, Some(graph)) => {
            eprintln!("{report}");
            graph.trim_end().to_owned()
        }
        (false, None) => report.to_string(),
    };
    // A closed pipe is the reader's choice.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn run_verify(args: &VerifyArgs) -> Result<Exit, CompileError> {
    let (text, difference) = verify::run(args)?;
    // A closed pipe is the reader's choice.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(difference.map_or(Exit::Ok, |d| d.report()))
}

/// An error as the user sees it.
fn diagnostic(error: CompileError) -> Diagnostic {
    let exit = match &error {
        CompileError::Usage { .. } => Exit::Usage,
        CompileError::Input { .. } | CompileError::Unsupported { .. } => Exit::Input,
        CompileError::Io { .. } | CompileError::Plan(PlanError::Io { .. } | PlanError::DiskFull { .. }) => {
            Exit::Io
        }
        CompileError::Nvrtc(NvrtcError::NotFound { .. }) => Exit::Fit,
        CompileError::Plan(_) | CompileError::Nvrtc(_) | CompileError::Bug(_) => Exit::Bug,
    };
    match error {
        CompileError::Usage { what, why, remedy } | CompileError::Input { what, why, remedy } => {
            let diagnostic = Diagnostic::new(exit, what).why(why);
            match remedy {
                Some(advice) => diagnostic.remedy(advice),
                None => diagnostic,
            }
        }
        CompileError::Unsupported { what, why, node } => {
            let node = node.map_or(String::new(), |n| format!(" at {n}"));
            Diagnostic::new(exit, format!("unsupported {what}{node}")).why(why)
        }
        CompileError::Bug(what) => Diagnostic::new(exit, "a bug of the compiler")
            .why(what)
            .remedy("please report it with the command line"),
        other => Diagnostic::new(exit, other.to_string()),
    }
}
