//! `runtime bench`: a stated load on a plan, or on any OpenAI server, and what its users get.

use std::io::{IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use lathe_diagnostics::{Diagnostic, Exit};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::console::print;
use super::faults::{self, Outcome};
use super::load::{self, EngineSettings};
use super::serve::DEFAULT_MAX_QUEUE;
use super::{knobs, path, resolve_with_log};
use crate::bench::Target;
use crate::bench::client::{AddressError, Client, Wishes};
use crate::bench::dataset::{self, Alphabet, Dataset, Lengths};
use crate::bench::direct::Direct;
use crate::bench::driver::{Driver, Limit, Progress, answer};
use crate::bench::goal::Goal;
use crate::bench::load::{Arrivals, Load, ramp};
use crate::bench::report::{self, Setting};
use crate::bench::summary::Summary;
use crate::bench::watch::{Failure, Watch};
use crate::engine_thread::{self, EngineHandle, Policy};
use crate::http::{Keys, Options, Server, listen};
use crate::metrics::Metrics;
use crate::model::Model;

/// The load generator's threads, and those that speak HTTP where the server runs here.
const THREADS: usize = 2;
/// How often progress is shown on a terminal.
const SHOW_PERIOD: Duration = Duration::from_millis(500);
/// Requests unless set.
const DEFAULT_REQUESTS: u64 = 100;
/// Users of a closed loop unless set.
const DEFAULT_CONCURRENCY: usize = 8;
/// The server's line per request would drown everything else.
const LOG: &str = "info,lathe_runtime::http=warn";

/// Arguments of `bench` beside the plan and the engine's.
pub fn args() -> Vec<Arg> {
    let value = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    let parsed = |arg: Arg, parse: fn(&str) -> Result<f64, String>| arg.value_parser(parse);
    vec![
        value("url", "URL", "An OpenAI server instead of a plan, e.g. http://127.0.0.1:8000; OPENAI_API_KEY is sent to it")
            .conflicts_with("plan"),
        value("model", "NAME", "Name of the model [default: the first that the server lists]").requires("url"),
        flag("direct", "Ask the engine itself, without HTTP in between").conflicts_with("url"),
        flag("chat", "Send prompts to the chat API, as the user's message"),
        parsed(value("rate", "N", "Requests per second, whatever became of earlier ones"), positive)
            .conflicts_with_all(["concurrency", "ramp"]),
        value("arrivals", "KIND", "fixed or poisson distances between requests; with --rate or --ramp [default: fixed]")
            .value_parser(["fixed", "poisson"]),
        value("concurrency", "N", "Users, each of whom asks again when its answer is there [default: 8]")
            .value_parser(value_parser!(u32).range(1..))
            .conflicts_with("ramp"),
        value("ramp", "A..B", "Loads one after another: 1..32 doubles, 1..32x4, 2..10+2; of --concurrency, with --arrivals of --rate")
            .value_parser(ramp_steps),
        value("requests", "N", "Requests of each load [default: 100, or as --duration says]")
            .value_parser(value_parser!(u64).range(1..)),
        value("duration", "TIME", "Time in which requests arrive, e.g. 60s; those under way are waited for")
            .value_parser(duration),
        value("input-len", "N|A..B", "Tokens of random prompts, all alike or spread evenly [default: 512]")
            .value_parser(value_parser!(Lengths)),
        value("output-len", "N|A..B", "Tokens of answers [default: 128]; for a --dataset where it says nothing")
            .value_parser(value_parser!(Lengths)),
        value("shared-prefix", "N", "Tokens before each random prompt that are the same for all")
            .value_parser(value_parser!(u32)),
        value("dataset", "FILE", "Prompts from JSON lines or an array: prompt, messages, ShareGPT's conversations; max_tokens")
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all(["input-len", "shared-prefix", "vocab-size"]),
        value("vocab-size", "N", "Send random prompts as token ids below N; with --url they are English words otherwise")
            .value_parser(value_parser!(u32).range(1..))
            .conflicts_with("chat"),
        flag("stop-at-eos", "Let answers end where the model ends them; random prompts go on to --output-len otherwise"),
        value("temperature", "X", "How tokens are drawn; 0 takes the likeliest [default: 0]")
            .value_parser(value_parser!(f64)),
        value("extra-body", "JSON", "More fields of every request, as an object"),
        value("slo", "LIST", "Objectives, e.g. ttft=500ms,itl=50ms,tpot=40ms,e2e=10s: goodput counts requests that keep all")
            .value_parser(Goal::parse),
        value("warmup", "N", "Requests before the first load that are not counted")
            .default_value("2")
            .value_parser(value_parser!(u64)),
        value("timeout", "TIME", "Longest time of one request").default_value("10m").value_parser(duration),
        value("seed", "N", "Of prompts and arrivals").default_value("0").value_parser(value_parser!(u64)),
        value("json", "FILE|-", "Write all numbers as JSON; - is standard output, and the table goes to standard error"),
    ]
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x > 0.0)
        .ok_or_else(|| "is no number above 0".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if time.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(time) }
}

