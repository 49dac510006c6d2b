//! Numbers of one load: percentiles, throughput, goodput.

use std::collections::BTreeMap;
use std::time::Duration;

use super::goal::Goal;
use super::load::Load;
use super::watch::{Answer, Counted, Failure};

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was due, after the start.
    pub due: Duration,
    /// The answer, or why there is none.
    pub outcome: Result<Answer, Failure>,
}

/// What one load gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// The load.
    pub load: Load,
    /// Requests in the order in which they ended.
    pub records: Vec<Record>,
    /// From the start to the last end.
    pub wall: Duration,
    /// Requests that were under way when the run was interrupted.
    pub n_unfinished: usize,
    /// Most requests under way at once.
    pub peak: usize,
}

/// Spread of one quantity, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Spread {
    pub mean: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
    /// Samples.
    pub n: usize,
}

impl Spread {
    /// Of all samples; none of nothing.
    pub fn of(samples: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut ms: Vec<f64> = samples.into_iter().map(|d| d.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let (min, max) = (*ms.first()?, *ms.last()?);
        Some(Spread {
            mean: ms.iter().sum::<f64>() / ms.len() as f64,
            p50: percentile(&ms, 50.0),
            p95: percentile(&ms, 95.0),
            p99: percentile(&ms, 99.0),
            min,
            max,
            n: ms.len(),
        })
    }
}

/// Percentile `p` of sorted samples, between the two nearest ranks by straight line, as numpy and so most benchmarks do.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = p / 100.0 * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// Requests that kept the objectives.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Goodput {
    /// So many did.
    pub n: usize,
    /// Of all requests, failed ones too.
    pub share: f64,
    /// Per second.
    pub per_s: f64,
}

/// The numbers of one load.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// What was asked for, in words.
    pub load: String,
    /// From the start to the last end.
    pub wall_s: f64,
    /// Whole answers.
    pub completed: usize,
    /// Requests without one.
    pub failed: usize,
    /// Under way when the run was interrupted.
    pub unfinished: usize,
    /// Most requests under way at once.
    pub peak_in_flight: usize,
    /// Whole answers per second.
    pub requests_per_s: f64,
    /// Tokens of prompts, where servers said.
    pub input_tokens: u64,
    /// Answers for which the server did not say how long the prompt was.
    pub unknown_inputs: usize,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Answers whose tokens were counted by chunks, as the server did not say.
    pub counted_by_chunks: usize,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Output and input tokens per second.
    pub total_tokens_per_s: f64,
    /// From due to the first token.
    pub ttft_ms: Option<Spread>,
    /// Between chunks with tokens, of all answers together.
    pub itl_ms: Option<Spread>,
    /// Mean per token after the first, by answer.
    pub tpot_ms: Option<Spread>,
    /// From due to the end.
    pub e2e_ms: Option<Spread>,
    /// From due to sent.
    pub lag_ms: Option<Spread>,
    /// Where objectives were given.
    pub goodput: Option<Goodput>,
    /// Failures by their text, the most frequent first.
    pub failures: Vec<(String, usize)>,
}

