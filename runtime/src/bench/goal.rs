//! Service level objectives, and whether a request met them.

use std::fmt;
use std::time::Duration;

use super::watch::Answer;

/// What is promised of every request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    /// Longest time to the first token.
    pub ttft: Option<Duration>,
    /// Longest of the times between tokens.
    pub itl: Option<Duration>,
    /// Longest mean time per token after the first.
    pub tpot: Option<Duration>,
    /// Longest time of the whole answer.
    pub e2e: Option<Duration>,
}

impl Goal {
    /// Reads `ttft=500ms,itl=50ms,tpot=40ms,e2e=10s`, in any order, each at most once.
    ///
    /// # Errors
    /// Another form, another name, a time that does not parse.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut goal = Goal::default();
        for part in text.split(',') {
            let (name, time) = part
                .trim()
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not of the form NAME=TIME"))?;
            let limit = match name.trim() {
                "ttft" => &mut goal.ttft,
                "itl" => &mut goal.itl,
                "tpot" => &mut goal.tpot,
                "e2e" => &mut goal.e2e,
                other => return Err(format!("{other:?} is not one of ttft, itl, tpot, e2e")),
            };
            let time =
                humantime::parse_duration(time.trim()).map_err(|e| format!("{name}: {time:?}: {e}"))?;
            if limit.replace(time).is_some() {
                return Err(format!("{name} stands twice"));
            }
        }
        Ok(goal)
    }

    /// Whether an answer kept all of it.
    pub fn met(&self, answer: &Answer) -> bool {
        let within = |limit: Option<Duration>, time: Option<Duration>| match (limit, time) {
            (Some(limit), Some(time)) => time <= limit,
            // Without a second token there is nothing to be late.
            _ => true,
        };
        within(self.ttft, Some(answer.ttft))
            && within(self.itl, answer.gaps.iter().max().copied())
            && within(self.tpot, answer.tpot())
            && within(self.e2e, Some(answer.e2e))
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("TTFT", self.ttft), ("ITL", self.itl), ("TPOT", self.tpot), ("end-to-end", self.e2e)];
        let mut first = true;
        for (name, limit) in all.iter().filter_map(|(n, l)| l.map(|l| (n, l))) {
            let comma = if std::mem::take(&mut first) { "" } else { ", " };
            write!(f, "{comma}{name} <= {}", humantime::format_duration(limit))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn answer(ttft: u64, gaps: &[u64]) -> Answer {
        Answer {
            ttft: ms(ttft),
            e2e: ms(ttft + gaps.iter().sum::<u64>()),
            gaps: gaps.iter().map(|g| ms(*g)).collect(),
            output_tokens: gaps.len() as u64 + 1,
            ..Answer::default()
        }
    }

    #[test]
    fn goals_parse_as_written() {
        let goal = Goal::parse("ttft=500ms, itl=50ms,e2e=2s").unwrap();
        assert_eq!(
            (goal.ttft, goal.itl, goal.tpot, goal.e2e),
            (Some(ms(500)), Some(ms(50)), None, Some(ms(2000)))
        );
        assert_eq!(goal.to_string(), "TTFT <= 500ms, ITL <= 50ms, end-to-end <= 2s");
        for text in ["", "ttft", "ttft=", "ttft=5", "latency=5ms", "ttft=1s,ttft=2s", "ttft=1s,"] {
            assert!(Goal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_must_keep_every_part() {
        let met = |goal: &str, answer: &Answer| Goal::parse(goal).unwrap().met(answer);
        let quick = answer(100, &[10, 10, 40]);
        assert!(met("ttft=100ms,itl=40ms,tpot=20ms,e2e=160ms", &quick));
        assert!(!met("ttft=99ms", &quick));
        assert!(!met("itl=39ms", &quick), "one late token is late");
        assert!(met("tpot=20ms", &quick), "while the mean is not");
        assert!(!met("tpot=19ms", &quick));
        assert!(!met("e2e=159ms", &quick));
        assert!(met("itl=1ms,tpot=1ms", &answer(100, &[])), "one token has no gaps");
    }
}