/// A newtype, as clap takes a vector for several values.
#[derive(Clone, Debug)]
struct Steps(Vec<f64>);

fn ramp_steps(text: &str) -> Result<Steps, String> {
    ramp(text).map(Steps)
}

/// Everything that the arguments say, before anything runs.
struct Bench {
    loads: Vec<Load>,
    limit: Limit,
    dataset: Dataset,
    /// In words.
    described: String,
    fields: Map<String, Value>,
    goal: Option<Goal>,
    warmup: u64,
    timeout: Duration,
    seed: u64,
    json: Option<String>,
    chat: bool,
}

fn usage(what: impl Into<String>, why: impl Into<String>) -> Diagnostic {
    Diagnostic::new(Exit::Usage, what).why(why.into())
}

fn loads(matches: &ArgMatches) -> Outcome<Vec<Load>> {
    let arrivals = matches.get_one::<String>("arrivals").map(|kind| match kind.as_str() {
        "poisson" => Arrivals::Poisson,
        _ => Arrivals::Fixed,
    });
    let open = |rate: f64| Load::Open { rate, arrivals: arrivals.unwrap_or(Arrivals::Fixed) };
    match (matches.get_one::<f64>("rate"), matches.get_one::<Steps>("ramp")) {
        (Some(rate), _) => Ok(vec![open(*rate)]),
        (None, Some(Steps(steps))) if arrivals.is_some() => {
            Ok(steps.iter().map(|rate| open(*rate)).collect())
        }
        (None, Some(Steps(steps))) => steps
            .iter()
            .map(|n| match n.fract() == 0.0 {
                true => Ok(Load::Closed { concurrency: *n as usize }),
                false => Err(usage(
                    format!("--ramp: {n} users"),
                    "they come whole; --arrivals makes it a ramp of rates",
                )),
            })
            .collect(),
        (None, None) if arrivals.is_some() => Err(usage("--arrivals", "needs --rate or --ramp")),
        (None, None) => {
            let users = matches.get_one::<u32>("concurrency").map_or(DEFAULT_CONCURRENCY, |n| *n as usize);
            Ok(vec![Load::Closed { concurrency: users }])
        }
    }
}

