//! `runtime eval`: perplexity of a text under a plan's model.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use lathe_diagnostics::{Diagnostic, Exit};
use serde_json::json;

use super::console::print;
use super::direct::each_logprob;
use super::faults::{self, Outcome};
use super::load::{self, EngineSettings};
use super::{knobs, path, resolve};
use crate::perplexity::{Sum, windows};

/// Arguments of `eval` beside the plan and the engine's.
pub fn args() -> Vec<Arg> {
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u32).range(1..)).help(help)
    };
    vec![
        Arg::new("text")
            .long("text")
            .value_name("FILE")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("UTF-8 text"),
        number("context", "Tokens that the model sees at once [default: --max-seq-len of the plan]"),
        number("stride", "Tokens from one window to the next [default: half of --context]"),
        Arg::new("no-special-tokens")
            .long("no-special-tokens")
            .action(ArgAction::SetTrue)
            .help("Leave out what the tokenizer puts around texts, as a token that begins them"),
        Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"),
    ]
}

/// Scores the text.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve(matches, &[knobs::ENGINE], None)?;
    let file = path(matches, "text");
    let name = file.display().to_string();
    let bytes = std::fs::read(&file).map_err(faults::io(name.clone()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Diagnostic::new(Exit::Input, format!("{name}: is not UTF-8")).why(e.utf8_error()))?;
    let plan_path = path(matches, "plan");
    let plan = load::plan(&plan_path)?;
    let max = plan.card().limits.max_seq_len;
    let context = matches.get_one::<u32>("context").copied().unwrap_or(max);
    if context > max || context < 2 {
        return Err(Diagnostic::new(Exit::Usage, format!("--context {context}"))
            .why(format!("must be in 2..={max}, what a sequence of the plan holds"))
            .remedy("compile with a larger --max-seq-len for a longer one"));
    }
    let stride = matches.get_one::<u32>("stride").copied().unwrap_or(context / 2);
    if stride > context {
        return Err(Diagnostic::new(Exit::Usage, format!("--stride {stride}"))
            .why(format!("leaves out tokens: windows hold {context}")));
    }
    let (mut engine, model) = load::both(&plan, &EngineSettings::new(&settings)?, load::stem(&plan_path))?;
    if model.text.0.is_none() {
        return Err(Diagnostic::new(Exit::Input, "tokenizer: the plan has none")
            .remedy("compile a checkpoint with a tokenizer, or give --tokenizer to compile"));
    }
    let ids = model
        .text
        .encode(&text, !matches.get_flag("no-special-tokens"))
        .map_err(|e| Diagnostic::new(Exit::Input, format!("{name}: {e}")))?;
    let windows = windows(ids.len(), context as usize, stride as usize);
    let (mut sum, mut n_seen) = (Sum::default(), 0);
    let (started, is_terminal) = (Instant::now(), std::io::stderr().is_terminal());
    for (at, window) in windows.iter().enumerate() {
        let first = window.scored.start - window.seen.start;
        each_logprob(engine.as_mut(), &ids[window.seen.clone()], first, |logprob| sum.add(logprob))
            .map_err(faults::engine)?;
        n_seen += window.seen.len();
        if let (true, Some(perplexity)) = (is_terminal, sum.perplexity()) {
            let mut err = std::io::stderr();
            // Progress that cannot be shown is nobody's loss.
            drop(write!(err, "\r\x1b[K{} of {} windows, perplexity {perplexity:.3}", at + 1, windows.len()));
            drop(err.flush());
        }
    }
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    let seconds = started.elapsed().as_secs_f64();
    let (Some(perplexity), Some(bits_per_byte)) = (sum.perplexity(), sum.bits_per_byte(text.len())) else {
        return Err(Diagnostic::new(Exit::Input, format!("{name}: {} tokens", ids.len()))
            .why("a token is scored by what stands before it: at least two are needed"));
    };
    let tokens_per_s = n_seen as f64 / seconds;
    let path = &engine.info().path;
    if matches.get_flag("json") {
        let result = json!({
            "perplexity": perplexity,
            "bits_per_byte": bits_per_byte,
            "mean_nats_per_token": sum.nats / sum.n as f64,
            "tokens": ids.len(),
            "scored_tokens": sum.n,
            "computed_tokens": n_seen,
            "bytes": text.len(),
            "context": context,
            "stride": stride,
            "windows": windows.len(),
            "seconds": seconds,
            "tokens_per_s": tokens_per_s,
            "path": path,
        });
        print(&format!("{result}\n"))?;
    } else {
        let n = windows.len();
        print(&format!(
            "perplexity     {perplexity:.4}\n\
             bits per byte  {bits_per_byte:.4}\n\
             text           {} tokens, {} scored, {} bytes\n\
             windows        {n} of up to {context} tokens, {stride} apart\n\
             speed          {tokens_per_s:.0} tok/s: {n_seen} tokens in {seconds:.2} s on {path}\n",
            ids.len(),
            sum.n,
            text.len(),
        ))?;
    }
    Ok(Exit::Ok)
}
