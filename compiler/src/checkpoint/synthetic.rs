//! Weights made from a seed, so that a model's speed and memory can be measured without its checkpoint.
//!
//! Element `i` of a tensor is a function of (seed, tensor name, i) alone: a 16-bit lane of SplitMix64 at counter `i / 4`
//! under a key from the name's BLAKE3, uniform with standard deviation 0.02 (what Llama is initialised with), rounded
//! to the tensor's type. Norm weights are 1. Nothing is ever held but the rows that are asked for.

use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
use lathe_numerics::DType;

use super::source::{TensorInfo, TensorSource};
use crate::error::{CompileError, Result};

/// A tensor to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticTensor {
    /// Name as a checkpoint would have it.
    pub name: String,
    /// Type and shape.
    pub info: TensorInfo,
    /// All ones instead of noise.
    pub ones: bool,
}

/// Generated tensors.
#[derive(Debug)]
pub struct SyntheticSource {
    seed: u64,
    tensors: BTreeMap<String, (TensorInfo, Fill)>,
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Ones,
    Noise { key: u64 },
}

impl SyntheticSource {
    /// Tensors under a seed.
    pub fn new(seed: u64, tensors: Vec<SyntheticTensor>) -> Self {
        let entry = |t: SyntheticTensor| {
            let fill = if t.ones { Fill::Ones } else { Fill::Noise { key: key_of(seed, &t.name) } };
            (t.name, (t.info, fill))
        };
        SyntheticSource { seed, tensors: tensors.into_iter().map(entry).collect() }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

impl TensorSource for SyntheticSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info.clone())
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let Some((info, fill)) = self.tensors.get(name) else {
            return Err(CompileError::Bug(format!("tensor {name} is read and was never imported")));
        };
        info.check_rows(name, &rows, out.len())?;
        let first = (rows.start * info.row_len()) as u64;
        match (info.dtype, fill) {
            (DType::BF16, Fill::Ones) => repeat(out, bf16::ONE.to_le_bytes()),
            (DType::F16, Fill::Ones) => repeat(out, f16::ONE.to_le_bytes()),
            (_, Fill::Ones) => repeat(out, 1f32.to_le_bytes()),
            (DType::BF16, Fill::Noise { key }) => noise(*key, first, out, |x| bf16_bits(x).to_le_bytes()),
            (DType::F16, Fill::Noise { key }) => noise(*key, first, out, |x| f16::from_f32(x).to_le_bytes()),
            (_, Fill::Noise { key }) => noise(*key, first, out, f32::to_le_bytes),
        }
        Ok(())
    }
}

fn key_of(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(word)
}

fn repeat<const N: usize>(out: &mut [u8], one: [u8; N]) {
    for element in out.chunks_exact_mut(N) {
        element.copy_from_slice(&one);
    }
}

/// SplitMix64's output at `counter` (Steele, Lea, Flood, OOPSLA 2014).
#[inline(always)]
fn word(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform on 2^16 points in +-0.02 * sqrt(3), symmetric around zero.
#[inline(always)]
fn value(lane: u16) -> f32 {
    const SCALE: f32 = 0.02 * 1.732_050_8 / 32_768.0;
    (f32::from(lane as i16) + 0.5) * SCALE
}

/// Rounds a finite f32 to bf16, ties to even.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[inline(always)]
fn noise<const N: usize>(key: u64, first: u64, out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    let lane = |w: u64, l: u64| value((w >> (16 * l)) as u16);
    let mut at = first;
    let lead = (((4 - first % 4) % 4) as usize * N).min(out.len());
    let (head, rest) = out.split_at_mut(lead);
    for element in head.chunks_exact_mut(N) {
        element.copy_from_slice(&encode(lane(word(key, at / 4), at % 4)));
        at += 1;
    }
    let mut groups = rest.chunks_exact_mut(4 * N);
    for group in &mut groups {
        let w = word(key, at / 4);
        for (l, element) in group.chunks_exact_mut(N).enumerate() {
            element.copy_from_slice(&encode(lane(w, l as u64)));
        }
        at += 4;
    }
    for element in groups.into_remainder().chunks_exact_mut(N) {
        element.copy_from_slice(&encode(lane(word(key, at / 4), at % 4)));
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(seed: u64, dtype: DType) -> SyntheticSource {
        let tensor = |name: &str, shape: &[usize], ones| SyntheticTensor {
            name: name.into(),
            info: TensorInfo { dtype, shape: shape.to_vec() },
            ones,
        };
        SyntheticSource::new(
            seed,
            vec![tensor("w", &[200, 333], false), tensor("v", &[200, 333], false), tensor("n", &[5], true)],
        )
    }

    fn all(source: &SyntheticSource, name: &str) -> Vec<f32> {
        let info = source.info(name).unwrap();
        let mut bytes = vec![0; info.len() * info.dtype.size()];
        source.read_rows(name, 0..info.rows(), &mut bytes).unwrap();
        match info.dtype {
            DType::BF16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    #[test]
    fn blocks_do_not_change_elements() {
        let s = source(7, DType::BF16);
        let row = 333 * 2;
        let mut whole = vec![0; 200 * row];
        s.read_rows("w", 0..200, &mut whole).unwrap();
        for rows in [0..1, 1..2, 3..20, 199..200] {
            let mut part = vec![0; rows.len() * row];
            s.read_rows("w", rows.clone(), &mut part).unwrap();
            assert_eq!(part, whole[rows.start * row..rows.end * row], "{rows:?}");
        }
    }

    #[test]
    fn types_agree_up_to_their_rounding() {
        let exact = all(&source(7, DType::F32), "w");
        for dtype in [DType::BF16, DType::F16] {
            let rounded: Vec<f32> = exact.iter().map(|&x| dtype.round(x)).collect();
            assert_eq!(all(&source(7, dtype), "w"), rounded);
        }
    }

    #[test]
    fn noise_has_the_promised_spread_and_depends_on_seed_and_name() {
        let s = source(7, DType::F32);
        let w = all(&s, "w");
        let n = w.len() as f64;
        let mean = w.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let std = (w.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 3e-4 && (std - 0.02).abs() < 2e-4, "mean {mean} std {std}");
        assert_ne!(w, all(&s, "v"));
        assert_ne!(w, all(&source(8, DType::F32), "w"));
        assert_eq!(w, all(&source(7, DType::F32), "w"));
        assert_eq!(all(&s, "n"), [1.0; 5]);
    }
}