impl Bench {
    /// Reads the arguments; `vocab` is that of the plan, where there is one.
    fn new(matches: &ArgMatches, vocab: Option<u32>) -> Outcome<Self> {
        let duration = matches.get_one::<Duration>("duration").copied();
        let requests = matches.get_one::<u64>("requests").copied();
        let limit = Limit {
            requests: requests.unwrap_or(if duration.is_some() { u64::MAX } else { DEFAULT_REQUESTS }),
            duration: duration.unwrap_or(Duration::MAX),
        };
        let chat = matches.get_flag("chat");
        let lengths = |name: &str, default: &str| {
            let parsed = matches.get_one::<Lengths>(name).cloned().map_or_else(|| default.parse(), Ok);
            parsed.map_err(|e: String| usage(format!("--{name}"), e))
        };
        let output = lengths("output-len", "128")?;
        let (dataset, described) = match matches.get_one::<PathBuf>("dataset") {
            Some(file) => {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(file).map_err(faults::io(name.clone()))?;
                let asks = dataset::read(&text, output.max())
                    .map_err(|why| Diagnostic::new(Exit::Input, format!("{name}: {why}")))?;
                let n = asks.len();
                (Dataset::File(asks), format!("{n} requests of {name}"))
            }
            None => {
                let input = lengths("input-len", "512")?;
                let shared_prefix = matches.get_one::<u32>("shared-prefix").copied().unwrap_or(0);
                let ids = matches.get_one::<u32>("vocab-size").copied().or(vocab).filter(|_| !chat);
                let alphabet = ids.map_or(Alphabet::Words, Alphabet::Ids);
                let what = if ids.is_some() { "tokens" } else { "words" };
                let prefix =
                    if shared_prefix > 0 { format!("{shared_prefix} shared + ") } else { String::new() };
                let described = format!("{prefix}{input} random {what}, answers of {output}");
                (Dataset::Random { input, output, shared_prefix, alphabet }, described)
            }
        };
        let mut fields = match matches.get_one::<String>("extra-body") {
            Some(text) => match serde_json::from_str(text) {
                Ok(Value::Object(map)) => map,
                Ok(_) => return Err(usage("--extra-body", "is no JSON object")),
                Err(e) => return Err(usage("--extra-body", e.to_string())),
            },
            None => Map::new(),
        };
        let temperature = matches.get_one::<f64>("temperature").copied().unwrap_or(0.0);
        fields.entry("temperature").or_insert(json!(temperature));
        if matches!(dataset, Dataset::Random { .. }) && !matches.get_flag("stop-at-eos") {
            fields.entry("ignore_eos").or_insert(json!(true));
        }
        Ok(Bench {
            loads: loads(matches)?,
            limit,
            dataset,
            described,
            fields,
            goal: matches.get_one::<Goal>("slo").copied(),
            // clap gives the three below their defaults.
            warmup: matches.get_one::<u64>("warmup").copied().unwrap_or_default(),
            timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::MAX),
            seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
            json: matches.get_one::<String>("json").cloned(),
            chat,
        })
    }

    /// Requests that can never fit are refused before the engine loads.
    fn fits(&self, max_seq_len: u32) -> Outcome<()> {
        match self.dataset.longest() {
            Some(longest) if longest > max_seq_len.into() => Err(usage(
                format!("requests of up to {longest} tokens, prompt and answer"),
                format!("the plan's sequences hold {max_seq_len}"),
            )
            .remedy(
                "lower --input-len, --output-len or --shared-prefix, or compile with a larger --max-seq-len",
            )),
            _ => Ok(()),
        }
    }
}

/// Measures.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve_with_log(matches, &[knobs::ENGINE], None, LOG)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(faults::io("threads"))?;
    let exit = match matches.get_one::<String>("url") {
        Some(url) => {
            let bench = Bench::new(matches, None)?;
            let named = matches.get_one::<String>("model").cloned();
            runtime.block_on(foreign(&bench, url, named))
        }
        None => {
            let plan_path = path(matches, "plan");
            let plan = load::plan(&plan_path)?;
            let bench = Bench::new(matches, Some(plan.card().vocab_size))?;
            bench.fits(plan.card().limits.max_seq_len)?;
            let settings = EngineSettings::new(&settings)?;
            let (engine, model) = load::both(&plan, &settings, load::stem(&plan_path))?;
            let metrics = Arc::new(Metrics::new(model.max_seq_len));
            let policy =
                Policy { max_queue: DEFAULT_MAX_QUEUE, chunk_limit: settings.chunk_limit, warm: true };
            let threads = engine.info().threads;
            let (handle, thread) =
                engine_thread::start(engine, policy, metrics.clone()).map_err(faults::start)?;
            let own = Own { handle: handle.clone(), model: Arc::new(model), metrics, threads };
            let exit = runtime.block_on(async {
                tokio::select! {
                    exit = own.bench(&bench, matches.get_flag("direct")) => exit,
                    reason = handle.failed() => Err(Diagnostic::new(Exit::Bug, "the engine has failed").why(reason)),
                }
            });
            handle.stop();
            drop(thread.join());
            exit
        }
    };
    runtime.shutdown_background();
    exit
}

