//! Operations as they are executed: registers are rows of the warp's file, types are resolved, immediates are rows too.

use crate::exec::alu::{Alu, Cmp, CmpType};
use crate::exec::mma::Mma;
use crate::exec::registers::Reg;
use crate::monitor::Order;

/// When an operation's lanes act: a predicate, and true where it is negated.
pub type Guard = Option<(Reg, bool)>;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Device memory.
    Global,
    /// The block's shared memory, by offset.
    Shared,
    /// The thread's own memory, by offset.
    Local,
    /// The address itself tells.
    Generic,
}

/// An address: a register and a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Register.
    pub base: Reg,
    /// It has 64 bits.
    pub wide: bool,
    /// Bytes.
    pub offset: i64,
}

/// A register of a load or store, and how wide it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Register.
    pub reg: Reg,
    /// It has 64 bits.
    pub wide: bool,
}

/// A load or store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where.
    pub window: Window,
    /// Address of the first element.
    pub address: Address,
    /// Bytes of an element.
    pub element: u32,
    /// Elements smaller than their registers are sign-extended.
    pub signed: bool,
    /// Registers.
    pub cells: Vec<Cell>,
    /// Ordering.
    pub order: Order,
}

/// What an atomic operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum AtomicKind {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// What an atomic operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum AtomicType {
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16x2,
    BF16x2,
    B16,
}

/// `atom` or `red`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// Where.
    pub window: Window,
    /// Address.
    pub address: Address,
    /// Operation.
    pub kind: AtomicKind,
    /// Operands.
    pub of: AtomicType,
    /// Old value; `None` for `red`.
    pub d: Option<Reg>,
    /// Operand.
    pub b: Reg,
    /// Second operand of `cas`.
    pub c: Option<Reg>,
}

/// `cp.async`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyAsync {
    /// Destination.
    pub shared: Address,
    /// Source.
    pub global: Address,
    /// 4, 8 or 16.
    pub bytes: u32,
    /// Register with the bytes that are read; the others are zero.
    pub source_bytes: Option<Reg>,
    /// Predicate under which nothing is read, and true where it is negated.
    pub ignore: Option<(Reg, bool)>,
}

/// `ldmatrix`, `stmatrix`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Addresses of rows.
    pub address: Address,
    /// Shared offsets, or generic addresses of shared memory.
    pub window: Window,
    /// One 8x8 tile of 16-bit elements each.
    pub regs: Vec<Reg>,
    /// `.trans`
    pub transposed: bool,
    /// `stmatrix`
    pub stores: bool,
}

/// How lanes are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum ShuffleMode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// `shfl.sync`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shuffle {
    /// Mode.
    pub mode: ShuffleMode,
    /// Result.
    pub d: Reg,
    /// True where the source lane was in range.
    pub p: Option<Reg>,
    /// Value.
    pub a: Reg,
    /// Lane or distance.
    pub b: Reg,
    /// Clamp and segment mask.
    pub c: Reg,
    /// Lanes that take part.
    pub members: Reg,
}

/// What a vote asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// What `redux.sync` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum ReduxKind {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

