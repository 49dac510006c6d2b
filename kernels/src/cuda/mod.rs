//! Device kernels: sources, how they are specialised, and how they are launched.
//!
//! Each family's folder has `cuda/`: `mod.rs` turns a problem (shapes, dtypes; all that the plan knows) into [`Stage`]s,
//! `*.cu` is the device code, which includes the headers of this folder and nothing else. Needs no GPU and no compiler.

use lathe_device::{Arg, Extent, Symbol, When};
use lathe_numerics::{Activation, DType};

pub mod mma16;

/// A header that device sources may include by its name.
pub const HEADERS: &[(&str, &str)] = &[
    ("lathe.cuh", include_str!("lathe.cuh")),
    ("step.cuh", include_str!("step.cuh")),
    ("expert_gemm.cuh", include_str!("../expert_gemm/cuda/expert_gemm.cuh")),
    ("gemm.cuh", include_str!("../gemm/cuda/gemm.cuh")),
    ("rms_norm.cuh", include_str!("../rms_norm/cuda/rms_norm.cuh")),
    ("row.cuh", include_str!("../rms_norm/cuda/row.cuh")),
    ("rotate.cuh", include_str!("../rope_append/cuda/rotate.cuh")),
    ("rope_append.cuh", include_str!("../rope_append/cuda/rope_append.cuh")),
];

/// A device source and what it is specialised on: one module of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Family and variant, e.g. `gemm-rows8`.
    pub name: String,
    /// CUDA C++.
    pub text: &'static str,
    /// Macros, by ascending name: `-Dname=value`.
    pub defines: Vec<(&'static str, String)>,
}

impl Source {
    /// A source with its macros put in order.
    pub fn new(
        name: impl Into<String>,
        text: &'static str,
        mut defines: Vec<(&'static str, String)>,
    ) -> Self {
        defines.sort();
        Source { name: name.into(), text, defines }
    }
}

/// Work of one launch for the report: what it must move and compute at least, as functions of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of weights and constants.
    pub fixed_bytes: u64,
    /// Bytes of activations per row.
    pub row_bytes: u64,
    /// Floating-point operations per row.
    pub row_flops: u64,
}

/// One launch of a node, not yet tied to a plan's modules.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Code.
    pub source: Source,
    /// `__global__` function.
    pub entry: &'static str,
    /// When it runs.
    pub when: When,
    /// Blocks.
    pub grid: [Extent; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// See `DeviceLaunch::dependent`.
    pub dependent: bool,
    /// Arguments: `Input` and `Output` count the operands of the launch as LAUNCHES.md lists them, then `Workspace`s.
    pub args: Vec<Arg>,
    /// What it moves and computes.
    pub cost: Cost,
}

impl Stage {
    /// A launch whose lanes take a vector of `vec` elements each: a row of `m` per block in x, its `cols` columns in y.
    pub fn over_columns(
        (source, entry): (Source, &'static str),
        (m, cols, vec): (Symbol, usize, usize),
        threads: usize,
        args: Vec<Arg>,
        cost: Cost,
    ) -> Stage {
        Stage {
            source,
            entry,
            when: When::Always,
            grid: [
                Extent::per(m, 1, 1),
                Extent::fixed((cols / vec).div_ceil(threads) as u32),
                Extent::fixed(1),
            ],
            block: threads as u32,
            shared_bytes: 0,
            dependent: true,
            args,
            cost,
        }
    }
}

/// Device memory that a node's stages hand to each other: `f32[rows * per_row]`, an output after the node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Symbol that it grows with.
    pub symbol: Symbol,
    /// Floats per unit of the symbol.
    pub floats: u64,
}

/// A node as launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launches {
    /// In order; alternatives exclude each other by `when`.
    pub stages: Vec<Stage>,
    /// Extra outputs.
    pub workspaces: Vec<Workspace>,
}

/// The C++ type of activations: what `ELEMENT` is defined as.
pub const fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "lathe::bf16",
        DType::F16 => "lathe::f16",
        _ => "float",
    }
}

/// The function of `lathe.cuh` that has an activation's bits.
pub(crate) const fn activation(act: Activation) -> &'static str {
    match act {
        Activation::Silu => "lathe::silu_portable",
        Activation::Gelu => "lathe::gelu_portable",
        Activation::GeluTanh => "lathe::gelu_tanh_portable",
    }
}

/// The widest unsigned type of device code, and its bytes, that divides `bytes`: what copies move.
pub(crate) const fn word(bytes: u64) -> (&'static str, u64) {
    match bytes.trailing_zeros() {
        0 => ("lathe::u8", 1),
        1 => ("lathe::u16", 2),
        2 => ("lathe::u32", 4),
        3 => ("lathe::u64", 8),
        _ => ("uint4", 16),
    }
}
