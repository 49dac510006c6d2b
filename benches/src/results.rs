//! Writing results down.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

/// Memory of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rss {
    /// MiB of its own.
    pub anon_mib: u64,
    /// MiB of mapped files, which the system may drop.
    pub file_mib: u64,
}

impl Rss {
    /// Of a running process.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).context(path)?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        Ok(Rss { anon_mib: mib("RssAnon:"), file_mib: mib("RssFile:") })
    }
}

/// Today in UTC, `YYYY-MM-DD`.
pub fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    civil(seconds / 86_400)
}

/// Date of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: u64) -> String {
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let m = (5 * of_year + 2) / 153;
    let (month, d) = (if m < 10 { m + 3 } else { m - 9 }, of_year - (153 * m + 2) / 5 + 1);
    format!("{:04}-{month:02}-{d:02}", era * 400 + year + u64::from(month <= 2))
}

/// What was measured: the commit, and `dirty` where the tree differs from it.
pub fn commit() -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let out = Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(folder).output();
    match out {
        Ok(o) if o.status.success() => String::from_utf8_lossy(&o.stdout).trim().into(),
        _ => "unknown commit".into(),
    }
}

/// Writes `report` to `out`, else to results/`name`.
pub fn write(out: Option<&Path>, name: &str, report: &impl Serialize) -> Result<()> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(name);
    let path = out.unwrap_or(&default);
    let mut json = serde_json::to_string_pretty(report)?;
    json.push('\n');
    std::fs::write(path, json).with_context(|| path.display().to_string())?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        for (day, date) in
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (11_017, "2000-03-01"), (20_777, "2026-11-20")]
        {
            assert_eq!(civil(day), date);
        }
    }
}
