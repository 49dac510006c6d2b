//! A GEMM with what stands before and behind it in a decoder layer: an RMS norm of x; a residual, or rotary embedding
//! and KV append.
//!
//! Few rows are one launch (`few.rs`), more are the separate kernels one after another. Rounding points are those of the
//! separate kernels, and so are the bits: normed rows are rounded to x's dtype, the projection stays in f32.

use lathe_device::{Arg, Symbol, When};
use lathe_numerics::DType;

use super::{Epilogue, Problem, add_launches, few, launches};
use crate::cuda::{Launches, Workspace};
use crate::error::KernelError;
use crate::{rms_norm, rope_append};

/// What becomes of a projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tail {
    /// What the problem's epilogue says.
    None,
    /// A residual of the output's shape and dtype is added before the rounding.
    Add,
    /// Queries are rotated into the output, keys and values into the cache.
    RopeAppend(rope_append::cuda::Problem),
}

/// What stands before and behind a GEMM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fused {
    /// Eps of an RMS norm of x.
    pub norm: Option<f32>,
    /// What stands behind.
    pub tail: Tail,
}

/// Inputs x `D[m, k]`; the norm's weight `D[k]` where there is a norm; weight; bias `f32[stored rows]` if the problem has
/// one; then for `Add` the residual, for `RopeAppend` positions, table and cache. Output as [`launches`] has it; with
/// `Add` `D[m, n]`, which may be the residual's own bytes; with `RopeAppend` q `D[m, heads * head_dim]`.
///
/// # Errors
/// As the parts; `Unsupported` for an epilogue other than `Store` with a tail.
pub fn fused_launches(p: &Problem, f: &Fused) -> Result<Launches, KernelError> {
    let mut chain = Chain::default();
    let normed = u32::from(f.norm.is_some());
    let mut inputs: Vec<Arg> = (0..2 + u32::from(p.bias)).map(|i| Arg::Input(i + normed)).collect();
    inputs[0] = Arg::Input(0);
    let behind = normed + inputs.len() as u32;
    if let Some(eps) = f.norm {
        let norm = rms_norm::cuda::NormProblem::rows(p.m, p.k, p.dtype, eps);
        let rows = chain.workspace(p.m, (p.k * p.dtype.size()).div_ceil(size_of::<f32>()));
        chain.push(rms_norm::cuda::launches(&norm)?, &[Arg::Input(0), Arg::Input(1)], rows);
        inputs[0] = rows;
    }
    if f.tail != Tail::None && p.epilogue != Epilogue::Store {
        let what = format!("a tail behind epilogue {:?}; there is one behind Store", p.epilogue);
        return Err(KernelError::Unsupported { kernel: super::NAME, what });
    }
    match f.tail {
        Tail::None => chain.push(launches(p)?, &inputs, Arg::Output(0)),
        Tail::Add => {
            inputs.push(Arg::Input(behind));
            chain.push(add_launches(p)?, &inputs, Arg::Output(0));
        }
        Tail::RopeAppend(rope) => {
            if rope.norm.is_some() || rope.rotary_dim == 0 {
                let what = "norms of query and key, or no rotation, behind a projection".into();
                return Err(KernelError::Unsupported { kernel: super::NAME, what });
            }
            let qkv = chain.workspace(p.m, p.n);
            chain.push(launches(&Problem { out: DType::F32, ..*p })?, &inputs, qkv);
            let inputs = [qkv, Arg::Input(behind), Arg::Input(behind + 1), Arg::Input(behind + 2)];
            chain.push(rope_append::cuda::launches(&rope)?, &inputs, Arg::Output(0));
        }
    }
    let few = few::stages(p, f)?;
    let most = few.last().map_or(0, |(max, _)| *max);
    let mut all =
        Launches { stages: few.into_iter().map(|(_, stage)| stage).collect(), ..Launches::default() };
    if most < p.max_m {
        chain.begin_at(p, most + 1);
        all.stages.extend(chain.0.stages);
        all.workspaces = chain.0.workspaces;
    }
    Ok(all)
}

/// Launches one after another that hand rows on in workspace.
#[derive(Default)]
struct Chain(Launches);

impl Chain {
    /// Workspace of `floats` per row; it is an output behind the node's own.
    fn workspace(&mut self, symbol: Symbol, floats: usize) -> Arg {
        self.0.workspaces.push(Workspace { symbol, floats: floats as u64 });
        Arg::Output(self.0.workspaces.len() as u32)
    }

    /// Leaves steps of fewer than `first` rows to others.
    fn begin_at(&mut self, p: &Problem, first: u32) {
        if first == 1 {
            return;
        }
        self.0.stages.retain_mut(|stage| {
            let (min, max) = match stage.when {
                When::Range { min, max, .. } => (min.max(first), max),
                _ => (first, p.max_m),
            };
            stage.when = When::Range { symbol: p.m, min, max };
            min <= max
        });
    }

    /// Puts launches behind the others, with these operands.
    fn push(&mut self, launches: Launches, inputs: &[Arg], output: Arg) {
        let first_workspace = self.0.workspaces.len() as u32;
        self.0.workspaces.extend(launches.workspaces);
        for mut stage in launches.stages {
            for arg in &mut stage.args {
                *arg = match *arg {
                    Arg::Input(i) => inputs[i as usize],
                    Arg::Output(0) => output,
                    Arg::Output(i) => Arg::Output(first_workspace + i),
                    other => other,
                };
            }
            self.0.stages.push(stage);
        }
    }
}
