//! Counters of one server, in Prometheus' text form under the names that vLLM gave them, so that existing
//! dashboards and Kubernetes gateways read them.
//!
//! Plain atomics with fixed buckets: recording never allocates, because the engine thread records every step.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lathe_scheduler::Stats;

use crate::sequence::Sequence;

/// Seconds to the first token.
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds of a whole request or a phase of it.
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Seconds between two tokens.
const BETWEEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Tokens in a step.
const STEP: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Choices of a request.
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Preemptions of a request.
const PREEMPTIONS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Observations counted by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One per bound and one above all; not cumulative.
    counts: Vec<AtomicU64>,
    /// Bits of an f64.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Histogram {
            bounds: bounds.to_vec(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one observation.
    pub fn record(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        // The closure always gives a value, so the update cannot fail.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + value).to_bits())
        });
    }
}

/// 1, 2, 5, 10, 20, ... up to `max`.
fn one_two_five(max: u32) -> Vec<f64> {
    let (mut bounds, mut decade) = (Vec::new(), 1u64);
    loop {
        for factor in [1, 2, 5] {
            let bound = factor * decade;
            if bound > u64::from(max) {
                return bounds;
            }
            bounds.push(bound as f64);
        }
        decade *= 10;
    }
}

/// All counters.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Metrics {
    running: AtomicU64,
    waiting: AtomicU64,
    blocks_used: AtomicU64,
    blocks_of: AtomicU64,
    n_blocks: AtomicU64,
    block_tokens: AtomicU64,
    preemptions: AtomicU64,
    ended_stop: Counter,
    ended_length: Counter,
    ended_abort: Counter,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    pub admission_rejections: Counter,
    pub iteration_tokens: Histogram,
    pub params_n: Histogram,
    pub params_max_tokens: Histogram,
    time_to_first: Histogram,
    between_tokens: Histogram,
    per_output_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_prompt: Histogram,
    request_generation: Histogram,
    request_max_generation: Histogram,
    request_preemptions: Histogram,
    request_prefilled: Histogram,
}

impl Metrics {
    /// All zero; `max_seq_len` bounds the buckets that count tokens.
    pub fn new(max_seq_len: u32) -> Self {
        let tokens = one_two_five(max_seq_len);
        Metrics {
            running: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            blocks_used: AtomicU64::new(0),
            blocks_of: AtomicU64::new(0),
            n_blocks: AtomicU64::new(0),
            block_tokens: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            ended_stop: Counter::default(),
            ended_length: Counter::default(),
            ended_abort: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            admission_rejections: Counter::default(),
            iteration_tokens: Histogram::new(STEP),
            params_n: Histogram::new(CHOICES),
            params_max_tokens: Histogram::new(&tokens),
            time_to_first: Histogram::new(TTFT),
            between_tokens: Histogram::new(BETWEEN),
            per_output_token: Histogram::new(BETWEEN),
            whole: Histogram::new(LATENCY),
            queued: Histogram::new(LATENCY),
            inference: Histogram::new(LATENCY),
            prefill: Histogram::new(LATENCY),
            decode: Histogram::new(LATENCY),
            request_prompt: Histogram::new(&tokens),
            request_generation: Histogram::new(&tokens),
            request_max_generation: Histogram::new(&tokens),
            request_preemptions: Histogram::new(PREEMPTIONS),
            request_prefilled: Histogram::new(&tokens),
        }
    }

    /// Blocks of the first cache group, and positions per block.
    pub(crate) fn set_cache(&self, n_blocks: u32, block_tokens: u32) {
        self.n_blocks.store(n_blocks.into(), Ordering::Relaxed);
        self.block_tokens.store(block_tokens.into(), Ordering::Relaxed);
    }

    pub(crate) fn set_load(&self, stats: &Stats) {
        self.running.store(stats.n_running as u64, Ordering::Relaxed);
        self.waiting.store(stats.n_queued as u64, Ordering::Relaxed);
        self.blocks_used.store(stats.n_blocks_used.into(), Ordering::Relaxed);
        self.blocks_of.store(stats.n_blocks.into(), Ordering::Relaxed);
        self.preemptions.store(stats.n_preemptions, Ordering::Relaxed);
    }

