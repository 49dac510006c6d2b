//! `cvt`: all pairs of types by a few steps each.

use super::build::{Builder, Lowered};
use super::op::Op;
use super::types::Type;
use crate::exec::alu::Alu;
use crate::exec::registers::Reg;
use crate::ptx::{Class, Instruction};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    None,
    Nearest,
    Zero,
    /// To a whole number, by this operation on f32 and on f64.
    Whole(Alu, Alu),
}

impl<'a> Builder<'a, '_> {
    pub(super) fn lower_cvt(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let [mods @ .., to, from] = mods else { return Err(self.error("cvt without types")) };
        let parse = |word: &str| Type::parse(word);
        let (Some(to), Some(from)) = (parse(to), parse(from)) else {
            return Err(self.unknown(&format!("`{}`", i.opcode)));
        };
        let (mut rounding, mut flush, mut sat, mut relu) = (Rounding::None, false, false, false);
        for word in mods {
            match *word {
                "rn" => rounding = Rounding::Nearest,
                "rz" => rounding = Rounding::Zero,
                "rni" => rounding = Rounding::Whole(Alu::RoundEvenF32, Alu::RoundEvenF64),
                "rzi" => rounding = Rounding::Whole(Alu::TruncF32, Alu::TruncF64),
                "rmi" => rounding = Rounding::Whole(Alu::FloorF32, Alu::FloorF64),
                "rpi" => rounding = Rounding::Whole(Alu::CeilF32, Alu::CeilF64),
                "ftz" => flush = true,
                "sat" => sat = true,
                "relu" => relu = true,
                other => return Err(self.unknown(&format!("`.{other}` of cvt"))),
            }
        }
        if matches!(to, Type::F16x2 | Type::BF16x2) && from == Type::F32 {
            self.arity(i, 3, 3)?;
            if rounding != Rounding::Nearest || sat {
                return Err(self.unknown("this rounding of packed cvt"));
            }
            let d = self.dst(&i.operands[0], Class::B32)?;
            let mut s = [self.src(&i.operands[1], from)?, self.src(&i.operands[2], from)?];
            if flush {
                s = s.map(|s| self.temp_alu(Alu::FlushF32, Class::B32, &[s]));
            }
            let op = if to == Type::F16x2 { Alu::F32ToF16x2 } else { Alu::F32ToBF16x2 };
            if relu {
                let t = self.temp_alu(op, Class::B32, &s);
                self.alu(Alu::Relu16x2, d, &[t]);
            } else {
                self.alu(op, d, &s);
            }
            return Ok(());
        }
        self.arity(i, 2, 2)?;
        let s = self.src(&i.operands[1], from)?;
        let d = self.dst(&i.operands[0], self.destination_class(i, to))?;
        let r = match (from.is_int(), to.is_int()) {
            (true, true) => self.int_to_int(s, from, to, sat, self.class(d)),
            (true, false) => self.int_to_float(s, from, to, rounding)?,
            (false, true) => self.float_to_int(s, from, to, rounding, flush)?,
            (false, false) => self.float_to_float(s, from, to, rounding, flush, sat)?,
        };
        let r = if relu {
            match to {
                Type::F16 | Type::BF16 => self.temp_alu(Alu::Relu16, Class::B16, &[r]),
                _ => return Err(self.unknown("`.relu` of this cvt")),
            }
        } else {
            r
        };
        self.give(d, r);
        Ok(())
    }

    /// Conversions to small types may have wider destinations.
    fn destination_class(&self, i: &Instruction<'a>, to: Type) -> Class {
        match i.operands[0] {
            crate::ptx::Operand::Register(id) if to.bytes() < 4 && self.class(Reg(id)) != Class::B64 => {
                self.class(Reg(id))
            }
            _ => to.class(),
        }
    }

    /// The last step's temporary becomes the destination, so that simple conversions are one operation.
    pub(super) fn give(&mut self, d: Reg, r: Reg) {
        let op = if self.class(d) == Class::B64 { Alu::MovB64 } else { Alu::MovB32 };
        self.rename_or_move(d, r, op);
    }

    fn extend(&mut self, s: Reg, from: Type, class: Class) -> Reg {
        let op = match (from, class) {
            (Type::S8, Class::B64) => Alu::S8ToB64,
            (Type::S8, Class::B16) => Alu::S8ToB16,
            (Type::S8, _) => Alu::S8ToB32,
            (Type::U8 | Type::B8, Class::B64) => Alu::U8ToB64,
            (Type::U8 | Type::B8, _) => Alu::U8ToB32,
            (Type::S16, Class::B64) => Alu::S16ToB64,
            (Type::S16, Class::B16) => Alu::LowB32,
            (Type::S16, _) => Alu::S16ToB32,
            (Type::U16 | Type::B16, Class::B64) => Alu::U16ToB64,
            (Type::U16 | Type::B16, _) => Alu::U16ToB32,
            (Type::S32, Class::B64) => Alu::S32ToB64,
            (Type::U32 | Type::B32, Class::B64) => Alu::U32ToB64,
            (_, Class::B64) => Alu::MovB64,
            _ => Alu::MovB32,
        };
        self.temp_alu(op, class, &[s])
    }

    fn int_to_int(&mut self, s: Reg, from: Type, to: Type, sat: bool, class: Class) -> Reg {
        if sat {
            let wide = self.extend(s, from, Class::B64);
            let op = match (from.signed(), to) {
                (false, Type::U8) => Alu::U64ToSatU8,
                (false, Type::S8) => Alu::U64ToSatS8,
                (false, Type::U16) => Alu::U64ToSatU16,
                (false, Type::S16) => Alu::U64ToSatS16,
                (false, Type::U32) => Alu::U64ToSatU32,
                (false, Type::S32) => Alu::U64ToSatS32,
                (false, Type::S64) => Alu::U64ToSatS64,
                (true, Type::U8) => Alu::S64ToSatU8,
                (true, Type::S8) => Alu::S64ToSatS8,
                (true, Type::U16) => Alu::S64ToSatU16,
                (true, Type::S16) => Alu::S64ToSatS16,
                (true, Type::U32) => Alu::S64ToSatU32,
                (true, Type::S32) => Alu::S64ToSatS32,
                (true, Type::U64) => Alu::S64ToSatU64,
                _ => Alu::MovB64,
            };
            let r = self.temp_alu(op, to.class(), &[wide]);
            return if to.signed() && to.bytes() < 4 { self.extend(r, to, class) } else { r };
        }
        if to.bytes() > from.bytes() {
            return self.extend(s, from, class);
        }
        let narrows = from.wide() && !to.wide();
        let s = if narrows { self.temp_alu(Alu::LowB64, Class::B32, &[s]) } else { s };
        match to.bytes() {
            8 | 4 => s,
            _ => self.extend(s, to, class),
        }
    }

    fn int_to_float(&mut self, s: Reg, from: Type, to: Type, rounding: Rounding) -> Lowered<Reg> {
        if !matches!(rounding, Rounding::Nearest) {
            return Err(self.unknown("this rounding of cvt from integers"));
        }
        let signed = from.signed();
        if to == Type::F32 || (to == Type::F16 && from.bytes() <= 4) {
            let r = if from.wide() {
                self.temp_alu(if signed { Alu::S64ToF32 } else { Alu::U64ToF32 }, Class::B32, &[s])
            } else {
                let s = self.extend(s, from, Class::B32);
                self.temp_alu(if signed { Alu::S32ToF32 } else { Alu::U32ToF32 }, Class::B32, &[s])
            };
            return Ok(if to == Type::F16 { self.temp_alu(Alu::F32ToF16, Class::B16, &[r]) } else { r });
        }
        let wide = self.extend(s, from, Class::B64);
        let double = self.temp_alu(if signed { Alu::S64ToF64 } else { Alu::U64ToF64 }, Class::B64, &[wide]);
        match to {
            Type::F64 => Ok(double),
            Type::BF16 if from.bytes() <= 4 => {
                let odd = self.temp_alu(Alu::F64ToF32Odd, Class::B32, &[double]);
                Ok(self.temp_alu(Alu::F32ToBF16, Class::B16, &[odd]))
            }
            _ => Err(self.unknown("this pair of types of cvt")),
        }
    }

    fn widen_float(&mut self, s: Reg, from: Type) -> Reg {
        match from {
            Type::F16 => self.temp_alu(Alu::F16ToF32, Class::B32, &[s]),
            Type::BF16 => self.temp_alu(Alu::BF16ToF32, Class::B32, &[s]),
            _ => s,
        }
    }

    fn float_to_int(
        &mut self,
        s: Reg,
        from: Type,
        to: Type,
        rounding: Rounding,
        flush: bool,
    ) -> Lowered<Reg> {
        let Rounding::Whole(on32, on64) = rounding else {
            return Err(self.unknown("cvt from float to integer without rounding to a whole number"));
        };
        let mut s = self.widen_float(s, from);
        if flush && from == Type::F32 {
            s = self.temp_alu(Alu::FlushF32, Class::B32, &[s]);
        }
        if from != Type::F64 && matches!(to, Type::U32 | Type::S32) {
            let whole = self.temp_alu(on32, Class::B32, &[s]);
            let op = if to == Type::U32 { Alu::F32ToU32 } else { Alu::F32ToS32 };
            return Ok(self.temp_alu(op, Class::B32, &[whole]));
        }
        let double = if from == Type::F64 { s } else { self.temp_alu(Alu::F32ToF64, Class::B64, &[s]) };
        let whole = self.temp_alu(on64, Class::B64, &[double]);
        let op = match to {
            Type::U8 => Alu::F64ToU8,
            Type::S8 => Alu::F64ToS8,
            Type::U16 => Alu::F64ToU16,
            Type::S16 => Alu::F64ToS16,
            Type::U32 => Alu::F64ToU32,
            Type::S32 => Alu::F64ToS32,
            Type::U64 => Alu::F64ToU64,
            Type::S64 => Alu::F64ToS64,
            _ => return Err(self.unknown("this pair of types of cvt")),
        };
        Ok(self.temp_alu(op, to.class(), &[whole]))
    }

    fn float_to_float(
        &mut self,
        s: Reg,
        from: Type,
        to: Type,
        rounding: Rounding,
        flush: bool,
        sat: bool,
    ) -> Lowered<Reg> {
        let mut r = s;
        if from == Type::F64 && to == Type::F64 {
            if let Rounding::Whole(_, on64) = rounding {
                r = self.temp_alu(on64, Class::B64, &[r]);
            }
            return if sat { Err(self.unknown("`.sat` of cvt.f64")) } else { Ok(r) };
        }
        if from == Type::F64 {
            let op = match (to, rounding) {
                (Type::F32, Rounding::Nearest) => Alu::F64ToF32,
                (Type::F16 | Type::BF16, Rounding::Nearest) => Alu::F64ToF32Odd,
                _ => return Err(self.unknown("this cvt from f64")),
            };
            r = self.temp_alu(op, Class::B32, &[r]);
        } else {
            r = self.widen_float(r, from);
            if flush && from == Type::F32 {
                r = self.temp_alu(Alu::FlushF32, Class::B32, &[r]);
            }
        }
        if let Rounding::Whole(on32, _) = rounding {
            r = self.temp_alu(on32, Class::B32, &[r]);
        }
        if sat {
            r = self.temp_alu(Alu::SatF32, Class::B32, &[r]);
        }
        let op = match (to, rounding) {
            (Type::F32, Rounding::None | Rounding::Whole(..)) => return Ok(r),
            (Type::F32, _) if from == Type::F64 => return Ok(r),
            (Type::F64, Rounding::None) => return Ok(self.temp_alu(Alu::F32ToF64, Class::B64, &[r])),
            (Type::F16, Rounding::Nearest) => Alu::F32ToF16,
            (Type::F16, Rounding::Zero) => Alu::F32ToF16Rz,
            (Type::F16, _) if from == Type::F16 => Alu::F32ToF16,
            (Type::BF16, Rounding::Nearest) => Alu::F32ToBF16,
            (Type::BF16, Rounding::Zero) => Alu::F32ToBF16Rz,
            (Type::BF16, _) if from == Type::BF16 => Alu::F32ToBF16,
            _ => return Err(self.unknown("this pair of types and rounding of cvt")),
        };
        Ok(self.temp_alu(op, Class::B16, &[r]))
    }

    /// If the operation before made `r` for nobody else it makes `d` instead; otherwise `r` is copied.
    fn rename_or_move(&mut self, d: Reg, r: Reg, mov: Alu) {
        if self.claim_last(r, d) {
            return;
        }
        let s = self.sources(&[r]);
        self.push(Op::Alu { op: mov, d, s });
    }
}
