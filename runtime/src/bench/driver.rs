//! Runs one load against a target.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Target;
use super::dataset::{Ask, Dataset};
use super::load::Load;
use super::summary::{Record, Run};
use super::watch::{Answer, Failure, Watch};

/// What does not change from one load to the next.
pub struct Driver {
    /// Who is asked.
    pub target: Target,
    /// What is asked.
    pub dataset: Arc<Dataset>,
    /// Of arrivals and prompts.
    pub seed: u64,
    /// Longest time of one request.
    pub timeout: Duration,
    /// Turns true when the user has seen enough.
    pub stop: watch::Receiver<bool>,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// When a load ends: after so many requests, or when no more arrive. Requests under way are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Requests.
    pub requests: u64,
    /// Time in which requests arrive.
    pub duration: Duration,
}

/// How far a load is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    in_flight: AtomicUsize,
    peak: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicUsize,
    tokens: AtomicU64,
}

impl Progress {
    /// Begins again.
    fn reset(&self) {
        for counter in [&self.in_flight, &self.peak, &self.done, &self.failed] {
            counter.store(0, Ordering::Relaxed);
        }
        self.tokens.store(0, Ordering::Relaxed);
    }

    fn begin(&self) {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn end(&self, outcome: &Result<Answer, Failure>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match outcome {
            Ok(answer) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                self.tokens.fetch_add(answer.output_tokens, Ordering::Relaxed);
            }
            Err(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        let get = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let (done, running, failed) = (get(&self.done), get(&self.in_flight), get(&self.failed));
        let tokens = self.tokens.load(Ordering::Relaxed);
        format!("{done} done, {running} under way, {failed} failed, {tokens} tokens")
    }
}

/// What every request of a load shares.
struct Cx {
    target: Target,
    dataset: Arc<Dataset>,
    seed: u64,
    /// Index of the load's first request.
    first: u64,
    timeout: Duration,
    start: Instant,
    progress: Arc<Progress>,
    records: mpsc::UnboundedSender<(Record, Instant)>,
}

impl Cx {
    async fn request(&self, index: u64, due: Instant) {
        self.progress.begin();
        let mut watch = Watch::new(due);
        let ask = self.dataset.ask(self.seed, self.first + index);
        let outcome = answer(&self.target, ask, &mut watch, self.timeout).await;
        let outcome = outcome.and_then(|()| {
            watch.answer().ok_or_else(|| Failure::Cut("it ended without a finish_reason".to_owned()))
        });
        self.progress.end(&outcome);
        let record = Record { due: due.saturating_duration_since(self.start), outcome };
        // The receiver lives as long as the load.
        drop(self.records.send((record, Instant::now())));
    }
}

/// Asks, for as long as a request may take.
///
/// # Errors
/// No answer, no whole answer, or none in time.
pub async fn answer(target: &Target, ask: Ask, watch: &mut Watch, timeout: Duration) -> Result<(), Failure> {
    match tokio::time::timeout(timeout, target.ask(ask, watch)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::Timeout(humantime::format_duration(timeout).to_string())),
    }
}

impl Driver {
    /// Runs `load`; `first` is the number of its first request, so that loads that follow each other ask other prompts.
    pub async fn run(&self, load: Load, limit: Limit, first: u64) -> Run {
        self.progress.reset();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let cx = Arc::new(Cx {
            target: self.target.clone(),
            dataset: self.dataset.clone(),
            seed: self.seed,
            first,
            timeout: self.timeout,
            start: Instant::now(),
            progress: self.progress.clone(),
            records: sender,
        });
        let start = cx.start;
        let mut tasks = JoinSet::new();
        let mut stop = self.stop.clone();
        match load {
            Load::Closed { concurrency } => {
                let next = Arc::new(AtomicU64::new(0));
                for _ in 0..concurrency {
                    let (cx, next) = (cx.clone(), next.clone());
                    tasks.spawn(async move {
                        while start.elapsed() < limit.duration {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            if index >= limit.requests {
                                break;
                            }
                            cx.request(index, Instant::now()).await;
                        }
                    });
                }
            }
            Load::Open { .. } => {
                for (index, at) in (0..limit.requests).zip(load.arrivals(self.seed)) {
                    let Some(due) = start.checked_add(at).filter(|_| at < limit.duration) else { break };
                    tokio::select! {
                        () = tokio::time::sleep_until(due.into()) => {}
                        _ = stop.wait_for(|stop| *stop) => break,
                    }
                    let cx = cx.clone();
                    tasks.spawn(async move { cx.request(index, due).await });
                    // What has ended already would otherwise be kept to the end of the load.
                    while tasks.try_join_next().is_some() {}
                }
            }
        }
        drop(cx);
        loop {
            tokio::select! {
                ended = tasks.join_next() => if ended.is_none() { break },
                _ = stop.wait_for(|stop| *stop) => {
                    tasks.shutdown().await;
                    break;
                }
            }
        }
        let (mut records, mut last) = (Vec::new(), start);
        while let Ok((record, ended)) = receiver.try_recv() {
            last = last.max(ended);
            records.push(record);
        }
        Run {
            load,
            records,
            wall: last.saturating_duration_since(start),
            n_unfinished: self.progress.in_flight.load(Ordering::Relaxed),
            peak: self.progress.peak.load(Ordering::Relaxed),
        }
    }
}
