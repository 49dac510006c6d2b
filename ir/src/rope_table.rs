//! Cosines and sines of the rotary embedding, computed from a few numbers, with the scalings that Llama models use.

use std::f64::consts::TAU;

use lathe_numerics::DType;

use crate::facts::Facts;
use crate::op::{AttrValue, Attrs};

/// How the frequencies of the rotary embedding are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RopeScaling {
    /// As trained.
    #[default]
    None,
    /// All frequencies divided by `factor`.
    Linear,
    /// Low frequencies divided by `factor`, high ones kept, a linear blend between (Llama 3.1).
    Llama3,
}

impl AttrValue for RopeScaling {
    fn text(&self) -> String {
        match self {
            RopeScaling::None => "none",
            RopeScaling::Linear => "linear",
            RopeScaling::Llama3 => "llama3",
        }
        .into()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear),
            "llama3" => Ok(RopeScaling::Llama3),
            _ => Err("expected none, linear or llama3".into()),
        }
    }
}

/// The table `f32[positions, dim]`: row `p` holds `cos(p * w_i)` for `i < dim/2`, then `sin(p * w_i)`, where
/// `w_i = theta^(-2i/dim)` after scaling.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RopeTable {
    /// Number of rows.
    pub positions: usize,
    /// Rotated elements per head; even.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Divisor of stretched frequencies; 1 without scaling.
    pub factor: f64,
    /// `llama3`: wavelengths above `original / low_freq_factor` are stretched.
    pub low_freq_factor: f64,
    /// `llama3`: wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// `llama3`: context length before stretching.
    pub original: usize,
}

impl RopeTable {
    /// A table without scaling.
    pub fn plain(positions: usize, dim: usize, theta: f64) -> Self {
        RopeTable {
            positions,
            dim,
            theta,
            factor: 1.0,
            low_freq_factor: 1.0,
            high_freq_factor: 1.0,
            ..Self::default()
        }
    }

    /// Visits the attributes, as [`crate::op::Operation::attrs`].
    pub fn attrs(&mut self, a: &mut Attrs) {
        a.required("positions", &mut self.positions);
        a.required("dim", &mut self.dim);
        a.required("theta", &mut self.theta);
        a.optional("scaling", &mut self.scaling, RopeScaling::None);
        a.optional("factor", &mut self.factor, 1.0);
        a.optional("low_freq_factor", &mut self.low_freq_factor, 1.0);
        a.optional("high_freq_factor", &mut self.high_freq_factor, 1.0);
        a.optional("original", &mut self.original, 0);
    }

    /// Facts of the table.
    ///
    /// # Errors
    /// If the numbers make no table.
    pub fn infer(&self) -> Result<Facts, String> {
        if self.positions == 0 || self.dim == 0 || !self.dim.is_multiple_of(2) {
            return Err(format!("[{}, {}] is empty or has an odd width", self.positions, self.dim));
        }
        if self.theta <= 0.0 || self.factor <= 0.0 {
            return Err("theta and factor must be positive".into());
        }
        let llama3 = self.scaling == RopeScaling::Llama3;
        if llama3 && (self.original == 0 || self.low_freq_factor <= 0.0) {
            return Err("llama3 scaling needs original and low_freq_factor above 0".into());
        }
        if llama3 && self.high_freq_factor <= self.low_freq_factor {
            return Err("high_freq_factor must exceed low_freq_factor".into());
        }
        Ok(Facts::fixed(DType::F32, &[self.positions, self.dim]))
    }

    /// The `dim / 2` angular frequencies, rounded to f32 as the models were trained.
    pub fn frequencies(&self) -> Vec<f32> {
        let half = self.dim / 2;
        let plain = |i: usize| libm::pow(self.theta, -(2.0 * i as f64) / self.dim as f64) as f32;
        (0..half).map(|i| self.scale(plain(i))).collect()
    }

    fn scale(&self, frequency: f32) -> f32 {
        let w = f64::from(frequency);
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear => (w / self.factor) as f32,
            RopeScaling::Llama3 => {
                let turns = self.original as f64 * w / TAU;
                if turns < self.low_freq_factor {
                    (w / self.factor) as f32
                } else if turns > self.high_freq_factor {
                    frequency
                } else {
                    let blend =
                        (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
                    ((1.0 - blend) * w / self.factor + blend * w) as f32
                }
            }
        }
    }

    /// Writes row `position` to `out` (`dim` elements). The angle is an f32 product, as in training code.
    pub fn row(&self, frequencies: &[f32], position: usize, out: &mut [f32]) {
        let half = frequencies.len();
        for (i, w) in frequencies.iter().enumerate() {
            let angle = f64::from(position as f32 * w);
            out[i] = libm::cos(angle) as f32;
            out[half + i] = libm::sin(angle) as f32;
        }
    }

    /// The whole table.
    pub fn eval(&self) -> Vec<f32> {
        let frequencies = self.frequencies();
        let mut table = vec![0.0; self.positions * self.dim];
        for (position, row) in table.chunks_exact_mut(self.dim).enumerate() {
            self.row(&frequencies, position, row);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_cosines_then_sines() {
        let table = RopeTable::plain(3, 4, 100.0).eval();
        let want = [2.0_f64.cos(), 0.2_f64.cos(), 2.0_f64.sin(), 0.2_f64.sin()];
        for (got, want) in table[8..].iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6);
        }
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn scalings_stretch_low_frequencies() {
        let base = RopeTable::plain(1, 64, 500_000.0);
        let plain = base.frequencies();
        let linear = RopeTable { scaling: RopeScaling::Linear, factor: 4.0, ..base.clone() }.frequencies();
        let llama3 = RopeTable {
            scaling: RopeScaling::Llama3,
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192,
            ..base
        }
        .frequencies();
        assert_eq!(linear[5], plain[5] / 4.0);
        assert_eq!(llama3[0], plain[0]);
        assert_eq!(llama3[31], plain[31] / 32.0);
        let mixed = (0..32).filter(|&i| llama3[i] < plain[i] && llama3[i] > plain[i] / 32.0).count();
        assert!((1..8).contains(&mixed), "{mixed} blended frequencies");
    }
}
