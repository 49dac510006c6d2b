//! A verification as a table.

use std::fmt;

use super::{LaunchCheck, Verification};

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |passes: bool| if passes { "ok" } else { "DIFFERS" };
        writeln!(f, "plan      {} on {}", self.model, self.path)?;
        let n_faults = self.weight_faults.len();
        let all = if n_faults == 0 {
            "all as the checkpoint gives them, byte for byte".to_owned()
        } else {
            format!("{n_faults} differ")
        };
        writeln!(f, "weights   {:<8} {}: {all}", verdict(n_faults == 0), self.n_weights)?;
        for fault in &self.weight_faults {
            writeln!(f, "          {fault}")?;
        }
        let l = &self.logits;
        writeln!(
            f,
            "logits    {:<8} {} positions, {} of {} ids: largest difference {:.2e}, bound {:.2e}, global {:.2e}",
            verdict(l.passes()),
            l.positions,
            l.ids,
            l.vocab_size,
            l.max_difference,
            l.bound,
            l.global_error
        )?;
        if l.choices + l.choices_apart > 0 {
            writeln!(
                f,
                "          {} choices of experts taken over from the engine, {} too far apart for it",
                l.choices, l.choices_apart
            )?;
        }
        if self.launches.is_empty() {
            return Ok(());
        }
        let n_off = self.launches.iter().filter(|l| !l.passes()).count();
        let worst = self.launches.iter().map(LaunchCheck::ratio).fold(0.0, f32::max);
        writeln!(
            f,
            "launches  {:<8} {}, {n_off} outside of their tolerance; the worst is at {worst:.2} of it",
            verdict(n_off == 0),
            self.launches.len()
        )?;
        writeln!(
            f,
            "\n{:<24} {:<14} {:<5} {:>10} {:>10} {:>8}",
            "value", "kernel", "type", "max", "global", "of bound"
        )?;
        for check in &self.launches {
            let mark = if check.passes() { "" } else { "  DIFFERS" };
            writeln!(
                f,
                "{:<24} {:<14} {:<5} {:>10.2e} {:>10.2e} {:>8.2}{mark}",
                check.value,
                check.kernel,
                check.dtype,
                check.max_error,
                check.global_error,
                check.ratio()
            )?;
        }
        Ok(())
    }
}
