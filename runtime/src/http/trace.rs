//! One log line per request, when the last byte of the answer is gone.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// What is known of a request while it runs. Logs itself when the last holder drops it, so that a streamed answer
/// is logged at its end and an abandoned one at all. Never holds text.
#[derive(Debug)]
pub struct Trace {
    id: String,
    method: String,
    route: String,
    started: Instant,
    status: AtomicU16,
    prompt_tokens: AtomicU32,
    completion_tokens: AtomicU32,
    /// Microseconds; 0: no token yet.
    first_token: AtomicU64,
    /// Logged for debugging only.
    is_probe: bool,
}

/// Routes that machines ask every second.
const PROBES: [&str; 4] = ["/live", "/ready", "/health", "/metrics"];

/// Status in the log of a request whose client went away before there was an answer (nginx' number).
const CLIENT_CLOSED: u16 = 499;

impl Trace {
    /// Starts now.
    pub fn new(id: String, method: String, route: String) -> Self {
        let is_probe = PROBES.contains(&route.as_str());
        Trace {
            is_probe,
            id,
            method,
            route,
            started: Instant::now(),
            status: AtomicU16::new(CLIENT_CLOSED),
            prompt_tokens: AtomicU32::new(0),
            completion_tokens: AtomicU32::new(0),
            first_token: AtomicU64::new(0),
        }
    }

    /// The status that was sent.
    pub fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// Prompt tokens of all prompts.
    pub fn set_prompt_tokens(&self, n: u32) {
        self.prompt_tokens.store(n, Ordering::Relaxed);
    }

    /// Counts drawn tokens.
    pub fn add_tokens(&self, n: u32) {
        if n > 0 && self.completion_tokens.fetch_add(n, Ordering::Relaxed) == 0 {
            let micros = self.started.elapsed().as_micros().max(1) as u64;
            self.first_token.store(micros, Ordering::Relaxed);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.is_probe {
            let status = self.status.load(Ordering::Relaxed);
            tracing::debug!(id = self.id, route = self.route, status, "probe");
            return;
        }
        let first = self.first_token.load(Ordering::Relaxed);
        tracing::info!(
            id = self.id,
            method = self.method,
            route = self.route,
            status = self.status.load(Ordering::Relaxed),
            prompt_tokens = self.prompt_tokens.load(Ordering::Relaxed),
            completion_tokens = self.completion_tokens.load(Ordering::Relaxed),
            ttft_ms = (first > 0).then(|| first as f64 / 1e3),
            duration_ms = (self.started.elapsed().as_micros() as f64) / 1e3,
            "request"
        );
    }
}
