//! `compile verify`: is this plan what that checkpoint gives?

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use lathe_compiler::error::{CompileError, Result};
use lathe_compiler::import::import;
use lathe_compiler::verification::{Request, Verification, verify};
use lathe_diagnostics::{Diagnostic, Exit};
use lathe_plan::{Plan, PlanError};
use lathe_text::{TextModel, TokenizerConfig};

use crate::cli::{Args, VerifyArgs};

/// Compares, prints, and gives what to report where they differ.
///
/// # Errors
/// A plan or a checkpoint that cannot be read or compared.
pub fn run(args: &VerifyArgs) -> Result<(String, Option<Diagnostic>)> {
    let name = args.plan.display().to_string();
    let plan = Plan::open(&args.plan).map_err(|error| match error {
        PlanError::Io { .. } => CompileError::Plan(error),
        error => CompileError::input(name.as_str(), error.to_string()),
    })?;
    if args.threads == Some(0) {
        return Err(CompileError::usage("--threads 0", "must be at least 1"));
    }
    let token_ids = match &args.text {
        Some(file) => text_ids(file, &plan)?,
        None => args.tokens.clone(),
    };
    let compiled = compiled_as(args, &plan)?;
    let options = compiled.options()?;
    let checkpoint = compiled.checkpoint()?;
    let imported = import(&checkpoint, &options)?;
    let request =
        Request { token_ids, layers: args.layers, threads: args.threads.unwrap_or(0), isa: args.isa };
    let found = verify(&imported, checkpoint.tensors.as_ref(), &options, &Arc::new(plan), &request)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&found)
            .map_err(|e| CompileError::Bug(format!("the report is not JSON: {e}")))?,
        false => found.to_string(),
    };
    Ok((text, difference(&name, &found, args.layers)))
}

/// The arguments that the plan was compiled with, as it says itself.
fn compiled_as(args: &VerifyArgs, plan: &Plan) -> Result<Args> {
    let mut line: Vec<OsString> = vec!["compile".into()];
    match (&args.model, &args.config) {
        (Some(model), _) => line.extend(["--model".into(), model.into()]),
        (None, Some(config)) => line.extend(["--config".into(), config.into()]),
        (None, None) => {}
    }
    line.extend(plan.card().flags.iter().map(OsString::from));
    let mut compiled = Args::try_parse_from(line).map_err(|error| {
        let why = error.to_string();
        let first = why.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        CompileError::input(format!("{}: the flags that it was compiled with", args.plan.display()), first)
            .remedy("give --model for a checkpoint and --config for made-up weights, as when it was compiled")
    })?;
    // No number depends on it, and a plan does not say where it came from.
    compiled.tokenizer = Some("none".into());
    Ok(compiled)
}

/// The text's tokens, by the plan's tokenizer.
fn text_ids(file: &Path, plan: &Plan) -> Result<Vec<u32>> {
    let name = file.display().to_string();
    let bytes = std::fs::read(file).map_err(|e| CompileError::io(file, e))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| CompileError::input(&name, format!("is not UTF-8: {}", e.utf8_error())))?;
    if text.is_empty() {
        return Err(CompileError::input(&name, "is empty"));
    }
    let tokenizer = plan.tokenizer_json().ok_or_else(|| {
        CompileError::input("tokenizer", "the plan has none")
            .remedy("give --tokens, or compile with a tokenizer")
    })?;
    let text_model = TextModel::load(tokenizer, &TokenizerConfig::default())
        .map_err(|e| CompileError::input("tokenizer", e.to_string()))?;
    let ids = text_model.encode(&text, true).map_err(|e| CompileError::input(&name, e.to_string()))?;
    let limit = plan.card().limits.max_seq_len as usize;
    match ids.len() {
        0 => Err(CompileError::input(&name, "has no token of the plan's tokenizer")),
        n if n > limit => {
            Err(CompileError::input(&name, format!("has {n} tokens, a sequence of the plan holds {limit}"))
                .remedy("give a shorter text, or compile with a larger --max-seq-len"))
        }
        _ => Ok(ids),
    }
}

fn difference(plan: &str, found: &Verification, layers: bool) -> Option<Diagnostic> {
    if found.passes() {
        return None;
    }
    let diagnostic = Diagnostic::new(Exit::Differs, format!("{plan}: is not what the checkpoint gives"));
    let (why, remedy) = match (found.first_launch(), found.weight_faults.first()) {
        (Some(launch), _) => (
            format!(
                "{} ({}{}) is the first launch that leaves its tolerance: max {:.2e} of {:.2e}, global {:.2e} of {:.2e}{}",
                launch.value,
                launch.kernel,
                launch.weights.iter().map(|w| format!(", weight {w}")).collect::<String>(),
                launch.max_error,
                launch.max_bound,
                launch.global_error,
                launch.global_bound,
                found
                    .weight_faults
                    .iter()
                    .filter(|w| launch.weights.contains(&w.name))
                    .map(|w| format!("; weight {w}"))
                    .collect::<String>()
            ),
            "",
        ),
        (None, Some(fault)) => (
            format!("weight {fault}"),
            "compile the checkpoint again, or verify with the checkpoint that the plan was made from",
        ),
        (None, None) => (
            format!(
                "logits: largest difference {:.2e}, bound {:.2e}",
                found.logits.max_difference, found.logits.bound
            ),
            if layers {
                "every launch is within its tolerance by itself: report it with the checkpoint's name"
            } else {
                "--layers names the first launch that is off"
            },
        ),
    };
    let diagnostic = diagnostic.why(why);
    Some(if remedy.is_empty() { diagnostic } else { diagnostic.remedy(remedy) })
}