/// A server somewhere.
async fn foreign(bench: &Bench, url: &str, named: Option<String>) -> Outcome<Exit> {
    let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
    let wishes = Wishes { model: String::new(), chat: bench.chat, fields: bench.fields.clone() };
    let mut client = Client::new(url, key.as_deref(), wishes).map_err(|e| {
        let remedy = match &e {
            AddressError::Tls(_) => {
                "name a server that speaks http, or a proxy on this machine that speaks TLS to it"
            }
            AddressError::Form(_) => "e.g. --url http://127.0.0.1:8000",
            AddressError::Key => "see OPENAI_API_KEY",
        };
        Diagnostic::new(Exit::Usage, format!("--url: {e}")).remedy(remedy)
    })?;
    let model = match named {
        Some(name) => name,
        None => client.first_model().await.map_err(|e| {
            let remedy = match &e {
                Failure::Connect(_) => "is the server running, and is this its address?",
                Failure::Status { status: 401 | 403, .. } => "set OPENAI_API_KEY",
                _ => "give --model",
            };
            Diagnostic::new(Exit::Io, format!("{}: the model's name cannot be asked for", client.base()))
                .why(e)
                .remedy(remedy)
        })?,
    };
    client.set_model(model.clone());
    let target = client.base().to_owned();
    measure(bench, Target::Http(client), target, model).await
}

/// The engine of this process.
struct Own {
    handle: EngineHandle,
    model: Arc<Model>,
    metrics: Arc<Metrics>,
    threads: usize,
}

impl Own {
    async fn bench(self, bench: &Bench, direct: bool) -> Outcome<Exit> {
        let (name, path) = (self.model.name.clone(), crate::backend::Backend::name(&self.handle).to_owned());
        let engine = format!("{path}, {} threads", self.threads);
        if direct {
            let target = Direct {
                handle: self.handle,
                model: self.model,
                chat: bench.chat,
                fields: bench.fields.clone(),
            };
            return measure(bench, Target::Direct(target), format!("{engine}, no HTTP"), name).await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(faults::io("a local port"))?;
        let address = listener.local_addr().map_err(faults::io("a local port"))?;
        let server = Arc::new(Server {
            backend: Box::new(self.handle),
            model: self.model,
            metrics: self.metrics,
            keys: Keys::default(),
            options: Options { max_connections: NonZeroU32::MAX, ..Options::default() },
        });
        let http = tokio::spawn(listen(listener, server, std::future::pending()));
        let wishes = Wishes { model: name.clone(), chat: bench.chat, fields: bench.fields.clone() };
        let client = Client::new(&format!("http://{address}"), None, wishes)
            .map_err(|e| Diagnostic::new(Exit::Bug, e.to_string()))?;
        let exit = measure(bench, Target::Http(client), format!("{engine}, HTTP on {address}"), name).await;
        http.abort();
        exit
    }
}

/// Warms up, runs every load, reports.
async fn measure(bench: &Bench, target: Target, described: String, model: String) -> Outcome<Exit> {
    let (stopper, stop) = watch::channel(false);
    let interrupts = tokio::spawn(async move {
        // Without a handler the interrupt ends the process at once, which is all that there is left to do.
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.send_replace(true);
            // A second one: the report takes no time, unless its reader does not read.
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(Exit::Interrupted as i32);
            }
        }
        std::future::pending::<()>().await;
    });
    let progress = Arc::new(Progress::default());
    let driver = Driver {
        target,
        dataset: Arc::new(bench.dataset.clone()),
        seed: bench.seed,
        timeout: bench.timeout,
        stop: stop.clone(),
        progress: progress.clone(),
    };
    let shown = Shown::new();
    let mut interrupted = stop.clone();
    tokio::select! {
        warm = warm_up(bench, &driver, &shown) => warm?,
        _ = interrupted.wait_for(|stop| *stop) => {
            shown.clear();
            return Ok(Exit::Interrupted);
        }
    }
    let (mut summaries, mut first) = (Vec::new(), bench.warmup);
    let mut setting = Setting {
        target: described,
        model,
        dataset: bench.described.clone(),
        seed: bench.seed,
        warmup: bench.warmup,
        goal: bench.goal,
        interrupted: false,
    };
    for load in &bench.loads {
        let started = Instant::now();
        let ticking = async {
            loop {
                shown.line(&format!("{load}: {:.0} s, {}", started.elapsed().as_secs_f64(), progress.line()));
                tokio::time::sleep(SHOW_PERIOD).await;
            }
        };
        let run = tokio::select! {
            run = driver.run(*load, bench.limit, first) => run,
            () = ticking => return Err(Diagnostic::new(Exit::Bug, "progress ended")),
        };
        shown.clear();
        first += run.records.len() as u64 + run.n_unfinished as u64;
        let summary = Summary::of(&run, bench.goal.as_ref());
        setting.interrupted = *stop.borrow();
        show(bench, &report::table(&setting, &summary))?;
        summaries.push(summary);
        if setting.interrupted {
            break;
        }
        if bench.loads.len() > 1 {
            show(bench, "\n")?;
        }
    }
    if summaries.len() > 1 {
        show(bench, &report::steps(&summaries))?;
    }
    write_json(bench, &report::json(&setting, &summaries))?;
    interrupts.abort();
    if setting.interrupted {
        return Ok(Exit::Interrupted);
    }
    if summaries.iter().all(|s| s.completed == 0) {
        return Err(Diagnostic::new(Exit::Io, "no request was answered"));
    }
    Ok(Exit::Ok)
}

