//! Time on a device through graphs: long replays, so that what the host does between them does not count.

use std::time::Instant;

use anyhow::{Result, ensure};
use lathe_conformance::Rig;
use lathe_device::Graph;
use serde_json::{Value, json};

/// Median and spread of repeated measurements.
pub struct Times(Vec<f64>);

impl Times {
    /// The middle one, in seconds.
    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// Microseconds: median, least and most.
    pub fn report(&self) -> Value {
        let last = self.0[self.0.len() - 1];
        json!({ "median_us": self.median() * 1e6, "min_us": self.0[0] * 1e6, "max_us": last * 1e6 })
    }

    /// Of measured seconds, at least one.
    pub fn new(mut seconds: Vec<f64>) -> Result<Self> {
        ensure!(!seconds.is_empty(), "nothing was measured");
        seconds.sort_by(f64::total_cmp);
        Ok(Times(seconds))
    }
}

/// Captures what `submit` submits. All of it ran before: modules are not loaded while a graph is captured.
///
/// # Errors
/// The driver's.
pub fn capture(rig: &mut Rig, submit: impl FnOnce(&mut Rig) -> Result<()>) -> Result<Graph> {
    rig.driver().begin_capture()?;
    let submitted = submit(rig);
    let graph = rig.driver().end_capture()?;
    submitted?;
    Ok(graph)
}

/// Seconds per part of a graph of `parts` equal ones: one replay to warm up, then `samples`.
///
/// # Errors
/// The driver's.
pub fn replay(rig: &mut Rig, graph: Graph, parts: usize, samples: usize) -> Result<Times> {
    let mut once = || -> Result<f64> {
        let started = Instant::now();
        // SAFETY: the operands of what was captured are still there.
        unsafe { rig.driver().launch_graph(graph) }?;
        rig.wait()?;
        Ok(started.elapsed().as_secs_f64() / parts as f64)
    };
    once()?;
    Times::new((0..samples).map(|_| once()).collect::<Result<_>>()?)
}
