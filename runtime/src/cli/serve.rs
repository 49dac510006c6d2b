//! `runtime serve`: load, listen, drain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::ArgMatches;
use lathe_diagnostics::{Diagnostic, Exit, parse_bytes};
use lathe_plan::Plan;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::console::print;
use super::faults::{self, Outcome};
use super::load::{self, EngineSettings};
use super::settings::{Settings, SettingsError};
use super::{knobs, path, resolve};
use crate::engine_thread::{self, EngineHandle, Policy};
use crate::http::{Keys, Options, Server, listen};
use crate::metrics::Metrics;

/// Sequences that may wait, unless set.
pub const DEFAULT_MAX_QUEUE: usize = 1024;
/// Threads that speak HTTP; the engine's own threads do the work.
const HTTP_THREADS: usize = 2;
/// Threads that encode prompts; more would only take cores from the engine.
const ENCODE_THREADS: usize = 4;
/// How often the plan's file is looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// How often a drain looks whether it is through.
const DRAIN_PERIOD: Duration = Duration::from_millis(10);
/// Time for open connections to take their last bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

struct ServeSettings {
    host: String,
    port: u16,
    name: String,
    keys: Keys,
    drain_timeout: Duration,
    max_queue: usize,
    options: Options,
}

impl ServeSettings {
    fn new(settings: &Settings, plan: &Path) -> Outcome<Self> {
        let keys = Self::keys(settings)?;
        Self::read(settings, plan, keys).map_err(faults::settings)
    }

    fn keys(settings: &Settings) -> Outcome<Keys> {
        let file = settings.parse::<PathBuf>("api-key-file").map_err(faults::settings)?;
        let text = match &file {
            Some(file) => {
                Some(std::fs::read_to_string(file).map_err(faults::io(format!("{}", file.display())))?)
            }
            None => None,
        };
        let env = std::env::var("LATHE_API_KEY").ok();
        Keys::new(text.as_deref(), env.as_deref())
            .map_err(|e| Diagnostic::new(Exit::Input, e.to_string()).remedy("write one key per line"))
    }

    fn read(settings: &Settings, plan: &Path, keys: Keys) -> Result<Self, SettingsError> {
        let duration = |text: &str| humantime::parse_duration(text).map_err(|e| e.to_string());
        let above_zero = |text: &str| match duration(text)? {
            Duration::ZERO => Err("must be above 0".to_owned()),
            time => Ok(time),
        };
        let defaults = Options::default();
        let header = |text: &str| HeaderValue::from_str(text).map_err(|e| e.to_string());
        Ok(ServeSettings {
            host: settings.parse("host")?.unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: settings.parse("port")?.unwrap_or(8000),
            name: settings.parse("served-model-name")?.unwrap_or_else(|| load::stem(plan)),
            keys,
            drain_timeout: settings.read("drain-timeout", duration)?.unwrap_or(Duration::from_secs(30)),
            max_queue: settings.parse("max-queue")?.unwrap_or(DEFAULT_MAX_QUEUE),
            options: Options {
                max_body: settings.read("max-body", parse_bytes)?.map_or(defaults.max_body, |n| n as usize),
                request_timeout: settings.read("request-timeout", duration)?,
                cors_origin: settings.read("cors-origin", header)?,
                header_timeout: settings
                    .read("header-timeout", above_zero)?
                    .unwrap_or(defaults.header_timeout),
                max_connections: settings.parse("max-connections")?.unwrap_or(defaults.max_connections),
            },
        })
    }
}

/// Serves until a signal or a failure.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let file = match matches.get_one::<PathBuf>("config") {
        Some(file) => Some(std::fs::read_to_string(file).map_err(faults::io(format!("{}", file.display())))?),
        None => None,
    };
    let settings = resolve(matches, &[knobs::SERVE, knobs::ENGINE], file.as_deref())?;
    for (name, value, source) in settings.iter() {
        tracing::info!(name, value, %source, "setting");
    }
    let plan_path = path(matches, "plan");
    let serve = ServeSettings::new(&settings, &plan_path)?;
    let engine_settings = EngineSettings::new(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(ENCODE_THREADS)
        .enable_all()
        .build()
        .map_err(faults::io("threads"))?;
    let exit = runtime.block_on(serve_plan(&plan_path, serve, engine_settings));
    // Blocking tasks that still encode prompts of dropped requests are not waited for.
    runtime.shutdown_background();
    exit
}

