//! Shows a compilation while it runs: a bar with rate and time left on a terminal, log lines elsewhere.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lathe_compiler::options::{Observer, Phase};
use lathe_diagnostics::format_bytes;

use crate::interrupt::remove_on_interrupt;

/// Time between two log lines where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Takes the time of phases and shows the emitter's progress.
pub struct Progress {
    on_terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<(Phase, Instant)>,
    times: Vec<(Phase, Duration)>,
    bar: Option<ProgressBar>,
    writing: Option<Writing>,
}

struct Writing {
    total: u64,
    done: u64,
    since: Instant,
    logged: Instant,
}

impl Progress {
    /// A bar if `on_terminal`, log lines otherwise.
    pub fn new(on_terminal: bool) -> Self {
        Progress { on_terminal, state: Mutex::default() }
    }

    /// Wall time of each phase so far.
    pub fn times(&self) -> Vec<(Phase, Duration)> {
        self.state().times.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Progress {
    fn phase_started(&self, phase: Phase) {
        self.state().running = Some((phase, Instant::now()));
        tracing::debug!("phase {phase} begins");
    }

    fn phase_ended(&self, phase: Phase) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        let Some((_, since)) = state.running.take_if(|(p, _)| *p == phase) else { return };
        let took = since.elapsed();
        match state.times.iter_mut().find(|(p, _)| *p == phase) {
            Some(entry) => entry.1 += took,
            None => state.times.push((phase, took)),
        }
        drop(state);
        tracing::info!("phase {phase} took {:.2} s", took.as_secs_f64());
    }

    fn temporary_file(&self, path: &Path) {
        remove_on_interrupt(Some(path));
    }

    fn plan_renamed(&self) {
        remove_on_interrupt(None);
    }

    fn will_write(&self, total_bytes: u64) {
        let now = Instant::now();
        let mut state = self.state();
        if self.on_terminal {
            let bar = ProgressBar::new(total_bytes);
            let style = "writing weights [{wide_bar}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            state.bar = Some(bar);
        }
        state.writing = Some(Writing { total: total_bytes, done: 0, since: now, logged: now });
        tracing::debug!("{} of weights to write", format_bytes(total_bytes));
    }

    fn wrote(&self, bytes: u64) {
        let mut state = self.state();
        if let Some(bar) = &state.bar {
            bar.inc(bytes);
            return;
        }
        let Some(writing) = &mut state.writing else { return };
        writing.done += bytes;
        if writing.logged.elapsed() >= LOG_EVERY {
            writing.logged = Instant::now();
            let rate = writing.done as f64 / writing.since.elapsed().as_secs_f64();
            let left = writing.total.saturating_sub(writing.done) as f64 / rate;
            tracing::info!(
                "wrote {} of {} of weights, {}/s, {left:.0} s left",
                format_bytes(writing.done),
                format_bytes(writing.total),
                format_bytes(rate as u64),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_timed_in_order() {
        let progress = Progress::new(false);
        for phase in [Phase::Import, Phase::Emit] {
            progress.phase_started(phase);
            progress.will_write(10);
            progress.wrote(10);
            progress.phase_ended(phase);
        }
        let phases: Vec<Phase> = progress.times().into_iter().map(|(p, _)| p).collect();
        assert_eq!(phases, [Phase::Import, Phase::Emit]);
    }
}
