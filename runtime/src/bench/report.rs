//! A benchmark's numbers as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::goal::Goal;
use super::summary::{Spread, Summary};

/// What all loads of a benchmark share.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Who was asked, in words.
    pub target: String,
    /// Name of the model.
    pub model: String,
    /// What was asked, in words.
    pub dataset: String,
    /// Of arrivals and prompts.
    pub seed: u64,
    /// Requests before the first load, not counted.
    pub warmup: u64,
    /// Objectives.
    pub goal: Option<Goal>,
    /// The user ended it early.
    pub interrupted: bool,
}

/// Failures that are listed; the rest is counted.
const MAX_FAILURES: usize = 5;

/// All numbers of one load.
pub fn table(setting: &Setting, s: &Summary) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<10}  {text}");
    };
    line("target", format!("{}, model {}", setting.target, setting.model));
    line("asked", format!("{}, seed {}, warm-up {}", setting.dataset, setting.seed, setting.warmup));
    line("load", format!("{}, at most {} under way", s.load, s.peak_in_flight));
    let unfinished = if s.unfinished > 0 { format!(", {} interrupted", s.unfinished) } else { String::new() };
    line(
        "requests",
        format!(
            "{} answered, {} failed{unfinished} in {} s: {}/s",
            s.completed,
            s.failed,
            short(s.wall_s),
            short(s.requests_per_s)
        ),
    );
    line(
        "tokens",
        format!(
            "{} in, {} out: {} output tok/s, {} total tok/s",
            s.input_tokens,
            s.output_tokens,
            short(s.output_tokens_per_s),
            short(s.total_tokens_per_s)
        ),
    );
    line("counted", counted(s));
    if let (Some(goodput), Some(goal)) = (s.goodput, &setting.goal) {
        line(
            "goodput",
            format!("{}/s, {:.1} % of requests kept {goal}", short(goodput.per_s), goodput.share * 100.0),
        );
    }
    if let Some(lag) = s.lag_ms.filter(|lag| lag.p99 > LATE_MS) {
        line(
            "late",
            format!("requests were sent late by the load generator itself: p99 {} ms", short(lag.p99)),
        );
    }
    let _ = writeln!(
        out,
        "\n{:<10}  {:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>9}",
        "ms", "mean", "p50", "p95", "p99", "min", "max", "samples"
    );
    for (name, spread) in
        [("TTFT", s.ttft_ms), ("ITL", s.itl_ms), ("TPOT", s.tpot_ms), ("end-to-end", s.e2e_ms)]
    {
        let _ = match spread {
            Some(Spread { mean, p50, p95, p99, min, max, n }) => {
                let all = [mean, p50, p95, p99, min, max].map(|x| format!("{:>10}", short(x))).concat();
                writeln!(out, "{name:<10}  {all}{n:>9}")
            }
            None => writeln!(out, "{name:<10}  {:>10}{:>59}", "-", 0),
        };
    }
    failures(s, &mut out);
    out
}

/// The generator's own lateness that is worth a word, in milliseconds.
const LATE_MS: f64 = 5.0;

fn counted(s: &Summary) -> String {
    let by = match (s.counted_by_chunks, s.completed) {
        (0, _) => "by the server's usage".to_owned(),
        (n, all) if n == all => "by chunks with text, as the server reports no usage".to_owned(),
        (n, all) => format!("by the server's usage, in {n} of {all} answers by chunks with text"),
    };
    let unknown = match s.unknown_inputs {
        0 => String::new(),
        n => format!("; prompts of {n} answers are not counted"),
    };
    by + &unknown
}

fn failures(s: &Summary, out: &mut String) {
    if s.failures.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nfailed");
    for (text, n) in s.failures.iter().take(MAX_FAILURES) {
        let _ = writeln!(out, "{n:>10}  {text}");
    }
    if s.failures.len() > MAX_FAILURES {
        let rest: usize = s.failures[MAX_FAILURES..].iter().map(|(_, n)| n).sum();
        let _ = writeln!(
            out,
            "{rest:>10}  for {} other reasons (all stand in --json)",
            s.failures.len() - MAX_FAILURES
        );
    }
}

