//! Element types and their rounding.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// Element type of a tensor. The discriminants are stored in plans and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "plan",
    derive(bincode::Encode, bincode::Decode, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// bfloat16: the upper half of a binary32.
    BF16 = 2,
    /// Signed 32-bit integer.
    I32 = 3,
    /// Unsigned 32-bit integer.
    U32 = 4,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// True for the types that hold weights and activations.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Name as it stands in IR text, flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
        }
    }

    /// The value of `x` after one rounding (to nearest, ties to even) to this type. Integers pass through.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::BF16 => bf16::from_f32(x).to_f32(),
            DType::F16 => f16::from_f32(x).to_f32(),
            DType::F32 | DType::I32 | DType::U32 => x,
        }
    }

    /// The type with this stored discriminant.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => DType::F32,
            1 => DType::F16,
            2 => DType::BF16,
            3 => DType::I32,
            4 => DType::U32,
            _ => return None,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" | "float32" | "F32" => Ok(DType::F32),
            "f16" | "float16" | "F16" => Ok(DType::F16),
            "bf16" | "bfloat16" | "BF16" => Ok(DType::BF16),
            "i32" => Ok(DType::I32),
            "u32" => Ok(DType::U32),
            _ => Err(format!("dtype {s:?} is not one of f32, f16, bf16")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_round_trip() {
        for code in 0..=4 {
            let d = DType::from_code(code).unwrap();
            assert_eq!(d as u8, code);
            assert_eq!(d.name().parse::<DType>().unwrap(), d);
        }
        assert_eq!(DType::from_code(5), None);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        assert_eq!(DType::BF16.round(f32::from_bits(0x3f80_8000)), 1.0);
        assert_eq!(DType::BF16.round(f32::from_bits(0x3f81_8000)), f32::from_bits(0x3f82_0000));
    }
}