    pub(crate) fn token_drawn(&self, seq: &mut Sequence, now: Instant) {
        self.generation_tokens.add(1);
        match seq.last_token {
            Some(last) => self.between_tokens.record((now - last).as_secs_f64()),
            None => {
                self.prompt_tokens.add(seq.prompt_len() as u64);
                self.time_to_first.record((now - seq.arrived).as_secs_f64());
                seq.first_token = Some(now);
            }
        }
        seq.last_token = Some(now);
    }

    pub(crate) fn sequence_ended(&self, seq: &Sequence, reason: &str, now: Instant) {
        match reason {
            "stop" => &self.ended_stop,
            "length" => &self.ended_length,
            _ => &self.ended_abort,
        }
        .add(1);
        let n_output = seq.output().len();
        if n_output == 0 {
            self.prompt_tokens.add(seq.prompt_len() as u64);
        }
        self.whole.record((now - seq.arrived).as_secs_f64());
        self.request_prompt.record(seq.prompt_len() as f64);
        self.request_generation.record(n_output as f64);
        self.request_max_generation.record(n_output as f64);
        self.request_preemptions.record(f64::from(seq.n_preemptions));
        let Some(scheduled) = seq.scheduled else { return };
        self.queued.record((scheduled - seq.arrived).as_secs_f64());
        self.inference.record((now - scheduled).as_secs_f64());
        self.request_prefilled.record(f64::from(seq.n_prefilled));
        if let (Some(first), Some(last)) = (seq.first_token, seq.last_token) {
            self.prefill.record((first - scheduled).as_secs_f64());
            let decode = (last - first).as_secs_f64();
            self.decode.record(decode);
            if n_output > 1 {
                self.per_output_token.record(decode / (n_output - 1) as f64);
            }
        }
    }

    /// The exposition text, version 0.0.4, labelled with `model` and engine 0.
    pub fn render(&self, model: &str) -> String {
        let labels = format!("model_name=\"{}\",engine=\"0\"", escape(model));
        let mut page = Page { text: String::with_capacity(16 << 10), labels: &labels };
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let (n_blocks, waiting) = (load(&self.n_blocks), load(&self.waiting));
        page.value(
            "gauge",
            "num_requests_running",
            "Sequences with a place in the batch.",
            load(&self.running),
        );
        page.value("gauge", "num_requests_waiting", "Sequences that wait for a place.", waiting);
        page.head("gauge", "num_requests_waiting_by_reason", "Waiting sequences by what they wait for.");
        page.line("num_requests_waiting_by_reason", ",reason=\"capacity\"", waiting);
        page.line("num_requests_waiting_by_reason", ",reason=\"deferred\"", 0);
        let usage = load(&self.blocks_used) as f64 / load(&self.blocks_of).max(1) as f64;
        let what = "Used part of the KV blocks of the fullest cache group, 1 is all.";
        page.value("gauge", "kv_cache_usage_perc", what, usage);
        page.head("gauge", "cache_config_info", "Sizes of the KV cache.");
        let sizes = format!(",block_size=\"{}\",num_gpu_blocks=\"{n_blocks}\"", load(&self.block_tokens));
        page.line("cache_config_info", &sizes, 1);

        page.value("counter", "num_preemptions_total", "Preemptions.", load(&self.preemptions));
        page.value(
            "counter",
            "prompt_tokens_total",
            "Prompt tokens of served sequences.",
            self.prompt_tokens.get(),
        );
        page.value("counter", "generation_tokens_total", "Drawn tokens.", self.generation_tokens.get());
        page.head("counter", "request_success_total", "Sequences that ended, by reason.");
        for (reason, counter) in
            [("stop", &self.ended_stop), ("length", &self.ended_length), ("abort", &self.ended_abort)]
        {
            page.line("request_success_total", &format!(",finished_reason=\"{reason}\""), counter.get());
        }
        page.value(
            "counter",
            "admission_rejections_total",
            "Requests that were refused.",
            self.admission_rejections.get(),
        );
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "Arrival to first token.", &self.time_to_first),
            ("inter_token_latency_seconds", "Token to token.", &self.between_tokens),
            ("request_time_per_output_token_seconds", "Mean token to token.", &self.per_output_token),
            ("e2e_request_latency_seconds", "Arrival to end.", &self.whole),
            ("request_queue_time_seconds", "Arrival to first step.", &self.queued),
            ("request_inference_time_seconds", "First step to end.", &self.inference),
            ("request_prefill_time_seconds", "First step to first token.", &self.prefill),
            ("request_decode_time_seconds", "First to last token.", &self.decode),
            ("request_prompt_tokens", "Prompt tokens.", &self.request_prompt),
            ("request_generation_tokens", "Drawn tokens.", &self.request_generation),
            ("request_max_num_generation_tokens", "Drawn tokens of a choice.", &self.request_max_generation),
            ("request_params_n", "Choices asked for.", &self.params_n),
            ("request_params_max_tokens", "Limit of drawn tokens.", &self.params_max_tokens),
            ("iteration_tokens_total", "Tokens in a step.", &self.iteration_tokens),
            ("request_num_preemptions", "Preemptions of a sequence.", &self.request_preemptions),
            (
                "request_prefill_kv_computed_tokens",
                "Positions computed before the first token.",
                &self.request_prefilled,
            ),
        ] {
            page.histogram(name, help, histogram);
        }
        page.text
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