/// Asks a few requests one by one. A server that cannot answer these is not measured.
async fn warm_up(bench: &Bench, driver: &Driver, shown: &Shown) -> Outcome<()> {
    for index in 0..bench.warmup {
        shown.line(&format!("warm-up: {index} of {}", bench.warmup));
        let mut watch = Watch::new(Instant::now());
        let ask = driver.dataset.ask(bench.seed, index);
        if let Err(failure) = answer(&driver.target, ask, &mut watch, driver.timeout).await {
            shown.clear();
            let exit = match failure {
                Failure::Status { status: 400..500, .. } | Failure::Refused(_) => Exit::Input,
                _ => Exit::Io,
            };
            return Err(Diagnostic::new(exit, "the first requests fail; nothing was measured")
                .why(failure)
                .remedy("--warmup 0 measures all the same"));
        }
    }
    shown.clear();
    Ok(())
}

/// The table goes where JSON does not.
fn show(bench: &Bench, text: &str) -> Outcome<()> {
    if bench.json.as_deref() == Some("-") {
        eprint!("{text}");
        return Ok(());
    }
    print(text)
}

fn write_json(bench: &Bench, value: &Value) -> Outcome<()> {
    let text = format!("{value:#}\n");
    match bench.json.as_deref() {
        None => Ok(()),
        Some("-") => print(&text),
        Some(file) => std::fs::write(file, text).map_err(faults::io(format!("{file}: cannot write"))),
    }
}

/// One line of progress that replaces itself; nothing where standard error is no terminal.
struct Shown {
    is_terminal: bool,
}

impl Shown {
    fn new() -> Self {
        Shown { is_terminal: std::io::stderr().is_terminal() }
    }

    fn line(&self, text: &str) {
        self.write(&format!("\r\x1b[K{text}"));
    }

    fn clear(&self) {
        self.write("\r\x1b[K");
    }

    fn write(&self, text: &str) {
        if self.is_terminal {
            let mut err = std::io::stderr();
            // Progress that cannot be shown is nobody's loss.
            drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
        }
    }
}
