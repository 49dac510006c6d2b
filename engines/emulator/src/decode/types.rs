//! The types of PTX instructions.

use crate::ptx::Class;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    B32,
    U32,
    S32,
    B64,
    U64,
    S64,
    F16,
    BF16,
    F16x2,
    BF16x2,
    F32,
    F64,
    Pred,
}

impl Type {
    pub(super) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "b8" => Type::B8,
            "u8" => Type::U8,
            "s8" => Type::S8,
            "b16" => Type::B16,
            "u16" => Type::U16,
            "s16" => Type::S16,
            "b32" => Type::B32,
            "u32" => Type::U32,
            "s32" => Type::S32,
            "b64" => Type::B64,
            "u64" => Type::U64,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "bf16" => Type::BF16,
            "f16x2" => Type::F16x2,
            "bf16x2" => Type::BF16x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "pred" => Type::Pred,
            _ => return None,
        })
    }

    pub(super) const fn bytes(self) -> u32 {
        match self {
            Type::B8 | Type::U8 | Type::S8 | Type::Pred => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::BF16 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F16x2 | Type::BF16x2 | Type::F32 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
        }
    }

    pub(super) const fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub(super) const fn is_int(self) -> bool {
        matches!(
            self,
            Type::U8
                | Type::S8
                | Type::U16
                | Type::S16
                | Type::U32
                | Type::S32
                | Type::U64
                | Type::S64
                | Type::B8
                | Type::B16
                | Type::B32
                | Type::B64
        )
    }

    pub(super) const fn wide(self) -> bool {
        self.bytes() == 8
    }

    pub(super) const fn class(self) -> Class {
        match self.bytes() {
            _ if matches!(self, Type::Pred) => Class::Pred,
            1 | 2 => Class::B16,
            4 => Class::B32,
            _ => Class::B64,
        }
    }
}
