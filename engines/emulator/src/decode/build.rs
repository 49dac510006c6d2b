//! Operands to registers: the frame that lowers one instruction after the other.

use std::collections::HashMap;

use super::op::{Address, Cell, Guard, Op, Window};
use super::types::Type;
use super::{Fixed, Instruction, Line, Special, Symbol};
use crate::exec::alu::Alu;
use crate::exec::registers::Reg;
use crate::ptx::{self, Class, Entry, Operand, PtxError};

/// A kernel whose registers are ids.
pub(super) struct Built {
    pub(super) instructions: Vec<Instruction>,
    pub(super) lines: Vec<Line>,
    /// Classes of all ids.
    pub(super) classes: Vec<Class>,
    pub(super) fixed: HashMap<Reg, Fixed>,
}

pub(super) struct Builder<'a, 'e> {
    text: &'a str,
    pub(super) entry: &'e Entry<'a>,
    symbols: &'e HashMap<&'e str, Symbol>,
    built: Built,
    fixed: HashMap<Fixed, Reg>,
    guard: Guard,
    line: Line,
}

/// Operations of all instructions of a kernel.
pub(super) fn build<'a>(
    text: &'a str,
    entry: &Entry<'a>,
    symbols: &HashMap<&str, Symbol>,
) -> Result<Built, PtxError> {
    let built = Built {
        instructions: Vec::new(),
        lines: Vec::new(),
        classes: entry.registers.clone(),
        fixed: HashMap::new(),
    };
    let mut builder =
        Builder { text, entry, symbols, built, fixed: HashMap::new(), guard: None, line: Line::default() };
    let mut starts = Vec::with_capacity(entry.body.len() + 1);
    for instruction in &entry.body {
        starts.push(builder.built.instructions.len() as u32);
        builder.guard = instruction.guard.map(|(p, negated)| (Reg(p), negated));
        builder.line = Line {
            source: instruction.source.1,
            file: instruction.source.0,
            called_from: instruction.inlined_at.1,
            called_file: instruction.inlined_at.0,
            ptx: instruction.line,
        };
        builder.lower(instruction)?;
    }
    // A kernel ends where its text ends; labels may stand there.
    starts.push(builder.built.instructions.len() as u32);
    builder.guard = None;
    builder.push(Op::Exit);
    let mut built = builder.built;
    for instruction in &mut built.instructions {
        match &mut instruction.op {
            Op::Branch { target } => *target = starts[*target as usize],
            Op::BranchTable { targets, .. } => {
                targets.iter_mut().for_each(|t| *t = starts[*t as usize]);
            }
            _ => {}
        }
    }
    Ok(built)
}

pub(super) type Lowered<T> = Result<T, PtxError>;

