//! PTX text to a module: kernels with parameters, variables, registers and instructions; nothing is interpreted yet.

mod lexer;
mod parser;

use std::collections::HashMap;

pub use parser::parse;

/// Text that is not PTX as we know it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ptx line {line}: `{text}`: {why}")]
pub struct PtxError {
    /// Line of the PTX text, counted from 1.
    pub line: u32,
    /// What stands there.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl PtxError {
    pub(crate) fn at(line: u32, text: &str, why: impl Into<String>) -> Self {
        PtxError { line, text: text.into(), why: why.into() }
    }
}

/// A module.
#[derive(Clone, Debug)]
pub struct Module<'a> {
    /// `.target`, e.g. `sm_80`.
    pub target: &'a str,
    /// Names of source files by their numbers.
    pub files: HashMap<u32, &'a str>,
    /// Variables outside of kernels.
    pub variables: Vec<Variable<'a>>,
    /// Kernels.
    pub entries: Vec<Entry<'a>>,
}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariableSpace {
    /// `.shared`
    Shared,
    /// `.global`
    Global,
    /// `.const`
    Const,
    /// `.local`
    Local,
}

/// A variable.
#[derive(Clone, Debug)]
pub struct Variable<'a> {
    /// Where it lives.
    pub space: VariableSpace,
    /// Its name.
    pub name: &'a str,
    /// Alignment in bytes.
    pub align: u32,
    /// Size; `None` where the launch decides (`extern .shared x[]`).
    pub bytes: Option<u32>,
    /// First bytes; the others are zero.
    pub init: Vec<u8>,
    /// `.extern`
    pub external: bool,
}

/// Size of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// One bit.
    Pred,
    /// 8 or 16 bits.
    B16,
    /// 32 bits.
    B32,
    /// 64 bits.
    B64,
}

/// A kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Its name.
    pub name: &'a str,
    /// Offset in the parameter space.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Parameters in order.
    pub params: Vec<Param<'a>>,
    /// `.maxntid` or `.reqntid`, all dimensions together.
    pub max_threads: Option<u32>,
    /// Variables of the kernel.
    pub variables: Vec<Variable<'a>>,
    /// Classes of the registers by their ids.
    pub registers: Vec<Class>,
    /// Instructions.
    pub body: Vec<Instruction<'a>>,
    /// Tables of `brx.idx`: name to labels, resolved to instruction indices.
    pub tables: HashMap<&'a str, Vec<u32>>,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Instruction<'a> {
    /// Predicate register, and true where it is negated.
    pub guard: Option<(u32, bool)>,
    /// Opcode with all modifiers, e.g. `ld.global.nc.v4.u32`.
    pub opcode: &'a str,
    /// Operands.
    pub operands: Vec<Operand<'a>>,
    /// Line of the PTX text.
    pub line: u32,
    /// File and line of the source, 0 where unknown.
    pub source: (u32, u32),
    /// Where the function that the source line belongs to was inlined: file and line, 0 where it was not.
    pub inlined_at: (u32, u32),
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A declared register.
    Register(u32),
    /// `!p`.
    Not(u32),
    /// A special register, e.g. `%tid.x`.
    Special(&'a str),
    /// A symbol: variable, parameter, table of branch targets.
    Symbol(&'a str),
    /// Index of the instruction behind a label.
    Label(u32),
    /// `_`.
    Sink,
    /// Integer, as 64 bits.
    Int(u64),
    /// Single precision, as bits.
    F32(u32),
    /// Double precision, as bits.
    F64(u64),
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `[base + offset]`; the base is a register, a symbol or an absolute address.
    Address(Box<Operand<'a>>, i64),
    /// `a|b`.
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
}