/// Logic of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum PredLogic {
    And,
    Or,
    Xor,
    /// The second operand is not looked at.
    Mov,
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Lane by lane; unused sources are the zero row.
    Alu {
        /// Operation.
        op: Alu,
        /// Result.
        d: Reg,
        /// Sources.
        s: [Reg; 3],
    },
    /// `lop3`
    Lop3 {
        /// Result.
        d: Reg,
        /// Sources.
        s: [Reg; 3],
        /// Truth table.
        table: u8,
    },
    /// `bfi`
    Bfi {
        /// 64 bits.
        wide: bool,
        /// Result.
        d: Reg,
        /// Field, base, position, length.
        s: [Reg; 4],
    },
    /// `setp`
    Compare {
        /// Comparison.
        cmp: Cmp,
        /// Operands.
        of: CmpType,
        /// Result.
        p: Reg,
        /// Negated result.
        q: Option<Reg>,
        /// Left.
        a: Reg,
        /// Right.
        b: Reg,
        /// Combined with a predicate, and true where that is negated.
        with: Option<(PredLogic, Reg, bool)>,
    },
    /// Predicates.
    Logic {
        /// Operation.
        op: PredLogic,
        /// Result.
        d: Reg,
        /// Left, and true where it is negated.
        a: (Reg, bool),
        /// Right, and true where it is negated.
        b: (Reg, bool),
    },
    /// Sets a predicate in all lanes.
    SetPred {
        /// Result.
        d: Reg,
        /// Value.
        value: bool,
    },
    /// `isspacep`
    IsSpace {
        /// Result.
        d: Reg,
        /// Generic address.
        a: Reg,
        /// Window.
        window: Window,
    },
    /// `selp`
    Select {
        /// 64 bits.
        wide: bool,
        /// Result.
        d: Reg,
        /// Where the predicate holds.
        a: Reg,
        /// Where not.
        b: Reg,
        /// Predicate, and true where it is negated.
        p: (Reg, bool),
    },
    /// `bra`
    Branch {
        /// Index of the operation.
        target: u32,
    },
    /// `brx.idx`
    BranchTable {
        /// Index into the targets.
        index: Reg,
        /// Indices of operations.
        targets: Vec<u32>,
    },
    /// `exit`, `ret`
    Exit,
    /// `trap`
    Trap,
    /// `ld`
    Load(Box<Memory>),
    /// `st`
    Store(Box<Memory>),
    /// `atom`, `red`
    Atomic(Box<Atomic>),
    /// `cp.async`
    CopyAsync(Box<CopyAsync>),
    /// `cp.async.commit_group`
    CopyCommit,
    /// `cp.async.wait_group`; `None` is `wait_all`.
    CopyWait(Option<u32>),
    /// `ldmatrix`, `stmatrix`
    Matrix(Box<Matrix>),
    /// `mma`
    Mma(Box<Mma>),
    /// `shfl.sync`
    Shuffle(Box<Shuffle>),
    /// `vote.sync`
    Vote {
        /// Question.
        mode: VoteMode,
        /// Predicate, or register for `ballot`.
        d: Reg,
        /// Votes, and true where they are negated.
        a: (Reg, bool),
        /// Lanes that take part.
        members: Reg,
    },
    /// `match.any.sync`, `match.all.sync`
    Match {
        /// `all`
        all: bool,
        /// The values have 64 bits.
        wide: bool,
        /// Mask of lanes.
        d: Reg,
        /// True where all are equal.
        p: Option<Reg>,
        /// Value.
        a: Reg,
        /// Lanes that take part.
        members: Reg,
    },
    /// `redux.sync`
    Redux {
        /// Operation.
        kind: ReduxKind,
        /// Result.
        d: Reg,
        /// Value.
        a: Reg,
        /// Lanes that take part.
        members: Reg,
    },
    /// `activemask`
    ActiveMask {
        /// Result.
        d: Reg,
    },
    /// `elect.sync`
    Elect {
        /// Lane elected.
        d: Option<Reg>,
        /// True in that lane.
        p: Reg,
        /// Lanes that take part.
        members: Reg,
    },
    /// `bar`, `barrier`
    Barrier {
        /// Number.
        id: Reg,
        /// Threads; all of the block where absent.
        threads: Option<Reg>,
        /// False for `arrive`.
        waits: bool,
        /// All lanes of a warp must come together.
        aligned: bool,
    },
    /// `bar.warp.sync`
    WarpSync {
        /// Lanes that take part.
        members: Reg,
    },
    /// `membar`, `fence`, and the fences of acquiring and releasing accesses.
    Fence {
        /// Not only among the threads of the block.
        device_wide: bool,
    },
    /// `griddepcontrol.wait`
    DependencyWait,
    /// `griddepcontrol.launch_dependents`
    LaunchDependents,
    /// `%clock`, `%clock64`, `%globaltimer`
    Clock {
        /// 64 bits.
        wide: bool,
        /// Result.
        d: Reg,
    },
    /// Hints.
    Nop,
}

/// What an operation does to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads.
    Use,
    /// Writes.
    Def,
}