async fn serve_plan(plan_path: &Path, serve: ServeSettings, settings: EngineSettings) -> Outcome<Exit> {
    // Before loading, so that a signal at any time is ours.
    let mut signals = Signals::new().map_err(faults::io("signal handlers"))?;
    let plan = load::plan(plan_path)?;
    let report = load::memory_report(&plan, &settings).map(|r| r.to_string()).unwrap_or_default();
    for line in report.lines() {
        tracing::info!("memory {line}");
    }
    let (engine, model) = load::both(&plan, &settings, serve.name)?;
    lathe_plan::truncation::watch(&plan).map_err(faults::io("handler of a cut plan"))?;
    let metrics = Arc::new(Metrics::new(model.max_seq_len));
    let policy = Policy { max_queue: serve.max_queue, chunk_limit: settings.chunk_limit, warm: true };
    let (handle, thread) = engine_thread::start(engine, policy, metrics.clone()).map_err(faults::start)?;
    let server = Arc::new(Server {
        backend: Box::new(handle.clone()),
        model: Arc::new(model),
        metrics,
        keys: serve.keys,
        options: serve.options,
    });
    let listener = TcpListener::bind((serve.host.as_str(), serve.port)).await.map_err(|e| {
        Diagnostic::new(Exit::Io, format!("{}:{}: cannot listen", serve.host, serve.port))
            .why(e)
            .remedy("choose another --port, or 0 for a free one")
    })?;
    let address = listener.local_addr().map_err(faults::io("local address"))?;
    print(&format!("http://{address}\n"))?;
    tracing::info!(%address, model = server.model.name, "listening");

    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let mut http = tokio::spawn(listen(listener, server, async move { drop(closed.await) }));
    let outcome = tokio::select! {
        ended = &mut http => {
            let why = ended.map_or_else(|e| e.to_string(), |()| "it ended".into());
            Err(Diagnostic::new(Exit::Io, "the HTTP server ended").why(why))
        }
        reason = handle.failed() => {
            // Requests under way get their errors before the process goes.
            wait_idle(&handle, CLOSE_TIMEOUT).await;
            Err(Diagnostic::new(Exit::Bug, "the engine has failed").why(reason))
        }
        fault = watch(&plan) => Err(fault),
        first = signals.next() => Ok(drain(&handle, &mut signals, first, serve.drain_timeout).await),
    };
    // The receiver is gone when the server has ended by itself.
    let _ = close.send(());
    let graceful = !matches!(outcome, Ok(Exit::Interrupted));
    handle.stop();
    if graceful {
        drop(tokio::time::timeout(CLOSE_TIMEOUT, &mut http).await);
        drop(tokio::task::spawn_blocking(move || thread.join()).await);
    }
    outcome
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Takes no new work and waits for what runs. A second signal ends at once.
async fn drain(handle: &EngineHandle, signals: &mut Signals, first: &str, timeout: Duration) -> Exit {
    handle.drain();
    tracing::info!(signal = first, running = handle.n_active(), "draining");
    tokio::select! {
        through = wait_idle(handle, timeout) => {
            if through {
                tracing::info!("drained");
            } else {
                tracing::warn!(running = handle.n_active(), "drain timeout; the rest is aborted");
            }
            Exit::Ok
        }
        second = signals.next() => {
            tracing::warn!(signal = second, "second signal; ending at once");
            Exit::Interrupted
        }
    }
}

async fn wait_idle(handle: &EngineHandle, timeout: Duration) -> bool {
    let idle = async {
        while handle.n_active() > 0 {
            tokio::time::sleep(DRAIN_PERIOD).await;
        }
    };
    tokio::time::timeout(timeout, idle).await.is_ok()
}

/// Ends when the plan's file is not what was loaded any more.
async fn watch(plan: &Plan) -> Diagnostic {
    loop {
        tokio::time::sleep(WATCH_PERIOD).await;
        if let Err(error) = plan.still_whole() {
            return faults::plan(error);
        }
    }
}
