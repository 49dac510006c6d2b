//! The command line of `runtime`.

mod bench;
mod chat;
mod check;
mod console;
mod device;
mod direct;
mod eval;
mod faults;
mod generate;
mod knobs;
mod load;
mod logits;
mod report;
mod serve;
mod session;
mod settings;

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lathe_diagnostics::{Exit, LogFormat, init_logging};

use faults::Outcome;
use knobs::Knob;
use settings::Settings;

fn command() -> Command {
    let plan = || {
        Arg::new("plan")
            .value_name("PLAN")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("The engine plan")
    };
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON");
    let ids = || {
        Arg::new("token-ids").long("token-ids").value_name("IDS").help("Prompt as comma-separated token ids")
    };
    let engine = |command: Command| command.args(knobs::args(knobs::ENGINE));
    let draw = |command: Command| command.args(generate::args());
    Command::new("runtime")
        .about("Serves and runs engine plans")
        .version(&*report::version().leak())
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(engine(
            Command::new("serve")
                .about("Serves a plan to OpenAI clients")
                .arg(plan())
                .arg(
                    Arg::new("config")
                        .long("config")
                        .value_name("FILE")
                        .value_parser(value_parser!(PathBuf))
                        .help("Settings in TOML, keys as the flags; flags and LATHE_* come first"),
                )
                .args(knobs::args(knobs::SERVE)),
        ))
        .subcommand(engine(draw(
            Command::new("generate")
                .about("Continues one prompt")
                .arg(plan())
                .arg(Arg::new("prompt").long("prompt").value_name("TEXT").help("Prompt as text"))
                .arg(ids().conflicts_with("prompt"))
                .arg(json()),
        )))
        .subcommand(engine(draw(
            Command::new("chat")
                .about("Talks in the terminal; Ctrl-C stops one answer")
                .arg(plan())
                .arg(Arg::new("system").long("system").value_name("TEXT").help("System message")),
        )))
        .subcommand(engine(
            Command::new("logits")
                .about("Writes the logits of every position as safetensors")
                .arg(plan())
                .arg(ids().required(true))
                .arg(
                    Arg::new("output")
                        .short('o')
                        .long("output")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("Tensor \"logits\", f32 [tokens, vocab]"),
                ),
        ))
        .subcommand(engine(
            Command::new("check")
                .about("Says whether a plan fits this machine, verifies its hashes, runs its self-test")
                .arg(plan())
                .arg(json()),
        ))
        .subcommand(engine(
            Command::new("eval").about("Perplexity of a text").arg(plan()).args(eval::args()),
        ))
        .subcommand(engine(
            Command::new("bench")
                .about("Measures latency and throughput under load, of a plan or of any OpenAI server")
                .arg(plan().required(false).required_unless_present("url"))
                .args(bench::args()),
        ))
        .subcommand(Command::new("inspect").about("Prints what a plan holds").arg(plan()).arg(json()))
        .subcommand(
            Command::new("diff")
                .about("Prints what differs between two plans; nothing where they do the same")
                .arg(plan())
                .arg(
                    Arg::new("other")
                        .value_name("OTHER")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("The plan to compare with"),
                ),
        )
        .subcommand(
            Command::new("strip")
                .about("Writes a plan without the PTX of kernels that have machine code: smaller, and not for the emulator")
                .arg(plan())
                .arg(
                    Arg::new("output")
                        .short('o')
                        .long("output")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("The new plan; may be the old one"),
                ),
        )
}

/// Runs the program.
pub fn main() -> Exit {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            // Help and version are no faults; a closed pipe is none either.
            drop(e.print());
            return if e.use_stderr() { Exit::Usage } else { Exit::Ok };
        }
    };
    let outcome = match matches.subcommand() {
        Some(("serve", m)) => serve::run(m),
        Some(("generate", m)) => generate::run(m),
        Some(("chat", m)) => chat::run(m),
        Some(("logits", m)) => logits::run(m),
        Some(("check", m)) => check::run(m),
        Some(("eval", m)) => eval::run(m),
        Some(("bench", m)) => bench::run(m),
        Some(("inspect", m)) => report::inspect(m),
        Some(("diff", m)) => report::diff(m),
        Some(("strip", m)) => report::strip(m),
        // clap requires one of the above.
        _ => Ok(Exit::Usage),
    };
    outcome.unwrap_or_else(|fault| fault.report())
}

/// The path argument `name`, which clap requires.
fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

/// Resolves `tables` from flags, environment and file, and starts the log as they say.
fn resolve(matches: &ArgMatches, tables: &[&[Knob]], file: Option<&str>) -> Outcome<Settings> {
    resolve_with_log(matches, tables, file, "info")
}

/// As `resolve`, with a log that holds what `default` says unless LATHE_LOG says otherwise.
fn resolve_with_log(
    matches: &ArgMatches,
    tables: &[&[Knob]],
    file: Option<&str>,
    default: &str,
) -> Outcome<Settings> {
    let settings = Settings::resolve(
        tables.iter().flat_map(|table| table.iter()),
        |name| matches.get_one::<String>(name).cloned(),
        |name| std::env::var(name).ok(),
        file,
    )
    .map_err(faults::settings)?;
    let format = settings.parse::<LogFormat>("log-format").map_err(faults::settings)?.unwrap_or_default();
    init_logging(format, default);
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn documented_flags_parse() {
        for line in [
            "runtime serve e.plan --host 127.0.0.1 --port 0 --threads 2 --kv-memory 1GiB --api-key-file k \
             --served-model-name m --isa scalar --drain-timeout 1s --config serve.toml --log-format json",
            "runtime generate e.plan --prompt hello --max-tokens 5 --temperature 0 --seed 1 --json",
            "runtime generate e.plan --token-ids 1,2,3",
            "runtime chat e.plan",
            "runtime logits e.plan --token-ids 1,2,3 -o out.safetensors",
            "runtime check e.plan",
            "runtime inspect e.plan --json",
            "runtime eval e.plan --text t.txt --context 512 --stride 256 --json --threads 2",
            "runtime bench e.plan --rate 4 --arrivals poisson --duration 30s --slo ttft=500ms,itl=50ms --threads 2",
            "runtime bench e.plan --direct --ramp 1..32 --requests 64 --input-len 256..768 --output-len 128 --json -",
            "runtime bench --url http://127.0.0.1:8000 --model m --chat --dataset requests.jsonl --concurrency 8",
            "runtime diff a.plan b.plan",
            "runtime strip a.plan -o b.plan",
        ] {
            let parsed = command().try_get_matches_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        for line in [
            "runtime",
            "runtime serve",
            "runtime generate e.plan --prompt a --token-ids 1",
            "runtime x",
            "runtime bench",
            "runtime bench e.plan --url http://h",
            "runtime bench --url http://h --direct",
            "runtime bench e.plan --rate 4 --concurrency 4",
            "runtime bench e.plan --dataset f --input-len 4",
        ] {
            assert!(command().try_get_matches_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
