//! Instructions as register-slot operations: parsed PTX becomes kernels that the interpreter runs.

mod allocate;
mod build;
mod convert;
mod lane_table;
mod lower;
pub mod op;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

use crate::exec::registers::Reg;
use crate::monitor::SHARED_START;
use crate::ptx::{Module, PtxError, Variable, VariableSpace};
use op::{Guard, Op};

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Line of the CUDA source, 0 where unknown.
    pub source: u32,
    /// Number of the source's file.
    pub file: u32,
    /// Line that called the inlined function which `source` belongs to, 0 where it is no such function.
    pub called_from: u32,
    /// File of that line.
    pub called_file: u32,
    /// Line of the PTX text.
    pub ptx: u32,
}

/// A value that does not change while a warp runs; it has a row like a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fixed {
    /// Constant.
    Bits32(u32),
    /// Constant.
    Bits64(u64),
    /// Special register, 32 bits.
    Special(Special),
    /// Bytes of the parameters.
    Param {
        /// First byte.
        offset: u32,
        /// 1, 2, 4, 8.
        bytes: u32,
        /// Sign-extended.
        signed: bool,
        /// To a 64-bit row.
        wide: bool,
    },
}

impl Fixed {
    const fn wide(self) -> bool {
        match self {
            Fixed::Bits64(_) => true,
            Fixed::Param { wide, .. } => wide,
            Fixed::Bits32(_) | Fixed::Special(_) => false,
        }
    }
}

/// A special register. The number is the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    DynamicShared,
    TotalShared,
}

/// An operation and its guard.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// When lanes act.
    pub guard: Guard,
    /// What they do.
    pub op: Op,
}

/// A kernel ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// The operations; an instruction may be several.
    pub code: Vec<Instruction>,
    /// Where each operation comes from.
    pub lines: Vec<Line>,
    /// Rows of a warp's register file.
    pub rows: u32,
    /// Predicates of a warp.
    pub preds: u32,
    /// Rows with values that do not change.
    pub fixed: Vec<(Reg, Fixed)>,
    /// Rows that may be read before they are written.
    pub undefined: Vec<Reg>,
    /// Predicates that may be read before they are written.
    pub undefined_preds: Vec<Reg>,
    /// Sizes and offsets of the parameters.
    pub params: Vec<(u32, u32)>,
    /// Bytes of shared variables.
    pub static_shared: u32,
    /// Offset of dynamic shared memory in the shared window.
    pub dynamic_at: u32,
    /// Bytes of a thread's own memory.
    pub local_bytes: u32,
    /// Bound of `__launch_bounds__`, 1024 where there is none.
    pub max_threads: u32,
    /// What lines refer to.
    pub sources: Arc<Sources>,
}

/// Texts for reports.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Names of the CUDA sources.
    pub files: HashMap<u32, String>,
    /// The PTX.
    pub ptx: String,
}

impl Kernel {
    /// Where the operation at `pc` comes from.
    pub fn line(&self, pc: u32) -> Option<&Line> {
        self.lines.get(pc as usize)
    }

    /// Source line, PTX line and text for people, e.g. `gemm.cu:12, ptx line 80: "bar.sync 0;"`.
    pub fn place(&self, pc: u32) -> String {
        let line = self.line(pc).copied().unwrap_or_default();
        let file = |f: u32| {
            let name = self.sources.files.get(&f).map_or("?", |name| name.as_str());
            name.rsplit('/').next().unwrap_or(name).to_owned()
        };
        let text = self.sources.ptx.lines().nth((line.ptx as usize).saturating_sub(1)).unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut place = String::new();
        if line.source != 0 {
            place = format!("{}:{}", file(line.file), line.source);
            if line.called_from != 0 {
                place += &format!(" (inlined at {}:{})", file(line.called_file), line.called_from);
            }
            place += ", ";
        }
        format!("{place}ptx line {}: `{text}`", line.ptx)
    }
}

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbol {
    Shared(u32),
    Local(u32),
    Global(u64),
}

/// A variable of a module that lies in device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Name.
    pub name: String,
    /// Size.
    pub bytes: u32,
    /// First bytes; the others are zero.
    pub init: Vec<u8>,
}

/// The variables of a module that need device memory before it can be decoded, in order.
pub fn globals(module: &Module<'_>) -> Vec<Global> {
    let kernels = module.entries.iter().flat_map(|e| &e.variables);
    module
        .variables
        .iter()
        .chain(kernels)
        .filter(|v| matches!(v.space, VariableSpace::Global | VariableSpace::Const))
        .map(|v| Global { name: v.name.to_owned(), bytes: v.bytes.unwrap_or(0), init: v.init.clone() })
        .collect()
}

/// Decodes all kernels. `text` is what `module` was parsed from, `addresses` are the places of its [`globals`].
///
/// # Errors
/// An instruction that the emulator does not know, named with its line.
pub fn decode(text: &str, module: &Module<'_>, addresses: &[u64]) -> Result<Vec<Kernel>, PtxError> {
    let sources = Arc::new(Sources {
        files: module.files.iter().map(|(i, name)| (*i, (*name).to_owned())).collect(),
        ptx: text.to_owned(),
    });
    let placed: Vec<(String, u64)> =
        globals(module).into_iter().map(|g| g.name).zip(addresses.iter().copied()).collect();
    module
        .entries
        .iter()
        .map(|entry| {
            let mut symbols: HashMap<&str, Symbol> =
                placed.iter().map(|(name, at)| (name.as_str(), Symbol::Global(*at))).collect();
            let mut shared = SHARED_START;
            let mut local = 0;
            let variables = || module.variables.iter().chain(&entry.variables);
            let place = |end: &mut u32, v: &Variable<'_>| {
                let at = end.next_multiple_of(v.align.max(1));
                *end = at + v.bytes.unwrap_or(0);
                at
            };
            for v in variables() {
                match v.space {
                    VariableSpace::Shared if v.bytes.is_some() && !v.external => {
                        symbols.insert(v.name, Symbol::Shared(place(&mut shared, v)));
                    }
                    VariableSpace::Local => {
                        symbols.insert(v.name, Symbol::Local(place(&mut local, v)));
                    }
                    _ => {}
                }
            }
            let static_shared = shared - SHARED_START;
            // All `extern __shared__` arrays begin at the same place.
            let external = || {
                variables().filter(|v| v.space == VariableSpace::Shared && (v.external || v.bytes.is_none()))
            };
            let align = external().map(|v| v.align).max().unwrap_or(16).max(16);
            let dynamic_at = shared.next_multiple_of(align);
            for v in external() {
                symbols.insert(v.name, Symbol::Shared(dynamic_at));
            }
            let built = build::build(text, entry, &symbols)?;
            let end = entry.params.last().map_or(0, |p| p.offset + p.bytes);
            debug_assert!(entry.params.iter().all(|p| p.offset + p.bytes <= end));
            Ok(allocate::allocate(built, |code| Kernel {
                name: entry.name.to_owned(),
                code: code.instructions,
                lines: code.lines,
                rows: code.rows,
                preds: code.preds,
                fixed: code.fixed,
                undefined: code.undefined,
                undefined_preds: code.undefined_preds,
                params: entry.params.iter().map(|p| (p.offset, p.bytes)).collect(),
                static_shared,
                dynamic_at,
                local_bytes: local,
                max_threads: entry.max_threads.unwrap_or(1024),
                sources: sources.clone(),
            }))
        })
        .collect()
}