impl Summary {
    /// The numbers of a run.
    pub fn of(run: &Run, goal: Option<&Goal>) -> Self {
        let answers: Vec<&Answer> = run.records.iter().filter_map(|r| r.outcome.as_ref().ok()).collect();
        let mut by_text: BTreeMap<String, usize> = BTreeMap::new();
        for failure in run.records.iter().filter_map(|r| r.outcome.as_ref().err()) {
            *by_text.entry(failure.to_string()).or_default() += 1;
        }
        let mut failures: Vec<(String, usize)> = by_text.into_iter().collect();
        failures.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let wall_s = run.wall.as_secs_f64();
        let per_s = |n: f64| if wall_s > 0.0 { n / wall_s } else { 0.0 };
        let input_tokens: u64 = answers.iter().filter_map(|a| a.input_tokens).sum();
        let output_tokens: u64 = answers.iter().map(|a| a.output_tokens).sum();
        Summary {
            load: run.load.to_string(),
            wall_s,
            completed: answers.len(),
            failed: run.records.len() - answers.len(),
            unfinished: run.n_unfinished,
            peak_in_flight: run.peak,
            requests_per_s: per_s(answers.len() as f64),
            input_tokens,
            unknown_inputs: answers.iter().filter(|a| a.input_tokens.is_none()).count(),
            output_tokens,
            counted_by_chunks: answers.iter().filter(|a| a.counted == Counted::Chunks).count(),
            output_tokens_per_s: per_s(output_tokens as f64),
            total_tokens_per_s: per_s((input_tokens + output_tokens) as f64),
            ttft_ms: Spread::of(answers.iter().map(|a| a.ttft)),
            itl_ms: Spread::of(answers.iter().flat_map(|a| a.gaps.iter().copied())),
            tpot_ms: Spread::of(answers.iter().filter_map(|a| a.tpot())),
            e2e_ms: Spread::of(answers.iter().map(|a| a.e2e)),
            lag_ms: Spread::of(answers.iter().map(|a| a.lag)),
            goodput: goal.map(|goal| {
                let n = answers.iter().filter(|a| goal.met(a)).count();
                Goodput { n, share: n as f64 / run.records.len().max(1) as f64, per_s: per_s(n as f64) }
            }),
            failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Values of `numpy.percentile`, method linear.
    #[test]
    fn percentiles_are_those_of_numpy() {
        let all: Vec<f64> = (1..=10).map(f64::from).collect();
        for (p, want) in [(50.0, 5.5), (95.0, 9.55), (99.0, 9.91), (0.0, 1.0), (100.0, 10.0)] {
            assert!((percentile(&all, p) - want).abs() < 1e-12, "{p}");
        }
        assert_eq!(percentile(&[4.0], 99.0), 4.0);
        let spread = Spread::of([ms(30), ms(10), ms(20)]).unwrap();
        assert_eq!((spread.mean, spread.p50, spread.min, spread.max, spread.n), (20.0, 20.0, 10.0, 30.0, 3));
        assert_eq!(Spread::of([]), None);
    }

    fn answer(ttft: u64, gap: u64, n: u64) -> Answer {
        Answer {
            ttft: ms(ttft),
            e2e: ms(ttft + gap * (n - 1)),
            gaps: vec![ms(gap); n as usize - 1],
            output_tokens: n,
            input_tokens: Some(100),
            ..Answer::default()
        }
    }

    #[test]
    fn a_run_is_summed_up_with_its_failures() {
        let status = Failure::Status { status: 429, message: "queue".to_owned() };
        let outcomes = vec![
            Ok(answer(100, 10, 11)),
            Ok(answer(300, 20, 11)),
            Ok(Answer { input_tokens: None, counted: Counted::Chunks, ..answer(200, 10, 1) }),
            Err(status.clone()),
            Err(Failure::Cut("x".to_owned())),
            Err(status),
        ];
        let run = Run {
            load: Load::Closed { concurrency: 2 },
            records: outcomes.into_iter().map(|outcome| Record { due: ms(0), outcome }).collect(),
            wall: ms(2000),
            n_unfinished: 1,
            peak: 2,
        };
        let goal = Goal::parse("ttft=250ms,itl=15ms").unwrap();
        let s = Summary::of(&run, Some(&goal));
        assert_eq!((s.completed, s.failed, s.unfinished), (3, 3, 1));
        assert_eq!((s.input_tokens, s.unknown_inputs, s.output_tokens, s.counted_by_chunks), (200, 1, 23, 1));
        assert_eq!((s.requests_per_s, s.output_tokens_per_s, s.total_tokens_per_s), (1.5, 11.5, 111.5));
        assert_eq!(s.itl_ms.unwrap().n, 20);
        assert_eq!(s.tpot_ms.unwrap().mean, 15.0);
        assert_eq!(s.goodput, Some(Goodput { n: 2, share: 2.0 / 6.0, per_s: 1.0 }));
        assert_eq!(s.failures[0], ("HTTP 429: queue".to_owned(), 2));
        assert_eq!(s.failures.len(), 2);
    }
}
