//! When requests arrive.

use std::fmt;
use std::time::Duration;

use super::random::{Random, Use};

/// Times of arrival in an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// At equal distances.
    Fixed,
    /// A Poisson process: distances are exponentially distributed.
    Poisson,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Requests arrive by the clock, whatever became of earlier ones.
    Open {
        /// Per second.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
    },
    /// So many users, each of whom asks again when its answer is there.
    Closed {
        /// Users.
        concurrency: usize,
    },
}

impl Load {
    /// Times of arrival after the start, without end, in order; none in a closed loop.
    pub fn arrivals(self, seed: u64) -> Box<dyn Iterator<Item = Duration> + Send> {
        match self {
            Load::Closed { .. } => Box::new(std::iter::empty()),
            Load::Open { rate, arrivals: Arrivals::Fixed } => {
                Box::new((0u64..).map(move |i| seconds(i as f64 / rate)))
            }
            Load::Open { rate, arrivals: Arrivals::Poisson } => {
                let mut random = Random::new(seed, Use::Arrivals, 0);
                let mut at = 0.0;
                Box::new(std::iter::repeat_with(move || {
                    at -= random.unit().ln() / rate;
                    seconds(at)
                }))
            }
        }
    }
}

/// A time that may lie further ahead than a `Duration` holds.
fn seconds(at: f64) -> Duration {
    Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX)
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Load::Open { rate, arrivals: Arrivals::Fixed } => write!(f, "{rate}/s fixed"),
            Load::Open { rate, arrivals: Arrivals::Poisson } => write!(f, "{rate}/s Poisson"),
            Load::Closed { concurrency } => write!(f, "{concurrency} at once"),
        }
    }
}

/// Reads the steps of a ramp: `1..32` doubles, `1..32x4` multiplies, `2..10+2` adds. The last step is the end.
///
/// # Errors
/// Another form, or steps that never arrive.
pub fn ramp(text: &str) -> Result<Vec<f64>, String> {
    let wrong = || format!("{text:?} is not of the form 1..32, 1..32x2 or 2..10+2");
    let (first, rest) = text.split_once("..").ok_or_else(wrong)?;
    let (last, step): (&str, Box<dyn Fn(f64) -> f64>) = if let Some((last, by)) = rest.split_once('+') {
        let by: f64 = by.parse().map_err(|_| wrong())?;
        (last, Box::new(move |x| x + by))
    } else {
        let (last, by) = rest.split_once('x').unwrap_or((rest, "2"));
        let by: f64 = by.parse().map_err(|_| wrong())?;
        (last, Box::new(move |x| x * by))
    };
    let number =
        |text: &str| text.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!("{text:?} goes down; ramps go up"));
    }
    let mut steps = vec![first];
    let mut at = first;
    while at < last {
        let next = step(at);
        if next.is_nan() || next <= at || steps.len() >= MAX_STEPS {
            return Err(format!("{text:?} has no step upwards, or more than {MAX_STEPS}"));
        }
        at = next.min(last);
        steps.push(at);
    }
    Ok(steps)
}

/// More steps than anybody would wait for.
const MAX_STEPS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_arrivals_do_not_drift() {
        let load = Load::Open { rate: 3.0, arrivals: Arrivals::Fixed };
        let at = load.arrivals(0).nth(300_000).unwrap();
        assert_eq!(at, Duration::from_secs(100_000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_its_spread() {
        let load = Load::Open { rate: 50.0, arrivals: Arrivals::Poisson };
        let times: Vec<f64> = load.arrivals(5).take(20_000).map(|t| t.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // Exponential gaps: the standard deviation is the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
        assert!(times.is_sorted());
        let again: Vec<_> = load.arrivals(5).take(10).collect();
        assert_eq!(again, load.arrivals(5).take(10).collect::<Vec<_>>());
        assert_ne!(again, load.arrivals(6).take(10).collect::<Vec<_>>());
    }

    #[test]
    fn ramps_end_where_they_say() {
        for (text, want) in [
            ("1..32", vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
            ("1..10", vec![1.0, 2.0, 4.0, 8.0, 10.0]),
            ("2..10+4", vec![2.0, 6.0, 10.0]),
            ("0.5..4x3", vec![0.5, 1.5, 4.0]),
            ("7..7", vec![7.0]),
        ] {
            assert_eq!(ramp(text), Ok(want), "{text}");
        }
        for text in [
            "", "8", "1..", "a..b", "4..1", "1..9x1", "1..9x0", "1..9+0", "0..4", "1..inf", "1..9x-2",
            "1..1e9+1",
        ] {
            assert!(ramp(text).is_err(), "{text}");
        }
    }
}