impl<'a> Builder<'a, '_> {
    /// An error about the present instruction.
    pub(super) fn error(&self, why: impl Into<String>) -> PtxError {
        let text = self.text.lines().nth((self.line.ptx as usize).saturating_sub(1)).unwrap_or_default();
        PtxError::at(self.line.ptx, &text.split_whitespace().collect::<Vec<_>>().join(" "), why)
    }

    pub(super) fn unknown(&self, what: &str) -> PtxError {
        self.error(format!("the emulator does not know {what}"))
    }

    pub(super) fn push(&mut self, op: Op) {
        self.built.instructions.push(Instruction { guard: self.guard, op });
        self.built.lines.push(self.line);
    }

    /// Runs in all lanes, whatever the guard: for values nobody else sees.
    pub(super) fn push_unguarded(&mut self, op: Op) {
        self.built.instructions.push(Instruction { guard: None, op });
        self.built.lines.push(self.line);
    }

    pub(super) fn guarded(&self) -> bool {
        self.guard.is_some()
    }

    pub(super) fn alu(&mut self, op: Alu, d: Reg, s: &[Reg]) {
        let s = self.sources(s);
        self.push(Op::Alu { op, d, s });
    }

    /// An operation whose result is a fresh register.
    pub(super) fn temp_alu(&mut self, op: Alu, class: Class, s: &[Reg]) -> Reg {
        let d = self.temp(class);
        let s = self.sources(s);
        self.push_unguarded(Op::Alu { op, d, s });
        d
    }

    pub(super) fn sources(&mut self, s: &[Reg]) -> [Reg; 3] {
        let zero = self.fixed(Fixed::Bits64(0));
        std::array::from_fn(|i| s.get(i).copied().unwrap_or(zero))
    }

    pub(super) fn temp(&mut self, class: Class) -> Reg {
        self.built.classes.push(class);
        Reg(self.built.classes.len() as u32 - 1)
    }

    pub(super) fn fixed(&mut self, value: Fixed) -> Reg {
        if let Some(r) = self.fixed.get(&value) {
            return *r;
        }
        let r = self.temp(if value.wide() { Class::B64 } else { Class::B32 });
        self.fixed.insert(value, r);
        self.built.fixed.insert(r, value);
        r
    }

    pub(super) fn int32(&mut self, value: u32) -> Reg {
        self.fixed(Fixed::Bits32(value))
    }

    pub(super) fn class(&self, r: Reg) -> Class {
        self.built.classes[r.0 as usize]
    }

    pub(super) fn arity(&self, i: &ptx::Instruction<'a>, min: usize, max: usize) -> Lowered<()> {
        if (min..=max).contains(&i.operands.len()) {
            return Ok(());
        }
        Err(self.error(format!("{} operands where {min} to {max} belong", i.operands.len())))
    }

    /// A source operand as a register of a type.
    pub(super) fn src(&mut self, operand: &Operand<'a>, of: Type) -> Lowered<Reg> {
        match operand {
            Operand::Register(id) => {
                let r = Reg(*id);
                match (self.class(r), of.class()) {
                    (Class::Pred, Class::Pred) => Ok(r),
                    (Class::Pred, _) | (_, Class::Pred) => Err(self.error("predicate and number mixed up")),
                    (Class::B64, Class::B64) => Ok(r),
                    (Class::B64, _) => Ok(self.temp_alu(Alu::LowB64, Class::B32, &[r])),
                    (_, Class::B64) => Err(self.error("64-bit operand expected")),
                    _ => Ok(r),
                }
            }
            Operand::Int(v) => Ok(self.fixed(match of {
                Type::F32 => Fixed::Bits32((*v as i64 as f32).to_bits()),
                Type::F64 => Fixed::Bits64((*v as i64 as f64).to_bits()),
                _ => match of.bytes() {
                    8 => Fixed::Bits64(*v),
                    4 => Fixed::Bits32(*v as u32),
                    2 => Fixed::Bits32(u32::from(*v as u16)),
                    _ => Fixed::Bits32(u32::from(*v as u8)),
                },
            })),
            Operand::F32(bits) => match of.bytes() {
                4 => Ok(self.fixed(Fixed::Bits32(*bits))),
                _ => Err(self.error("single precision does not fit the type")),
            },
            Operand::F64(bits) => match of.bytes() {
                4 => Ok(self.fixed(Fixed::Bits32((f64::from_bits(*bits) as f32).to_bits()))),
                8 => Ok(self.fixed(Fixed::Bits64(*bits))),
                _ => Err(self.error("double precision does not fit the type")),
            },
            Operand::Special(name) => {
                let special =
                    special(name).ok_or_else(|| self.unknown(&format!("special register `{name}`")))?;
                let r = self.fixed(Fixed::Special(special));
                Ok(if of.wide() { self.temp_alu(Alu::U32ToB64, Class::B64, &[r]) } else { r })
            }
            Operand::Symbol(name) => {
                let at = self.symbol(name)?;
                Ok(self.fixed(if of.wide() { Fixed::Bits64(at) } else { Fixed::Bits32(at as u32) }))
            }
            Operand::Address(base, offset) => match **base {
                Operand::Symbol(name) => {
                    let at = self.symbol(name)?.wrapping_add_signed(*offset);
                    Ok(self.fixed(if of.wide() { Fixed::Bits64(at) } else { Fixed::Bits32(at as u32) }))
                }
                _ => Err(self.error("an address is no value")),
            },
            _ => Err(self.error("operand is no value")),
        }
    }

    pub(super) fn symbol(&self, name: &str) -> Lowered<u64> {
        match self.symbols.get(name) {
            Some(Symbol::Shared(at) | Symbol::Local(at)) => Ok(u64::from(*at)),
            Some(Symbol::Global(at)) => Ok(*at),
            None => Err(self.error(format!("`{name}` is declared nowhere"))),
        }
    }

    /// A destination operand; `_` is a register nobody reads.
    pub(super) fn dst(&mut self, operand: &Operand<'a>, class: Class) -> Lowered<Reg> {
        match operand {
            Operand::Register(id) => {
                let r = Reg(*id);
                let own = self.class(r);
                let narrow = |c| matches!(c, Class::B16 | Class::B32);
                if own == class || (narrow(own) && narrow(class)) {
                    return Ok(r);
                }
                Err(self.error(format!("destination is {own:?} where {class:?} belongs")))
            }
            Operand::Sink => Ok(self.temp(class)),
            _ => Err(self.error("destination is no register")),
        }
    }

    /// `d` or `d|p`.
    pub(super) fn dst_pair(&mut self, operand: &Operand<'a>, class: Class) -> Lowered<(Reg, Option<Reg>)> {
        match operand {
            Operand::Pair(d, p) => Ok((self.dst(d, class)?, Some(self.dst(p, Class::Pred)?))),
            other => Ok((self.dst(other, class)?, None)),
        }
    }

    /// A predicate source, and true where it is negated.
    pub(super) fn pred(&mut self, operand: &Operand<'a>) -> Lowered<(Reg, bool)> {
        match operand {
            Operand::Register(id) if self.class(Reg(*id)) == Class::Pred => Ok((Reg(*id), false)),
            Operand::Not(id) if self.class(Reg(*id)) == Class::Pred => Ok((Reg(*id), true)),
            Operand::Int(v) => {
                let d = self.temp(Class::Pred);
                self.push_unguarded(Op::SetPred { d, value: *v != 0 });
                Ok((d, false))
            }
            _ => Err(self.error("predicate expected")),
        }
    }

    pub(super) fn address(&mut self, operand: &Operand<'a>) -> Lowered<Address> {
        let Operand::Address(base, offset) = operand else { return Err(self.error("address expected")) };
        match &**base {
            Operand::Register(id) => {
                let base = Reg(*id);
                let wide = match self.class(base) {
                    Class::B64 => true,
                    Class::B32 => false,
                    _ => return Err(self.error("address has neither 32 nor 64 bits")),
                };
                Ok(Address { base, wide, offset: *offset })
            }
            other => {
                let base = self.src(other, Type::U64)?;
                Ok(Address { base, wide: true, offset: *offset })
            }
        }
    }

    /// The registers of a vector or of a single operand.
    pub(super) fn parts<'o>(operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match operand {
            Operand::Vector(parts) => parts,
            other => std::slice::from_ref(other),
        }
    }

    /// Registers of a load: they may be wider than the elements.
    pub(super) fn load_cells(&mut self, operand: &Operand<'a>, of: Type) -> Lowered<Vec<Cell>> {
        Self::parts(operand)
            .iter()
            .map(|part| {
                let class = match part {
                    Operand::Register(id) => self.class(Reg(*id)),
                    _ => of.class(),
                };
                if class == Class::Pred || (of.wide() && class != Class::B64) {
                    return Err(self.error("element does not fit its register"));
                }
                Ok(Cell { reg: self.dst(part, class)?, wide: class == Class::B64 })
            })
            .collect()
    }

    /// Registers of a store: they may be wider than the elements.
    pub(super) fn store_cells(&mut self, operand: &Operand<'a>, of: Type) -> Lowered<Vec<Cell>> {
        Self::parts(operand)
            .iter()
            .map(|part| Ok(Cell { reg: self.src(part, of)?, wide: of.wide() }))
            .collect()
    }

    pub(super) fn window(&self, word: &str) -> Option<Window> {
        Some(match word {
            "global" | "const" => Window::Global,
            "shared" | "shared::cta" => Window::Shared,
            "local" => Window::Local,
            _ => return None,
        })
    }
}

fn special(name: &str) -> Option<Special> {
    let dimension = |rest: &str| match rest {
        ".x" => Some(0),
        ".y" => Some(1),
        ".z" => Some(2),
        _ => None,
    };
    let of = |prefix: &str, make: fn(u8) -> Special| name.strip_prefix(prefix).and_then(dimension).map(make);
    if let Some(s) = of("%tid", Special::Tid)
        .or_else(|| of("%ntid", Special::Ntid))
        .or_else(|| of("%ctaid", Special::Ctaid))
        .or_else(|| of("%nctaid", Special::Nctaid))
    {
        return Some(s);
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}

impl Builder<'_, '_> {
    /// If the last operation defines the temporary `from` it defines `to` instead, under the guard.
    pub(super) fn claim_last(&mut self, from: Reg, to: Reg) -> bool {
        let guard = self.guard;
        let is_temporary = from.0 as usize >= self.entry.registers.len();
        match self.built.instructions.last_mut() {
            Some(Instruction { op: Op::Alu { d, .. }, guard: own }) if *d == from && is_temporary => {
                *d = to;
                *own = guard;
                true
            }
            _ => false,
        }
    }
}