/// The steps of a ramp beside each other.
pub fn steps(all: &[Summary]) -> String {
    let mut out = String::new();
    let head = [
        "load",
        "req/s",
        "out tok/s",
        "TTFT p50",
        "p99",
        "ITL p50",
        "p99",
        "e2e p50",
        "p99",
        "good %",
        "failed",
    ];
    let mut row = |cells: [String; 11]| {
        let _ = write!(out, "{:<16}", cells[0]);
        for cell in &cells[1..] {
            let _ = write!(out, "{cell:>10}");
        }
        let _ = writeln!(out);
    };
    row(head.map(str::to_owned));
    for s in all {
        let of =
            |spread: Option<Spread>, f: fn(Spread) -> f64| spread.map_or("-".to_owned(), |s| short(f(s)));
        row([
            s.load.clone(),
            short(s.requests_per_s),
            short(s.output_tokens_per_s),
            of(s.ttft_ms, |x| x.p50),
            of(s.ttft_ms, |x| x.p99),
            of(s.itl_ms, |x| x.p50),
            of(s.itl_ms, |x| x.p99),
            of(s.e2e_ms, |x| x.p50),
            of(s.e2e_ms, |x| x.p99),
            s.goodput.map_or("-".to_owned(), |g| format!("{:.1}", g.share * 100.0)),
            s.failed.to_string(),
        ]);
    }
    out
}

/// Everything, for other programs. Names end in their unit.
pub fn json(setting: &Setting, all: &[Summary]) -> Value {
    let goal = setting.goal.unwrap_or_default();
    let ms = |limit: Option<std::time::Duration>| limit.map(|l| l.as_secs_f64() * 1e3);
    let loads: Vec<Value> = all
        .iter()
        .map(|s| {
            let mut value = json!(s);
            value["failures"] = s.failures.iter().map(|(text, n)| json!({"message": text, "n": n})).collect();
            value
        })
        .collect();
    json!({
        "target": setting.target,
        "model": setting.model,
        "dataset": setting.dataset,
        "seed": setting.seed,
        "warmup_requests": setting.warmup,
        "interrupted": setting.interrupted,
        "slo_ms": setting.goal.map(|_| json!({
            "ttft": ms(goal.ttft), "itl": ms(goal.itl), "tpot": ms(goal.tpot), "e2e": ms(goal.e2e),
        })),
        "loads": loads,
    })
}

/// Three or four digits that matter.
fn short(x: f64) -> String {
    match x.abs() {
        a if a >= 1000.0 || a == 0.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 1.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::load::Load;
    use crate::bench::summary::{Record, Run};
    use crate::bench::watch::{Answer, Failure};

    fn summaries() -> (Setting, Summary) {
        let ms = Duration::from_millis;
        let good = Answer {
            ttft: ms(120),
            e2e: ms(320),
            gaps: vec![ms(20); 10],
            output_tokens: 11,
            input_tokens: Some(64),
            ..Answer::default()
        };
        let mut outcomes = vec![Ok(good); 3];
        outcomes.extend((0..7).map(|i| Err(Failure::Cut(format!("reason {i}")))));
        let run = Run {
            load: Load::Closed { concurrency: 4 },
            records: outcomes.into_iter().map(|outcome| Record { due: ms(0), outcome }).collect(),
            wall: ms(1000),
            n_unfinished: 2,
            peak: 4,
        };
        let setting = Setting {
            target: "http://h:1".into(),
            model: "m".into(),
            dataset: "random 64".into(),
            seed: 1,
            warmup: 2,
            goal: Some(Goal::parse("ttft=200ms").unwrap()),
            interrupted: true,
        };
        let summary = Summary::of(&run, setting.goal.as_ref());
        (setting, summary)
    }

    #[test]
    fn the_table_holds_what_was_measured() {
        let (setting, summary) = summaries();
        let text = table(&setting, &summary);
        for part in [
            "http://h:1, model m",
            "4 at once, at most 4 under way",
            "3 answered, 7 failed, 2 interrupted in 1.00 s: 3.00/s",
            "192 in, 33 out: 33.00 output tok/s, 225.0 total tok/s",
            "by the server's usage",
            "30.0 % of requests kept TTFT <= 200ms",
            "TTFT             120.0     120.0",
            "TPOT             20.00",
            "the stream was cut: reason 4",
            "2  for 2 other reasons",
        ] {
            assert!(text.contains(part), "{part} missing in\n{text}");
        }
        assert!(text.lines().all(|l| l.len() <= 110), "{text}");
        let rows = steps(&[summary.clone(), summary]);
        assert_eq!(rows.lines().count(), 3);
        assert!(rows.lines().all(|l| l.len() == rows.lines().next().unwrap().len()), "{rows}");
    }

    #[test]
    fn json_names_units_and_all_failures() {
        let (setting, summary) = summaries();
        let value = json(&setting, &[summary]);
        let load = &value["loads"][0];
        assert_eq!(load["ttft_ms"]["p50"], 120.0);
        assert_eq!(load["failures"].as_array().unwrap().len(), 7);
        assert_eq!(load["failures"][0]["n"], 1);
        assert_eq!((&value["slo_ms"]["ttft"], &value["interrupted"]), (&json!(200.0), &json!(true)));
        assert_eq!(value["slo_ms"]["itl"], Value::Null);
    }
}
