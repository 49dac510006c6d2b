//! What torch and transformers say, and how far a result may be from it. Formats: tools/goldens/README.md.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;

/// One prompt with its reference logits.
pub struct Golden {
    /// Prompt.
    pub ids: Vec<u32>,
    /// Positions that `logits` covers.
    pub rows: Vec<usize>,
    /// Vocabulary ids that `logits` covers; `None` is all.
    pub columns: Option<Vec<usize>>,
    /// `f32[rows, columns]`.
    pub logits: Vec<f32>,
    /// The longest sequence of the plan that rotates as the golden does.
    pub max_seq_len: u32,
    argmax: Vec<usize>,
    margin: Vec<f32>,
    logsumexp: Vec<f32>,
    max_abs_logit: f64,
    own_max_kl: Option<f64>,
}

/// How far a result is from its golden.
#[derive(Debug)]
pub struct Distance {
    /// Largest absolute difference over the largest absolute logit.
    pub relative: f64,
    /// Largest KL divergence of a position, natural logarithm.
    pub max_kl: f64,
    /// Positions whose argmax differs although the reference is sure.
    pub sure_disagreements: usize,
}

impl Golden {
    /// Reads one file.
    ///
    /// # Errors
    /// When it is not in the form that the README describes.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let meta: HashMap<String, String> = header.metadata().clone().unwrap_or_default();
        let tensors = SafeTensors::deserialize(&bytes)?;
        let words = |name: &str| -> Result<Vec<[u8; 4]>> {
            Ok(tensors.tensor(name)?.data().as_chunks::<4>().0.to_vec())
        };
        let ints = |name: &str| -> Result<Vec<usize>> {
            Ok(words(name)?.into_iter().map(|w| i32::from_le_bytes(w) as usize).collect())
        };
        let floats = |name: &str| -> Result<Vec<f32>> {
            Ok(words(name)?.into_iter().map(f32::from_le_bytes).collect())
        };
        Ok(Golden {
            ids: ints("ids")?.into_iter().map(|i| i as u32).collect(),
            rows: ints("rows")?,
            columns: ints("columns").ok(),
            logits: floats("logits")?,
            argmax: ints("argmax")?,
            margin: floats("margin")?,
            logsumexp: floats("logsumexp")?,
            max_seq_len: meta.get("max_seq_len").map_or(Ok(1024), |v| v.parse())?,
            max_abs_logit: meta.get("max_abs_logit").context("max_abs_logit")?.parse()?,
            own_max_kl: meta.get("own_max_kl").map(|v| v.parse()).transpose()?,
        })
    }

    /// Compares `f32[ids, vocab]` with the golden.
    ///
    /// # Errors
    /// When the sizes do not match.
    pub fn distance(&self, logits: &[f32], vocab: usize) -> Result<Distance> {
        ensure!(logits.len() == self.ids.len() * vocab, "logits are not [tokens, vocab]");
        let cols = self.columns.as_ref().map_or(vocab, Vec::len);
        let mut d = Distance { relative: 0.0, max_kl: 0.0, sure_disagreements: 0 };
        for (i, position) in self.rows.iter().enumerate() {
            let all = &logits[position * vocab..(position + 1) * vocab];
            let got: Vec<f64> = (0..cols)
                .map(|c| f64::from(all[self.columns.as_ref().map_or(c, |columns| columns[c])]))
                .collect();
            let want = &self.logits[i * cols..(i + 1) * cols];
            for (g, w) in got.iter().zip(want) {
                ensure!(g.is_finite(), "a logit of position {position} is not finite");
                d.relative = d.relative.max((g - f64::from(*w)).abs() / self.max_abs_logit);
            }
            d.max_kl = d.max_kl.max(self.divergence(i, want, &got, all));
            let best = (0..vocab).fold(0, |b, c| if all[c] > all[b] { c } else { b });
            if best != self.argmax[i] && f64::from(self.margin[i]) > 0.05 * self.max_abs_logit {
                d.sure_disagreements += 1;
            }
        }
        Ok(d)
    }

    /// KL(reference || got) over the kept columns, each side normalised over its whole vocabulary.
    fn divergence(&self, row: usize, want: &[f32], got: &[f64], all: &[f32]) -> f64 {
        let max = all.iter().fold(f64::NEG_INFINITY, |m, x| m.max(f64::from(*x)));
        let lse = max + all.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
        let reference = f64::from(self.logsumexp[row]);
        want.iter()
            .zip(got)
            .map(|(w, g)| {
                let p = f64::from(*w) - reference;
                p.exp() * (p - (g - lse))
            })
            .sum()
    }

    /// Applies the criteria: `exact` for f32 checkpoints in f32 arithmetic, KL and sure argmax for the others.
    ///
    /// # Errors
    /// With the measured distance and the bound that it breaks.
    pub fn check(&self, logits: &[f32], vocab: usize, exact: bool) -> Result<Distance> {
        let d = self.distance(logits, vocab)?;
        if exact {
            ensure!(d.relative <= 2e-4, "relative difference {:e} > 2e-4", d.relative);
        } else {
            let bound = (1.5 * self.own_max_kl.context("own_max_kl")?).max(2e-3);
            ensure!(d.max_kl <= bound, "KL {:e} > {bound:e}", d.max_kl);
            ensure!(d.sure_disagreements == 0, "{} sure argmax disagreements", d.sure_disagreements);
        }
        Ok(d)
    }
}
