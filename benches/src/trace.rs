//! Sums the engine's launch events by kernel.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Nanoseconds of every launch, by kernel and value, since it was last taken.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<BTreeMap<String, Vec<u64>>>>);

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
        sums.entry(format!("{} {}", launch.kernel, launch.node)).or_default().push(launch.nanos);
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

    /// Prints what was summed, longest first, and starts anew. Beside the sum stands what it would be if every launch
    /// took what the fastest tenth did: on a machine that others load, close to the undisturbed time.
    pub fn take(&self, out: &mut impl Write, what: &str) -> Result<()> {
        let times = std::mem::take(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if times.is_empty() {
            return Ok(());
        }
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let mut rows: Vec<(String, usize, f64, f64)> = times
            .into_iter()
            .map(|(name, mut t)| {
                t.sort_unstable();
                (name, t.len(), ms(t.iter().sum()), ms(t[t.len() / 10] * t.len() as u64))
            })
            .collect();
        rows.sort_by(|a, b| b.2.total_cmp(&a.2));
        let (all, fast) = rows.iter().fold((0.0, 0.0), |s, r| (s.0 + r.2, s.1 + r.3));
        writeln!(out, "{what}; {all:.1} ms in launches, {fast:.1} ms at the fastest tenth's pace")?;
        for (name, launches, sum, fastest) in rows {
            let share = sum / all;
            writeln!(out, "  {name:24} {launches:6} launches {sum:10.2} ms {share:6.3}  {fastest:10.2} ms")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_summed_by_kernel_and_value() {
        let trace = Trace::default();
        let layers = tracing_subscriber::registry().with(trace.clone());
        tracing::subscriber::with_default(layers, || {
            for (kernel, node, nanos) in [("gemm", "l0.o", 1_000_000u64), ("gemm", "l11.o", 3_000_000)] {
                tracing::trace!(target: lathe_cpu::LAUNCH_EVENTS, kernel, node, nanos);
            }
            tracing::trace!(kernel = "gemm", node = "l0.o", nanos = 7_000_000u64);
        });
        let mut text = vec![];
        trace.take(&mut text, "two").unwrap();
        trace.take(&mut text, "nothing").unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("two; 4.0 ms in launches, 2.0 ms at"), "{text}");
        assert!(text.contains("gemm o "), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
