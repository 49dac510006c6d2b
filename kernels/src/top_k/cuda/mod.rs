//! Routing on a device, with the CPU's bits: a warp per row chooses, then a warp per expert gathers its choices in order.
//!
//! Rows of padding choose no expert, so nothing is computed for them. No atomics: the grouping is the counting sort's.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};

use super::{NAME, Over};
use crate::cuda::{Cost, Launches, Source, Stage};
use crate::error::{KernelError, at_least, at_most, product};

const TEXT: &str = include_str!("kernel.cu");
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// Logits that a lane keeps in registers, times 32.
pub const MAX_EXPERTS: usize = 2048;

/// A router's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows.
    pub m: Symbol,
    /// Most rows of a step.
    pub max_m: u32,
    /// Logits of a row.
    pub n: usize,
    /// Choices of a row.
    pub k: usize,
    /// What the weights are normalised over.
    pub over: Over,
}

/// Input logits `f32[m, n]`; outputs ids `i32[m, k]`, weights `f32[m, k]`, order `i32[m, k]`, starts `i32[n + 1]`.
///
/// # Errors
/// `Shape` for a `k` outside of `1..=n`, more than [`MAX_EXPERTS`] logits, and more choices than 31 bits count.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    at_least(NAME, "k", 1, p.k)?;
    at_most(NAME, "k", p.n, p.k)?;
    at_most(NAME, "n", MAX_EXPERTS, p.n)?;
    let choices = product(NAME, "choices", &[p.max_m as usize, p.k])?;
    at_most(NAME, "choices", i32::MAX as usize - 32, choices)?;
    let defines = vec![
        ("K", p.k.to_string()),
        ("EXPERTS", p.n.to_string()),
        ("OVER_ALL", u32::from(p.over == Over::All).to_string()),
        ("THREADS", THREADS.to_string()),
    ];
    let source = Source::new(format!("{NAME}-{}-{}", p.n, p.k), TEXT, defines);
    // Tables say which tokens are padding; rows that are drawn from are all of sequences, or copies of one that is.
    let padding = match p.m {
        Symbol::Tokens => Arg::Table(StepTable::RowSequence),
        Symbol::Sequences | Symbol::Rows => Arg::U64(0),
    };
    let stage = |entry, blocks, args: Vec<Arg>, cost| Stage {
        source: source.clone(),
        entry,
        when: When::Always,
        grid: [blocks, Extent::fixed(1), Extent::fixed(1)],
        block: THREADS as u32,
        shared_bytes: 0,
        dependent: true,
        args,
        cost,
    };
    let (n, k, m) = (p.n as u64, p.k as u64, Arg::Symbol(p.m));
    let choose = stage(
        NAME,
        Extent::per(p.m, WARPS as u32, 1),
        vec![Arg::Input(0), Arg::Output(0), Arg::Output(1), padding, m],
        Cost { fixed_bytes: 0, row_bytes: 4 * n + 8 * k, row_flops: 2 * n * k },
    );
    let group = stage(
        "group",
        Extent::fixed((p.n + 1).div_ceil(WARPS) as u32),
        vec![Arg::Output(0), Arg::Output(2), Arg::Output(3), m],
        Cost { fixed_bytes: 4 * (n + 1), row_bytes: 8 * k, row_flops: 2 * n * k },
    );
    Ok(Launches { stages: vec![choose, group], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Problem = Problem { m: Symbol::Tokens, max_m: 512, n: 60, k: 4, over: Over::All };

    #[test]
    fn a_warp_for_each_row_and_expert() {
        let stages = launches(&P).unwrap().stages;
        assert_eq!(stages[0].grid[0], Extent::per(Symbol::Tokens, 8, 1));
        assert_eq!(stages[1].grid[0], Extent::fixed(8));
        assert!(stages[0].args.contains(&Arg::Table(StepTable::RowSequence)));
        let rows = launches(&Problem { m: Symbol::Rows, ..P }).unwrap().stages;
        assert!(rows[0].args.contains(&Arg::U64(0)));
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        assert!(launches(&Problem { n: MAX_EXPERTS, k: 9, ..P }).is_ok());
        for wrong in [
            Problem { k: 0, ..P },
            Problem { k: 61, ..P },
            Problem { n: MAX_EXPERTS + 1, ..P },
            Problem { max_m: u32::MAX, ..P },
        ] {
            assert!(launches(&wrong).is_err(), "{wrong:?}");
        }
    }
}
