//! One instruction to operations. What is not listed here is an error that names it.

use super::Fixed;
use super::build::{Builder, Lowered};
use super::lane_table::lane_operation;
use super::op::{
    Atomic, AtomicKind, AtomicType, CopyAsync, Matrix, Memory, Op, PredLogic, ReduxKind, Shuffle,
    ShuffleMode, VoteMode, Window,
};
use super::types::Type;
use crate::exec::alu::{Alu, Cmp, CmpType};
use crate::exec::mma::{Mma, MmaModel, MmaType};
use crate::exec::registers::Reg;
use crate::exec::windows::{LOCAL_BASE, SHARED_BASE};
use crate::monitor::Order;
use crate::ptx::{Class, Instruction, Operand};

/// Modifiers that say nothing about results here: caches, scopes, alignment.
fn is_hint(word: &str) -> bool {
    matches!(
        word,
        "ca" | "cg"
            | "cs"
            | "lu"
            | "cv"
            | "wb"
            | "wt"
            | "nc"
            | "cta"
            | "cluster"
            | "gpu"
            | "sys"
            | "weak"
            | "uni"
            | "aligned"
            | "sync"
            | "unified"
    ) || word.starts_with("L1::")
        || word.starts_with("L2::")
}

impl<'a> Builder<'a, '_> {
    pub(super) fn lower(&mut self, i: &Instruction<'a>) -> Lowered<()> {
        let mut words = i.opcode.split('.');
        let base = words.next().unwrap_or_default();
        let mods: Vec<&str> = words.collect();
        match base {
            "ld" | "ldu" => self.load(i, &mods),
            "st" => self.store(i, &mods),
            "atom" | "red" => self.atomic(i, base == "atom", &mods),
            "mov" => self.mov(i, &mods),
            "cvt" => self.lower_cvt(i, &mods),
            "cvta" => self.cvta(i, &mods),
            "setp" | "set" => self.compare(i, base == "set", &mods),
            "selp" => self.select(i, &mods),
            "slct" => self.slct(i, &mods),
            "bra" => {
                self.arity(i, 1, 1)?;
                let Operand::Label(target) = i.operands[0] else { return Err(self.error("label expected")) };
                self.push(Op::Branch { target });
                Ok(())
            }
            "brx" => {
                self.arity(i, 2, 2)?;
                let index = self.src(&i.operands[0], Type::U32)?;
                let Operand::Symbol(table) = i.operands[1] else { return Err(self.error("table expected")) };
                let targets = self.entry.tables.get(table).cloned();
                let targets = targets.ok_or_else(|| self.error(format!("`{table}` is no table")))?;
                self.push(Op::BranchTable { index, targets });
                Ok(())
            }
            "ret" | "exit" => {
                self.push(Op::Exit);
                Ok(())
            }
            "trap" => {
                self.push(Op::Trap);
                Ok(())
            }
            "call" => Err(self.unknown("calls: every function must be inlined (`__forceinline__`)")),
            "bar" | "barrier" => self.barrier(i, &mods),
            "membar" | "fence" => {
                self.push(Op::Fence { device_wide: !mods.contains(&"cta") });
                Ok(())
            }
            "nanosleep" | "pmevent" | "prefetch" | "prefetchu" | "applypriority" | "setmaxnreg" | "brkpt" => {
                self.push(Op::Nop);
                Ok(())
            }
            "createpolicy" => {
                let d = self.dst(&i.operands[0], Class::B64)?;
                let zero = self.fixed(Fixed::Bits64(0));
                self.alu(Alu::MovB64, d, &[zero]);
                Ok(())
            }
            "griddepcontrol" => {
                self.push(match mods.as_slice() {
                    ["wait"] => Op::DependencyWait,
                    ["launch_dependents"] => Op::LaunchDependents,
                    _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
                });
                Ok(())
            }
            "cp" => self.copy_async(i, &mods),
            "ldmatrix" | "stmatrix" => self.matrix(i, base == "stmatrix", &mods),
            "mma" => self.mma(i, &mods),
            "shfl" => self.shuffle(i, &mods),
            "vote" => self.vote(i, &mods),
            "match" => self.matching(i, &mods),
            "redux" => self.redux(i, &mods),
            "activemask" => {
                self.arity(i, 1, 1)?;
                let d = self.dst(&i.operands[0], Class::B32)?;
                self.push(Op::ActiveMask { d });
                Ok(())
            }
            "elect" => {
                self.arity(i, 2, 2)?;
                let Operand::Pair(d, p) = &i.operands[0] else { return Err(self.error("d|p expected")) };
                let d = if **d == Operand::Sink { None } else { Some(self.dst(d, Class::B32)?) };
                let p = self.dst(p, Class::Pred)?;
                let members = self.src(&i.operands[1], Type::B32)?;
                self.push(Op::Elect { d, p, members });
                Ok(())
            }
            "isspacep" => {
                self.arity(i, 2, 2)?;
                let d = self.dst(&i.operands[0], Class::Pred)?;
                let a = self.src(&i.operands[1], Type::U64)?;
                let window = mods.first().and_then(|w| self.window(w));
                let window = window.ok_or_else(|| self.unknown(&format!("`{}`", i.opcode)))?;
                self.push(Op::IsSpace { d, a, window });
                Ok(())
            }
            "lop3" => {
                if mods != ["b32"] {
                    return Err(self.unknown(&format!("`{}`", i.opcode)));
                }
                self.arity(i, 5, 5)?;
                let d = self.dst(&i.operands[0], Class::B32)?;
                let s = self.three(i, [Type::B32; 3])?;
                let Operand::Int(table) = i.operands[4] else {
                    return Err(self.error("truth table expected"));
                };
                self.push(Op::Lop3 { d, s, table: table as u8 });
                Ok(())
            }
            "bfi" => {
                let wide = mods == ["b64"];
                self.arity(i, 5, 5)?;
                let of = if wide { Type::B64 } else { Type::B32 };
                let d = self.dst(&i.operands[0], of.class())?;
                let s = [
                    self.src(&i.operands[1], of)?,
                    self.src(&i.operands[2], of)?,
                    self.src(&i.operands[3], Type::U32)?,
                    self.src(&i.operands[4], Type::U32)?,
                ];
                self.push(Op::Bfi { wide, d, s });
                Ok(())
            }
            "prmt" if mods.len() == 2 => {
                let op = match mods[1] {
                    "f4e" => Alu::PrmtF4e,
                    "b4e" => Alu::PrmtB4e,
                    "rc8" => Alu::PrmtRc8,
                    "ecl" => Alu::PrmtEcl,
                    "ecr" => Alu::PrmtEcr,
                    "rc16" => Alu::PrmtRc16,
                    _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
                };
                self.arity(i, 4, 4)?;
                let d = self.dst(&i.operands[0], Class::B32)?;
                let s = self.three(i, [Type::B32; 3])?;
                self.alu(op, d, &s);
                Ok(())
            }
            _ if mods == ["pred"] => self.logic(i, base),
            _ => self.lane_wise(i, base, &mods),
        }
    }

    fn three(&mut self, i: &Instruction<'a>, types: [Type; 3]) -> Lowered<[Reg; 3]> {
        Ok([
            self.src(&i.operands[1], types[0])?,
            self.src(&i.operands[2], types[1])?,
            self.src(&i.operands[3], types[2])?,
        ])
    }

    fn last_type(&self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<Type> {
        mods.last().and_then(|word| Type::parse(word)).ok_or_else(|| self.unknown(&format!("`{}`", i.opcode)))
    }

    /// Everything of the lane table: `base.mods.type d, a, b, c`.
    fn lane_wise(&mut self, i: &Instruction<'a>, base: &str, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        let mut words: Vec<&str> = mods[..mods.len() - 1].to_vec();
        let mut take = |word: &str| {
            let before = words.len();
            words.retain(|w| *w != word);
            words.len() != before
        };
        let float = !of.is_int();
        let flush = float && take("ftz");
        let sat = float && take("sat");
        let relu = float && take("relu");
        if float {
            // Rounding to nearest is the default; approximations are exact here, within their bounds.
            for word in ["rn", "approx", "full", "noftz"] {
                take(word);
            }
        }
        let mode = words.join(".");
        let Some((op, d, s)) = lane_operation(base, &mode, of) else {
            return Err(self.unknown(&format!("`{}`", i.opcode)));
        };
        self.arity(i, s.len() + 1, s.len() + 1)?;
        let d = self.dst(&i.operands[0], d.class())?;
        let mut sources = Vec::with_capacity(3);
        for (operand, of) in i.operands[1..].iter().zip(s) {
            sources.push(self.src(operand, *of)?);
        }
        let op = if op == Alu::Ex2F32 && flush { Alu::Ex2FtzF32 } else { op };
        let flush = flush && of == Type::F32 && op != Alu::Ex2FtzF32;
        if flush {
            for s in &mut sources {
                *s = self.temp_alu(Alu::FlushF32, Class::B32, &[*s]);
            }
        }
        let mut after = Vec::new();
        if flush {
            after.push(Alu::FlushF32);
        }
        match (sat, of) {
            (false, _) => {}
            (true, Type::F32) => after.push(Alu::SatF32),
            _ => return Err(self.unknown(&format!("`.sat` of `{}`", i.opcode))),
        }
        match (relu, of) {
            (false, _) => {}
            (true, Type::F16x2 | Type::BF16x2) => after.push(Alu::Relu16x2),
            (true, Type::F16 | Type::BF16) => after.push(Alu::Relu16),
            _ => return Err(self.unknown(&format!("`.relu` of `{}`", i.opcode))),
        }
        let Some((last, before)) = after.split_last() else {
            self.alu(op, d, &sources);
            return Ok(());
        };
        let mut t = self.temp_alu(op, of.class(), &sources);
        for op in before {
            t = self.temp_alu(*op, of.class(), &[t]);
        }
        self.alu(*last, d, &[t]);
        Ok(())
    }

    fn logic(&mut self, i: &Instruction<'a>, base: &str) -> Lowered<()> {
        let d = match i.operands.first() {
            Some(operand) => self.dst(operand, Class::Pred)?,
            None => return Err(self.error("no operands")),
        };
        let unary = matches!(base, "mov" | "not");
        self.arity(i, if unary { 2 } else { 3 }, if unary { 2 } else { 3 })?;
        let mut a = self.pred(&i.operands[1])?;
        let b = if unary { a } else { self.pred(&i.operands[2])? };
        let op = match base {
            "mov" => PredLogic::Mov,
            "not" => {
                a.1 = !a.1;
                PredLogic::Mov
            }
            "and" => PredLogic::And,
            "or" => PredLogic::Or,
            "xor" => PredLogic::Xor,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.push(Op::Logic { op, d, a, b });
        Ok(())
    }

    fn mov(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        if mods.len() != 1 {
            return Err(self.unknown(&format!("`{}`", i.opcode)));
        }
        self.arity(i, 2, 2)?;
        if of == Type::Pred {
            return self.logic(i, "mov");
        }
        match (&i.operands[0], &i.operands[1]) {
            (Operand::Vector(parts), whole) => {
                let s = self.src(whole, of)?;
                match (of.bytes(), parts.as_slice()) {
                    (4, [low, high]) => {
                        for (part, op) in [(low, Alu::LowB32), (high, Alu::HighB32)] {
                            self.part(part, op, Class::B16, s)?;
                        }
                    }
                    (8, [low, high]) => {
                        for (part, op) in [(low, Alu::LowB64), (high, Alu::HighB64)] {
                            self.part(part, op, Class::B32, s)?;
                        }
                    }
                    (8, [a, b, c, d]) => {
                        let low = self.temp_alu(Alu::LowB64, Class::B32, &[s]);
                        let high = self.temp_alu(Alu::HighB64, Class::B32, &[s]);
                        for (part, op, s) in [
                            (a, Alu::LowB32, low),
                            (b, Alu::HighB32, low),
                            (c, Alu::LowB32, high),
                            (d, Alu::HighB32, high),
                        ] {
                            self.part(part, op, Class::B16, s)?;
                        }
                    }
                    _ => return Err(self.unknown("this unpacking")),
                }
                Ok(())
            }
            (d, Operand::Vector(parts)) => {
                let d = self.dst(d, of.class())?;
                match (of.bytes(), parts.as_slice()) {
                    (4, [a, b]) => {
                        let s = [self.src(a, Type::B16)?, self.src(b, Type::B16)?];
                        self.alu(Alu::Pack16, d, &s);
                    }
                    (8, [a, b]) => {
                        let s = [self.src(a, Type::B32)?, self.src(b, Type::B32)?];
                        self.alu(Alu::Pack32, d, &s);
                    }
                    (8, [a, b, c, e]) => {
                        let s = [
                            self.src(a, Type::B16)?,
                            self.src(b, Type::B16)?,
                            self.src(c, Type::B16)?,
                            self.src(e, Type::B16)?,
                        ];
                        let low = self.temp_alu(Alu::Pack16, Class::B32, &s[..2]);
                        let high = self.temp_alu(Alu::Pack16, Class::B32, &s[2..]);
                        self.alu(Alu::Pack32, d, &[low, high]);
                    }
                    _ => return Err(self.unknown("this packing")),
                }
                Ok(())
            }
            (
                d,
                Operand::Special(
                    "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo"
                    | "%globaltimer_hi",
                ),
            ) => {
                let d = self.dst(d, of.class())?;
                self.push(Op::Clock { wide: of.wide(), d });
                Ok(())
            }
            (d, s) => {
                let d = self.dst(d, of.class())?;
                let s = self.src(s, of)?;
                self.alu(if of.wide() { Alu::MovB64 } else { Alu::MovB32 }, d, &[s]);
                Ok(())
            }
        }
    }

    fn part(&mut self, part: &Operand<'a>, op: Alu, class: Class, s: Reg) -> Lowered<()> {
        if *part == Operand::Sink {
            return Ok(());
        }
        let d = self.dst(part, class)?;
        self.alu(op, d, &[s]);
        Ok(())
    }

    fn cvta(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        self.arity(i, 2, 2)?;
        let (to, space) = match mods {
            ["to", space, "u64"] => (true, *space),
            [space, "u64"] => (false, *space),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let base = match self.window(space) {
            Some(Window::Global) => 0,
            Some(Window::Shared) => SHARED_BASE,
            Some(Window::Local) => LOCAL_BASE,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let d = self.dst(&i.operands[0], Class::B64)?;
        let s = self.src(&i.operands[1], Type::U64)?;
        if base == 0 {
            self.alu(Alu::MovB64, d, &[s]);
        } else {
            let base = self.fixed(Fixed::Bits64(base));
            self.alu(if to { Alu::SubB64 } else { Alu::AddB64 }, d, &[s, base]);
        }
        Ok(())
    }

    fn compare(&mut self, i: &Instruction<'a>, set: bool, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        let mut words = mods[..mods.len() - 1].to_vec();
        let result = if set {
            let word = words.pop().unwrap_or_default();
            Some(Type::parse(word).ok_or_else(|| self.unknown(&format!("`{}`", i.opcode)))?)
        } else {
            None
        };
        let flush = words.contains(&"ftz");
        words.retain(|w| *w != "ftz");
        let Some((cmp, words)) = words.split_first() else {
            return Err(self.error("no comparison"));
        };
        let unsigned_order = matches!(*cmp, "lo" | "ls" | "hi" | "hs");
        let cmp = match *cmp {
            "eq" => Cmp::Eq,
            "ne" => Cmp::Ne,
            "lt" | "lo" => Cmp::Lt,
            "le" | "ls" => Cmp::Le,
            "gt" | "hi" => Cmp::Gt,
            "ge" | "hs" => Cmp::Ge,
            "equ" => Cmp::Equ,
            "neu" => Cmp::Neu,
            "ltu" => Cmp::Ltu,
            "leu" => Cmp::Leu,
            "gtu" => Cmp::Gtu,
            "geu" => Cmp::Geu,
            "num" => Cmp::Num,
            "nan" => Cmp::Nan,
            other => return Err(self.unknown(&format!("comparison `{other}`"))),
        };
        let logic = match words {
            [] => None,
            ["and"] => Some(PredLogic::And),
            ["or"] => Some(PredLogic::Or),
            ["xor"] => Some(PredLogic::Xor),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let compared = match of {
            Type::B16 | Type::U16 => CmpType::U16,
            Type::S16 => CmpType::S16,
            Type::B32 | Type::U32 => CmpType::U32,
            Type::S32 if unsigned_order => CmpType::U32,
            Type::S32 => CmpType::S32,
            Type::B64 | Type::U64 => CmpType::U64,
            Type::S64 => CmpType::S64,
            Type::F16 => CmpType::F16,
            Type::BF16 => CmpType::BF16,
            Type::F32 => CmpType::F32,
            Type::F64 => CmpType::F64,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let n = if logic.is_some() { 4 } else { 3 };
        self.arity(i, n, n)?;
        let (d, q) = match result {
            Some(_) => (self.temp(Class::Pred), None),
            None => match &i.operands[0] {
                Operand::Pair(p, q) => {
                    let q = if **q == Operand::Sink { None } else { Some(self.dst(q, Class::Pred)?) };
                    (self.dst(p, Class::Pred)?, q)
                }
                p => (self.dst(p, Class::Pred)?, None),
            },
        };
        let mut s = [self.src(&i.operands[1], of)?, self.src(&i.operands[2], of)?];
        if flush && of == Type::F32 {
            s = s.map(|s| self.temp_alu(Alu::FlushF32, Class::B32, &[s]));
        }
        let with = match logic {
            Some(logic) => {
                let (p, negated) = self.pred(&i.operands[3])?;
                Some((logic, p, negated))
            }
            None => None,
        };
        self.push(Op::Compare { cmp, of: compared, p: d, q, a: s[0], b: s[1], with });
        if let Some(result) = result {
            let yes = match result {
                Type::U32 | Type::S32 | Type::B32 => u32::MAX,
                Type::F32 => 1f32.to_bits(),
                _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
            };
            let (yes, no) = (self.int32(yes), self.int32(0));
            let to = self.dst(&i.operands[0], Class::B32)?;
            self.push(Op::Select { wide: false, d: to, a: yes, b: no, p: (d, false) });
        }
        Ok(())
    }

    fn select(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        self.arity(i, 4, 4)?;
        let d = self.dst(&i.operands[0], of.class())?;
        let (a, b) = (self.src(&i.operands[1], of)?, self.src(&i.operands[2], of)?);
        let p = self.pred(&i.operands[3])?;
        self.push(Op::Select { wide: of.wide(), d, a, b, p });
        Ok(())
    }

    fn slct(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let by = self.last_type(i, mods)?;
        let of = mods.first().and_then(|w| Type::parse(w));
        let of = of.ok_or_else(|| self.unknown(&format!("`{}`", i.opcode)))?;
        self.arity(i, 4, 4)?;
        let d = self.dst(&i.operands[0], of.class())?;
        let (a, b) = (self.src(&i.operands[1], of)?, self.src(&i.operands[2], of)?);
        let c = self.src(&i.operands[3], by)?;
        let zero = self.int32(0);
        let p = self.temp(Class::Pred);
        let compared = if by == Type::F32 { CmpType::F32 } else { CmpType::S32 };
        self.push_unguarded(Op::Compare {
            cmp: Cmp::Ge,
            of: compared,
            p,
            q: None,
            a: c,
            b: zero,
            with: None,
        });
        self.push(Op::Select { wide: of.wide(), d, a, b, p: (p, false) });
        Ok(())
    }

    /// Window, ordering and vector length out of the modifiers of a memory instruction without its type.
    fn access(&self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<(Option<Window>, Order, usize, bool)> {
        let (mut window, mut order, mut elements, mut param) = (None, Order::Weak, 1, false);
        for word in mods {
            match *word {
                "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "mmio" => order = Order::Strong,
                "v2" => elements = 2,
                "v4" => elements = 4,
                "v8" => elements = 8,
                "param" => param = true,
                word if self.window(word).is_some() => window = self.window(word),
                word if is_hint(word) => {}
                other => return Err(self.unknown(&format!("`.{other}` of `{}`", i.opcode))),
            }
        }
        Ok((window, order, elements, param))
    }

    /// The fence that an access brings with it if it has one of `words`.
    fn fence_of(&mut self, mods: &[&str], words: &[&str]) {
        if mods.iter().any(|w| words.contains(w)) {
            self.push(Op::Fence { device_wide: !mods.contains(&"cta") });
        }
    }

    fn load(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        let (window, order, elements, param) = self.access(i, &mods[..mods.len() - 1])?;
        self.arity(i, 2, 3)?;
        let cells = self.load_cells(&i.operands[0], of)?;
        if cells.len() != elements {
            return Err(self.error("vector of another length"));
        }
        if param {
            let Operand::Address(base, at) = &i.operands[1] else {
                return Err(self.error("address expected"));
            };
            let Operand::Symbol(name) = **base else {
                return Err(self.unknown("parameters at addresses that are computed"));
            };
            let param = self.entry.params.iter().find(|p| p.name == name).copied();
            let param = param.ok_or_else(|| self.error(format!("`{name}` is no parameter")))?;
            let size = of.bytes() * elements as u32;
            if *at < 0 || *at as u64 + u64::from(size) > u64::from(param.bytes) {
                return Err(self.error("reads past the parameter"));
            }
            for (n, cell) in cells.iter().enumerate() {
                let offset = param.offset + *at as u32 + n as u32 * of.bytes();
                let value = Fixed::Param { offset, bytes: of.bytes(), signed: of.signed(), wide: cell.wide };
                let s = self.fixed(value);
                self.alu(if cell.wide { Alu::MovB64 } else { Alu::MovB32 }, cell.reg, &[s]);
            }
            return Ok(());
        }
        let address = self.address(&i.operands[1])?;
        self.push(Op::Load(Box::new(Memory {
            window: window.unwrap_or(Window::Generic),
            address,
            element: of.bytes(),
            signed: of.signed(),
            cells,
            order,
        })));
        self.fence_of(mods, &["acquire"]);
        Ok(())
    }

    fn store(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        let (window, order, elements, param) = self.access(i, &mods[..mods.len() - 1])?;
        self.arity(i, 2, 3)?;
        if param {
            return Err(self.unknown("stores to parameters"));
        }
        let cells = self.store_cells(&i.operands[1], of)?;
        if cells.len() != elements {
            return Err(self.error("vector of another length"));
        }
        let address = self.address(&i.operands[0])?;
        self.fence_of(mods, &["release"]);
        self.push(Op::Store(Box::new(Memory {
            window: window.unwrap_or(Window::Generic),
            address,
            element: of.bytes(),
            signed: false,
            cells,
            order,
        })));
        Ok(())
    }

    fn atomic(&mut self, i: &Instruction<'a>, returns: bool, mods: &[&str]) -> Lowered<()> {
        let of = self.last_type(i, mods)?;
        let mut kind = None;
        let mut window = Window::Generic;
        for word in &mods[..mods.len() - 1] {
            match *word {
                "add" => kind = Some(AtomicKind::Add),
                "min" => kind = Some(AtomicKind::Min),
                "max" => kind = Some(AtomicKind::Max),
                "inc" => kind = Some(AtomicKind::Inc),
                "dec" => kind = Some(AtomicKind::Dec),
                "and" => kind = Some(AtomicKind::And),
                "or" => kind = Some(AtomicKind::Or),
                "xor" => kind = Some(AtomicKind::Xor),
                "exch" => kind = Some(AtomicKind::Exch),
                "cas" => kind = Some(AtomicKind::Cas),
                "relaxed" | "acquire" | "release" | "acq_rel" | "noftz" => {}
                word if self.window(word).is_some() => window = self.window(word).unwrap_or(window),
                word if is_hint(word) => {}
                other => return Err(self.unknown(&format!("`.{other}` of `{}`", i.opcode))),
            }
        }
        let kind = kind.ok_or_else(|| self.error("no operation"))?;
        let of = match (of, kind) {
            (Type::U32 | Type::B32, _) => AtomicType::U32,
            (Type::S32, _) => AtomicType::S32,
            (Type::U64 | Type::B64, _) => AtomicType::U64,
            (Type::S64, _) => AtomicType::S64,
            (Type::F32, AtomicKind::Add) => AtomicType::F32,
            (Type::F64, AtomicKind::Add) => AtomicType::F64,
            (Type::F16x2, AtomicKind::Add | AtomicKind::Min | AtomicKind::Max) => AtomicType::F16x2,
            (Type::BF16x2, AtomicKind::Add | AtomicKind::Min | AtomicKind::Max) => AtomicType::BF16x2,
            (Type::B16, AtomicKind::Cas | AtomicKind::Exch) => AtomicType::B16,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let operand = match of {
            AtomicType::U64 | AtomicType::S64 | AtomicType::F64 => Type::B64,
            AtomicType::B16 => Type::B16,
            _ => Type::B32,
        };
        let first = usize::from(returns);
        let n = first + 2 + usize::from(kind == AtomicKind::Cas);
        self.arity(i, n, n + 1)?;
        let d = match &i.operands[0] {
            d if returns && *d != Operand::Sink => Some(self.dst(d, operand.class())?),
            _ => None,
        };
        let address = self.address(&i.operands[first])?;
        let b = self.src(&i.operands[first + 1], operand)?;
        let c = if kind == AtomicKind::Cas { Some(self.src(&i.operands[first + 2], operand)?) } else { None };
        self.fence_of(mods, &["release", "acq_rel"]);
        self.push(Op::Atomic(Box::new(Atomic { window, address, kind, of, d, b, c })));
        self.fence_of(mods, &["acquire", "acq_rel"]);
        Ok(())
    }

    fn barrier(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        if mods == ["warp", "sync"] {
            self.arity(i, 1, 1)?;
            let members = self.src(&i.operands[0], Type::B32)?;
            self.push(Op::WarpSync { members });
            return Ok(());
        }
        let mut words = mods.to_vec();
        words.retain(|w| !matches!(*w, "cta" | "aligned"));
        let aligned = i.opcode.starts_with("bar.") || mods.contains(&"aligned");
        let waits = match words.as_slice() {
            ["sync"] => true,
            ["arrive"] => false,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 1, 2)?;
        let id = self.src(&i.operands[0], Type::U32)?;
        let threads = match i.operands.get(1) {
            Some(threads) => Some(self.src(threads, Type::U32)?),
            None => None,
        };
        self.push(Op::Barrier { id, threads, waits, aligned });
        Ok(())
    }

    fn copy_async(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        match mods {
            ["async", "commit_group"] => {
                self.push(Op::CopyCommit);
                return Ok(());
            }
            ["async", "wait_all"] => {
                self.push(Op::CopyWait(None));
                return Ok(());
            }
            ["async", "wait_group"] => {
                self.arity(i, 1, 1)?;
                let Operand::Int(n) = i.operands[0] else { return Err(self.error("number expected")) };
                self.push(Op::CopyWait(Some(n as u32)));
                return Ok(());
            }
            ["async", "ca" | "cg", "shared" | "shared::cta", "global", hints @ ..]
                if hints.iter().all(|w| is_hint(w)) => {}
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        }
        self.arity(i, 3, 5)?;
        let shared = self.address(&i.operands[0])?;
        let global = self.address(&i.operands[1])?;
        let bytes = match i.operands[2] {
            Operand::Int(n @ (4 | 8 | 16)) => n as u32,
            _ => return Err(self.error("4, 8 or 16 bytes expected")),
        };
        let mut copy = CopyAsync { shared, global, bytes, source_bytes: None, ignore: None };
        match i.operands.get(3) {
            Some(operand @ Operand::Register(id)) if self.class(Reg(*id)) == Class::Pred => {
                copy.ignore = Some(self.pred(operand)?);
            }
            Some(operand @ Operand::Not(_)) => copy.ignore = Some(self.pred(operand)?),
            // A 64-bit register is a cache policy.
            Some(Operand::Register(id)) if self.class(Reg(*id)) == Class::B64 => {}
            Some(operand) => copy.source_bytes = Some(self.src(operand, Type::U32)?),
            None => {}
        }
        self.push(Op::CopyAsync(Box::new(copy)));
        Ok(())
    }

    fn matrix(&mut self, i: &Instruction<'a>, stores: bool, mods: &[&str]) -> Lowered<()> {
        let mut words = mods.to_vec();
        let transposed = words.contains(&"trans");
        words.retain(|w| *w != "trans");
        let (count, window) = match words.as_slice() {
            ["sync", "aligned", "m8n8", count, "b16"] => (*count, Window::Generic),
            ["sync", "aligned", "m8n8", count, "shared" | "shared::cta", "b16"] => (*count, Window::Shared),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let count = match count {
            "x1" => 1,
            "x2" => 2,
            "x4" => 4,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 2, 2)?;
        let (address, parts) = if stores { (0, 1) } else { (1, 0) };
        let address = self.address(&i.operands[address])?;
        let parts = Self::parts(&i.operands[parts]);
        if parts.len() != count {
            return Err(self.error("vector of another length"));
        }
        let mut regs = Vec::with_capacity(count);
        for part in parts {
            regs.push(if stores { self.src(part, Type::B32)? } else { self.dst(part, Class::B32)? });
        }
        self.push(Op::Matrix(Box::new(Matrix { address, window, regs, transposed, stores })));
        Ok(())
    }

    fn mma(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let (k, rest) = match mods {
            ["sync", "aligned", "m16n8k8", "row", "col", rest @ ..] => (1, rest),
            ["sync", "aligned", "m16n8k16", "row", "col", rest @ ..] => (2, rest),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let (of, half) = match rest {
            ["f32", "bf16", "bf16", "f32"] => (MmaType::BF16, false),
            ["f32", "f16", "f16", "f32"] => (MmaType::F16, false),
            ["f16", "f16", "f16", "f16"] => (MmaType::F16, true),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 4, 4)?;
        if self.guarded() {
            return Err(self.unknown("a guarded mma: all lanes must take part"));
        }
        let mut d = Vec::new();
        for part in Self::parts(&i.operands[0]) {
            d.push(self.dst(part, Class::B32)?);
        }
        let mut fragments = Vec::new();
        for operand in &i.operands[1..4] {
            let mut regs = Vec::new();
            for part in Self::parts(operand) {
                regs.push(self.src(part, Type::B32)?);
            }
            fragments.push(regs);
        }
        let accumulators = if half { 2 } else { 4 };
        let lengths = [fragments[0].len(), fragments[1].len(), fragments[2].len(), d.len()];
        if lengths != [2 * k, k, accumulators, accumulators] {
            return Err(self.error("fragment of another length"));
        }
        let mut fragments = fragments.into_iter();
        let mut next = || fragments.next().unwrap_or_default();
        let (a, b, c) = (next(), next(), next());
        self.push(Op::Mma(Box::new(Mma { of, half, a, b, c, d, model: MmaModel::F32 })));
        Ok(())
    }

    fn shuffle(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let mode = match mods {
            ["sync", "up", "b32"] => ShuffleMode::Up,
            ["sync", "down", "b32"] => ShuffleMode::Down,
            ["sync", "bfly", "b32"] => ShuffleMode::Bfly,
            ["sync", "idx", "b32"] => ShuffleMode::Idx,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 5, 5)?;
        let (d, p) = self.dst_pair(&i.operands[0], Class::B32)?;
        let s = self.three(i, [Type::B32; 3])?;
        let members = self.src(&i.operands[4], Type::B32)?;
        self.push(Op::Shuffle(Box::new(Shuffle { mode, d, p, a: s[0], b: s[1], c: s[2], members })));
        Ok(())
    }

    fn vote(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let mode = match mods {
            ["sync", "all", "pred"] => VoteMode::All,
            ["sync", "any", "pred"] => VoteMode::Any,
            ["sync", "uni", "pred"] => VoteMode::Uni,
            ["sync", "ballot", "b32"] => VoteMode::Ballot,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 3, 3)?;
        let class = if mode == VoteMode::Ballot { Class::B32 } else { Class::Pred };
        let d = self.dst(&i.operands[0], class)?;
        let a = self.pred(&i.operands[1])?;
        let members = self.src(&i.operands[2], Type::B32)?;
        self.push(Op::Vote { mode, d, a, members });
        Ok(())
    }

    fn matching(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let (all, of) = match mods {
            ["any", "sync", of] => (false, *of),
            ["all", "sync", of] => (true, *of),
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        let of = Type::parse(of).ok_or_else(|| self.unknown(&format!("`{}`", i.opcode)))?;
        self.arity(i, 3, 3)?;
        let (d, p) = self.dst_pair(&i.operands[0], Class::B32)?;
        let a = self.src(&i.operands[1], of)?;
        let members = self.src(&i.operands[2], Type::B32)?;
        self.push(Op::Match { all, wide: of.wide(), d, p, a, members });
        Ok(())
    }

    fn redux(&mut self, i: &Instruction<'a>, mods: &[&str]) -> Lowered<()> {
        let kind = match mods {
            ["sync", "add", "u32" | "s32"] => ReduxKind::Add,
            ["sync", "min", "u32"] => ReduxKind::MinU,
            ["sync", "min", "s32"] => ReduxKind::MinS,
            ["sync", "max", "u32"] => ReduxKind::MaxU,
            ["sync", "max", "s32"] => ReduxKind::MaxS,
            ["sync", "and", "b32"] => ReduxKind::And,
            ["sync", "or", "b32"] => ReduxKind::Or,
            ["sync", "xor", "b32"] => ReduxKind::Xor,
            _ => return Err(self.unknown(&format!("`{}`", i.opcode))),
        };
        self.arity(i, 3, 3)?;
        let d = self.dst(&i.operands[0], Class::B32)?;
        let a = self.src(&i.operands[1], Type::B32)?;
        let members = self.src(&i.operands[2], Type::B32)?;
        self.push(Op::Redux { kind, d, a, members });
        Ok(())
    }
}
