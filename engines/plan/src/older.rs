//! Tables as format 1.0 wrote them, for CPU programs only; what came later is empty.

use bincode::{Decode, Encode};

use crate::schema::{Buffer, CacheGroup, Launch, Operand, Param, Program, Symbol, Target};

/// A program of section `PROG` version 1: `Program` without modules and sampling.
#[derive(Encode, Decode)]
pub(crate) struct Program1 {
    name: String,
    target: Target,
    rank: u32,
    n_ranks: u32,
    symbols: Vec<Symbol>,
    buffers: Vec<Buffer>,
    arena_bytes: u64,
    scratch_bytes: u64,
    cache_groups: Vec<CacheGroup>,
    launches: Vec<Launch1>,
    logits: Operand,
}

/// `Launch` without device launches.
#[derive(Encode, Decode)]
struct Launch1 {
    kernel: String,
    node: String,
    inputs: Vec<Operand>,
    outputs: Vec<Operand>,
    params: Vec<(String, Param)>,
}

impl From<Program1> for Program {
    fn from(p: Program1) -> Self {
        let Program1 { name, target, rank, n_ranks, symbols, buffers, arena_bytes, scratch_bytes, .. } = p;
        Program {
            name,
            target,
            rank,
            n_ranks,
            symbols,
            buffers,
            arena_bytes,
            scratch_bytes,
            cache_groups: p.cache_groups,
            launches: p.launches.into_iter().map(Launch::from).collect(),
            logits: p.logits,
            modules: Vec::new(),
            sampling: Vec::new(),
        }
    }
}

impl From<Launch1> for Launch {
    fn from(l: Launch1) -> Self {
        let Launch1 { kernel, node, inputs, outputs, params } = l;
        Launch { kernel, node, inputs, outputs, params, device: Vec::new() }
    }
}
