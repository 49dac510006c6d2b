//! Medians with their spread.

use serde::Serialize;

/// A median and what lay around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Middle value; the mean of the two middle ones of an even number.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Values.
    pub n: usize,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut v: Vec<f64> = values.into_iter().collect();
        v.sort_by(f64::total_cmp);
        let (min, max) = (*v.first()?, *v.last()?);
        let median = (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0;
        Some(Spread { median, min, max, n: v.len() })
    }

    /// `median (min..max)` with `digits` after the point.
    pub fn text(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn middle_and_ends() {
        for (values, want) in [
            (&[3.0][..], Some((3.0, 3.0, 3.0))),
            (&[5.0, 1.0, 3.0], Some((3.0, 1.0, 5.0))),
            (&[4.0, 1.0, 3.0, 100.0], Some((3.5, 1.0, 100.0))),
            (&[], None),
        ] {
            let got = Spread::of(values.iter().copied()).map(|s| (s.median, s.min, s.max));
            assert_eq!(got, want, "{values:?}");
        }
    }
}