struct Page<'a> {
    text: String,
    labels: &'a str,
}

impl Page<'_> {
    fn head(&mut self, kind: &str, name: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}");
    }

    fn line(&mut self, name: &str, more: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "vllm:{name}{{{}{more}}} {value}", self.labels);
    }

    fn value(&mut self, kind: &str, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(kind, name, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head("histogram", name, help);
        let mut total = 0;
        for (at, count) in histogram.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = histogram.bounds.get(at).map_or("+Inf".to_owned(), |b| format!("{b:?}"));
            self.line(&format!("{name}_bucket"), &format!(",le=\"{bound}\""), total);
        }
        let sum = f64::from_bits(histogram.sum.load(Ordering::Relaxed));
        self.line(&format!("{name}_sum"), "", sum);
        self.line(&format!("{name}_count"), "", total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let metrics = Metrics::new(100);
        for value in [1.0, 8.0, 9.0, 1e9] {
            metrics.iteration_tokens.record(value);
        }
        let text = metrics.render("m\"1");
        for line in [
            r#"vllm:iteration_tokens_total_bucket{model_name="m\"1",engine="0",le="1.0"} 1"#,
            r#"vllm:iteration_tokens_total_bucket{model_name="m\"1",engine="0",le="8.0"} 2"#,
            r#"vllm:iteration_tokens_total_bucket{model_name="m\"1",engine="0",le="16.0"} 3"#,
            r#"vllm:iteration_tokens_total_bucket{model_name="m\"1",engine="0",le="+Inf"} 4"#,
            r#"vllm:iteration_tokens_total_count{model_name="m\"1",engine="0"} 4"#,
            r#"vllm:iteration_tokens_total_sum{model_name="m\"1",engine="0"} 1000000018"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} missing in\n{text}");
        }
    }

    #[test]
    fn token_buckets_end_at_the_longest_sequence() {
        assert_eq!(one_two_five(40), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(one_two_five(1), [1.0]);
    }

    #[test]
    fn usage_is_a_fraction_of_the_fullest_pool() {
        let metrics = Metrics::new(10);
        metrics.set_cache(80, 16);
        metrics.set_load(&Stats {
            n_queued: 3,
            n_running: 2,
            n_blocks_used: 2,
            n_blocks: 8,
            ..Stats::default()
        });
        let text = metrics.render("m");
        for line in [
            r#"vllm:kv_cache_usage_perc{model_name="m",engine="0"} 0.25"#,
            r#"vllm:num_requests_waiting{model_name="m",engine="0"} 3"#,
            r#"vllm:num_requests_running{model_name="m",engine="0"} 2"#,
            r#"vllm:cache_config_info{model_name="m",engine="0",block_size="16",num_gpu_blocks="80"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} missing in\n{text}");
        }
    }
}