impl Op {
    /// Calls `f` for every register; uses before definitions.
    pub fn visit(&mut self, f: &mut impl FnMut(&mut Reg, Role)) {
        use Role::{Def, Use};
        match self {
            Op::Alu { d, s, .. } | Op::Lop3 { d, s, .. } => {
                s.iter_mut().for_each(|s| f(s, Use));
                f(d, Def);
            }
            Op::Bfi { d, s, .. } => {
                s.iter_mut().for_each(|s| f(s, Use));
                f(d, Def);
            }
            Op::Compare { p, q, a, b, with, .. } => {
                f(a, Use);
                f(b, Use);
                if let Some((_, w, _)) = with {
                    f(w, Use);
                }
                f(p, Def);
                if let Some(q) = q {
                    f(q, Def);
                }
            }
            Op::Logic { d, a, b, .. } => {
                f(&mut a.0, Use);
                f(&mut b.0, Use);
                f(d, Def);
            }
            Op::SetPred { d, .. } => f(d, Def),
            Op::IsSpace { d, a, .. } => {
                f(a, Use);
                f(d, Def);
            }
            Op::Select { d, a, b, p, .. } => {
                f(a, Use);
                f(b, Use);
                f(&mut p.0, Use);
                f(d, Def);
            }
            Op::BranchTable { index, .. } => f(index, Use),
            Op::Load(m) => {
                f(&mut m.address.base, Use);
                m.cells.iter_mut().for_each(|c| f(&mut c.reg, Def));
            }
            Op::Store(m) => {
                f(&mut m.address.base, Use);
                m.cells.iter_mut().for_each(|c| f(&mut c.reg, Use));
            }
            Op::Atomic(a) => {
                f(&mut a.address.base, Use);
                f(&mut a.b, Use);
                if let Some(c) = &mut a.c {
                    f(c, Use);
                }
                if let Some(d) = &mut a.d {
                    f(d, Def);
                }
            }
            Op::CopyAsync(c) => {
                f(&mut c.shared.base, Use);
                f(&mut c.global.base, Use);
                if let Some(n) = &mut c.source_bytes {
                    f(n, Use);
                }
                if let Some((p, _)) = &mut c.ignore {
                    f(p, Use);
                }
            }
            Op::Matrix(m) => {
                f(&mut m.address.base, Use);
                let role = if m.stores { Use } else { Def };
                m.regs.iter_mut().for_each(|r| f(r, role));
            }
            Op::Mma(m) => {
                m.a.iter_mut().chain(&mut m.b).chain(&mut m.c).for_each(|r| f(r, Use));
                m.d.iter_mut().for_each(|r| f(r, Def));
            }
            Op::Shuffle(s) => {
                for r in [&mut s.a, &mut s.b, &mut s.c, &mut s.members] {
                    f(r, Use);
                }
                f(&mut s.d, Def);
                if let Some(p) = &mut s.p {
                    f(p, Def);
                }
            }
            Op::Vote { d, a, members, .. } => {
                f(&mut a.0, Use);
                f(members, Use);
                f(d, Def);
            }
            Op::Match { d, p, a, members, .. } => {
                f(a, Use);
                f(members, Use);
                f(d, Def);
                if let Some(p) = p {
                    f(p, Def);
                }
            }
            Op::Redux { d, a, members, .. } => {
                f(a, Use);
                f(members, Use);
                f(d, Def);
            }
            Op::Elect { d, p, members } => {
                f(members, Use);
                if let Some(d) = d {
                    f(d, Def);
                }
                f(p, Def);
            }
            Op::ActiveMask { d } | Op::Clock { d, .. } => f(d, Def),
            Op::Barrier { id, threads, .. } => {
                f(id, Use);
                if let Some(t) = threads {
                    f(t, Use);
                }
            }
            Op::WarpSync { members } => f(members, Use),
            Op::Branch { .. }
            | Op::Exit
            | Op::Trap
            | Op::CopyCommit
            | Op::CopyWait(_)
            | Op::Fence { .. }
            | Op::DependencyWait
            | Op::LaunchDependents
            | Op::Nop => {}
        }
    }

    /// True if the sources are read lane by lane just before the result is written, so that they may share a row.
    pub const fn in_place(&self) -> bool {
        matches!(
            self,
            Op::Alu { .. } | Op::Lop3 { .. } | Op::Bfi { .. } | Op::Select { .. } | Op::Logic { .. }
        )
    }
}
