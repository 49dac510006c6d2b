//! Cosines and sines of the rotary embedding, computed from a few numbers, with the scalings that published models use.

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
    /// As `llama3`, blended by the number of turns within `original` positions (YaRN, arXiv 2309.00071).
    Yarn,
    /// Every frequency divided by a number of its own (LongRoPE, arXiv 2402.13753).
    LongRope,
}

impl AttrValue for RopeScaling {
    fn text(&self) -> String {
        match self {
            RopeScaling::None => "none",
            RopeScaling::Linear => "linear",
            RopeScaling::Llama3 => "llama3",
            RopeScaling::Yarn => "yarn",
            RopeScaling::LongRope => "longrope",
        }
        .into()
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear),
            "llama3" => Ok(RopeScaling::Llama3),
            "yarn" => Ok(RopeScaling::Yarn),
            "longrope" => Ok(RopeScaling::LongRope),
            _ => Err("expected none, linear, llama3, yarn or longrope".into()),
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
    /// `llama3`, `yarn`: context length before stretching.
    pub original: usize,
    /// `yarn`: dimensions that turn at least this often within `original` positions are kept.
    pub beta_fast: f64,
    /// `yarn`: dimensions that turn at most this often are stretched by all of `factor`.
    pub beta_slow: f64,
    /// `yarn`: whether the bounds of the blend are whole dimensions.
    pub truncate: bool,
    /// `longrope`: the divisor of each frequency, `dim / 2` of them.
    pub factors: Vec<f64>,
    /// What cosines and sines are multiplied by; 1 unless the scaling has a temperature.
    pub amplitude: f64,
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
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            amplitude: 1.0,
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
        a.optional("beta_fast", &mut self.beta_fast, 32.0);
        a.optional("beta_slow", &mut self.beta_slow, 1.0);
        a.optional("truncate", &mut self.truncate, true);
        a.optional("factors", &mut self.factors, Vec::new());
        a.optional("amplitude", &mut self.amplitude, 1.0);
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
        let yarn = self.scaling == RopeScaling::Yarn;
        if yarn && (self.original == 0 || self.beta_slow <= 0.0 || self.beta_fast < self.beta_slow) {
            return Err("yarn scaling needs original above 0 and beta_fast >= beta_slow > 0".into());
        }
        if yarn && self.theta <= 1.0 {
            return Err("yarn scaling needs theta above 1".into());
        }
        let longrope = self.scaling == RopeScaling::LongRope;
        if longrope && (self.factors.len() != self.dim / 2 || self.factors.iter().any(|f| *f <= 0.0)) {
            return Err(format!("longrope scaling needs {} positive factors", self.dim / 2));
        }
        Ok(Facts::fixed(DType::F32, &[self.positions, self.dim]))
    }

    /// The `dim / 2` angular frequencies, with the f32 operations and roundings of transformers' own code, so that the
    /// bits are those that models were trained and published with.
    pub fn frequencies(&self) -> Vec<f32> {
        let period = |i: usize| {
            let exponent = (2 * i) as f32 / self.dim as f32;
            libm::pow(f64::from(self.theta as f32), f64::from(exponent)) as f32
        };
        let yarn = self.yarn_bounds();
        let frequency = |i: usize| match self.scaling {
            RopeScaling::LongRope => 1.0 / (self.factors.get(i).map_or(1.0, |&f| f as f32) * period(i)),
            RopeScaling::Yarn => {
                let ramp = ((i as f32 - yarn.0 as f32) / ((yarn.1 - yarn.0) as f32)).clamp(0.0, 1.0);
                let kept = 1.0 - ramp;
                1.0 / (self.factor as f32 * period(i)) * (1.0 - kept) + 1.0 / period(i) * kept
            }
            _ => self.scale(1.0 / period(i)),
        };
        (0..self.dim / 2).map(frequency).collect()
    }

    /// Dimensions between which `yarn` blends.
    fn yarn_bounds(&self) -> (f64, f64) {
        let (dim, original) = (self.dim as f64, self.original as f64);
        let turning = |turns: f64| dim * libm::log(original / (turns * TAU)) / (2.0 * libm::log(self.theta));
        let (mut low, mut high) = (turning(self.beta_fast), turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }

    fn scale(&self, w: f32) -> f32 {
        let (factor, low, high) = (self.factor as f32, self.low_freq_factor, self.high_freq_factor);
        match self.scaling {
            RopeScaling::None | RopeScaling::Yarn | RopeScaling::LongRope => w,
            RopeScaling::Linear => w / factor,
            RopeScaling::Llama3 => {
                let original = self.original as f64;
                // Torch divides a number by a tensor as the tensor's reciprocal times the number.
                let wavelength = (1.0 / w) * (TAU as f32);
                if wavelength > (original / low) as f32 {
                    w / factor
                } else if wavelength < (original / high) as f32 {
                    w
                } else {
                    let turns = (1.0 / wavelength) * original as f32;
                    let blend = (turns - low as f32) / ((high - low) as f32);
                    (1.0 - blend) * w / factor + blend * w
                }
            }
        }
    }

    /// Writes row `position` to `out` (`dim` elements). The angle is an f32 product, as in training code.
    pub fn row(&self, frequencies: &[f32], position: usize, out: &mut [f32]) {
        let (half, amplitude) = (frequencies.len(), self.amplitude as f32);
        for (i, w) in frequencies.iter().enumerate() {
            let angle = f64::from(position as f32 * w);
            out[i] = libm::cos(angle) as f32 * amplitude;
            out[half + i] = libm::sin(angle) as f32 * amplitude;
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

    /// `1.0 / theta ** (arange(0, 64, 2).float() / 64)` and transformers' llama3 scaling, by torch 2 on a CPU.
    #[test]
    fn frequencies_have_the_bits_of_torch() {
        let want: [u32; 32] = [
            0x3f800000, 0x3f29e1c6, 0x3ee177bc, 0x3e959ee3, 0x3e4693b0, 0x3e03c6a0, 0x3daee4ad, 0x3d681e67,
            0x3d1a08c8, 0x3ccc6f49, 0x3c87a9c3, 0x3c340d6d, 0x3beef74f, 0x3b9e9402, 0x3b527720, 0x3aa9279b,
            0x39e13620, 0x38cb98f7, 0x37a3418d, 0x3758ac81, 0x370fc8f8, 0x36bed4f4, 0x367d45c3, 0x3628126b,
            0x35df10c4, 0x359406cb, 0x35447610, 0x35025f34, 0x34ad07a7, 0x3465a54d, 0x341864a7, 0x33ca41b0,
        ];
        let table = RopeTable {
            scaling: RopeScaling::Llama3,
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192,
            ..RopeTable::plain(1, 64, 500_000.0)
        };
        let bits: Vec<u32> = table.frequencies().iter().map(|w| w.to_bits()).collect();
        assert_eq!(bits, want);
    }

    /// transformers' `yarn` and `longrope`, by torch 2 on a CPU.
    #[test]
    fn long_context_scalings_have_the_bits_of_torch() {
        let check = |table: RopeTable, want: &[u32]| {
            let bits: Vec<u32> = table.frequencies().iter().map(|w| w.to_bits()).collect();
            assert_eq!(bits, want, "{table:?}");
        };
        let yarn = RopeTable {
            scaling: RopeScaling::Yarn,
            factor: 32.0,
            original: 4096,
            ..RopeTable::plain(1, 32, 150_000.0)
        };
        check(
            yarn.clone(),
            &[
                0x3f800000, 0x3ef316a2, 0x3e66d3fa, 0x3ddb2f9e, 0x3d502194, 0x3c9f57a3, 0x3be5e413,
                0x3b153e49, 0x3a184aba, 0x3820adc6, 0x37989328, 0x3710e12c, 0x3689928c, 0x3602a245,
                0x35781728, 0x34eb93eb,
            ],
        );
        check(
            RopeTable { truncate: false, ..yarn },
            &[
                0x3f800000, 0x3ef316a2, 0x3e66d3fa, 0x3ddb2f9e, 0x3d502194, 0x3c9e6470, 0x3bdea840,
                0x3b093803, 0x39ef543c, 0x3820adc6, 0x37989328, 0x3710e12c, 0x3689928c, 0x3602a245,
                0x35781728, 0x34eb93eb,
            ],
        );
        check(
            RopeTable {
                scaling: RopeScaling::LongRope,
                factors: vec![1.0, 1.5, 2.0, 4.0, 8.0, 9.0, 10.0, 11.0],
                ..RopeTable::plain(1, 16, 10_000.0)
            },
            &[0x3f800000, 0x3e57e0ce, 0x3d4ccccd, 0x3c0186e3, 0x3aa3d70a, 0x39b8374e, 0x38d1b717, 0x37f127d0],
        );
    }
}
