//! Sums the engine's launch events by kernel.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Launches and nanoseconds of one kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    launches: u64,
    nanos: u64,
}

/// Time per kernel since it was last taken.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<BTreeMap<String, Sum>>>);

#[derive(Default)]
struct Launch {
    kernel: String,
    node: String,
    nanos: u64,
}

impl Visit for Launch {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "nanos" {
            self.nanos = value;
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "kernel" => self.kernel = value.to_owned(),
            // The same value of every layer is one line: `l12.qkv` counts as `qkv`.
            "node" => self.node = value.rsplit('.').next().unwrap_or(value).to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Trace {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != lathe_cpu::LAUNCH_EVENTS {
            return;
        }
        let mut launch = Launch::default();
        event.record(&mut launch);
        // A poisoned map holds counts all the same.
        let mut sums = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sum = sums.entry(format!("{} {}", launch.kernel, launch.node)).or_default();
        sum.launches += 1;
        sum.nanos += launch.nanos;
    }
}

impl Trace {
    /// Listens to this process.
    pub fn install() -> Result<Self> {
        let trace = Trace::default();
        let layers = tracing_subscriber::registry().with(trace.clone().with_filter(LevelFilter::TRACE));
        tracing::subscriber::set_global_default(layers)?;
        Ok(trace)
    }

    /// Prints what was summed, longest first, and starts anew.
    pub fn take(&self, out: &mut impl Write, what: &str) -> Result<()> {
        let sums = std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if sums.is_empty() {
            return Ok(());
        }
        let mut sums: Vec<(String, Sum)> = sums.into_iter().collect();
        sums.sort_by_key(|(_, s)| std::cmp::Reverse(s.nanos));
        let all: u64 = sums.iter().map(|(_, s)| s.nanos).sum();
        writeln!(out, "{what}; {:.1} ms in launches", all as f64 / 1e6)?;
        for (kernel, s) in sums {
            let share = s.nanos as f64 / all as f64;
            writeln!(
                out,
                "  {kernel:24} {:10.2} ms  {share:6.3}  {:6} launches",
                s.nanos as f64 / 1e6,
                s.launches
            )?;
        }
        Ok(())
    }
}
