//! Every expert's GEMM in one launch: the host knows how many rows there are, the device which expert they chose.
//!
//! Needs: as `gemm::cuda`, weights of all experts one below the other, each of a multiple of 16 stored rows; choices grouped
//! by `top_k::cuda`. The grid has as many tiles as the worst choice needs; a block finds its expert in the grouping, and one
//! that finds none ends. Order: that of `gemm` with one expert's weight, in every configuration.
//! Device code: `gemm`'s kernels with `EXPERTS`; `expert_gemm.cuh` has what is different.

use lathe_device::{Arg, Extent, Symbol, Term};
use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;

use super::NAME;
use crate::cuda::{Launches, Stage};
use crate::error::{KernelError, at_least, at_most, product};
use crate::gemm::cuda::{Body, Config, Problem as One, grouped_stage, grouped_tile};
use crate::gemm::{Epilogue, stored_rows};

/// Tokens of a tile, from few rows per expert to many.
const TILES: [usize; 5] = [8, 16, 32, 64, 128];

/// A grouped GEMM of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows whose choices are multiplied.
    pub m: Symbol,
    /// Most rows of a step.
    pub max_m: u32,
    /// Experts.
    pub experts: usize,
    /// Choices of a row.
    pub choices: usize,
    /// Choices in a row that have one row of x: `choices` or 1.
    pub share: usize,
    /// Logical features of one expert's weight (`2 * cols` for a gated epilogue).
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Of x and the weights: bf16, f16 or f32.
    pub dtype: DType,
    /// Of the result: bf16, f16 or f32.
    pub out: DType,
    /// What is stored.
    pub epilogue: Epilogue,
    /// True if `Input(4)` is a bias.
    pub bias: bool,
}

/// Inputs x `D[m, k]` or `D[m, choices * k]`, order `i32[m, choices]`, starts `i32[experts + 1]`, weights, bias
/// `f32[experts * stored rows]` if there is one; output `[m, choices * n]`, or that of a gated epilogue's columns. Choices
/// of padding have no place in the order; nothing is written for them.
///
/// # Errors
/// As `gemm::cuda::launches`; `Unsupported` for experts of stored rows that are no multiple of 16.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    let rows = stored_rows(p.n, p.epilogue);
    if !rows.is_multiple_of(PANEL) {
        let what = format!("{rows} stored rows of an expert; they are a multiple of {PANEL}");
        return Err(KernelError::Unsupported { kernel: NAME, what });
    }
    at_least(NAME, "experts", 1, p.experts)?;
    at_least(NAME, "choices", 1, p.choices)?;
    at_least(NAME, "share", 1, p.share)?;
    let all = product(NAME, "choices", &[p.max_m as usize, p.choices])?;
    at_most(NAME, "choices", (i32::MAX / 4) as usize, all)?;
    at_most(NAME, "bias", (i32::MAX / 4) as usize, product(NAME, "bias", &[rows, p.experts])?)?;
    let stages = choose(p).iter().map(|c| stage(p, c, rows)).collect::<Result<_, _>>()?;
    Ok(Launches { stages, workspaces: vec![] })
}

fn one(p: &Problem) -> One {
    let Problem { m, max_m, n, k, dtype, out, epilogue, bias, .. } = *p;
    One { m, max_m, n, k, dtype, out, epilogue, bias }
}

/// A configuration per range of rows: a tile holds twice an expert's share of them, as rows are not spread evenly.
pub fn choose(p: &Problem) -> Vec<Config> {
    let mut configs: Vec<Config> = Vec::new();
    for (at, tokens) in TILES.into_iter().enumerate() {
        let min = configs.last().map_or(1, |c| c.max.saturating_add(1));
        if min > p.max_m || configs.last().is_some_and(|c| c.max == u32::MAX) {
            break;
        }
        let end = match TILES.get(at + 1) {
            Some(_) => (tokens * p.experts / (2 * p.choices)).max(tokens).try_into().unwrap_or(u32::MAX),
            None => u32::MAX,
        };
        let body = match p.dtype {
            DType::F32 => Body::Fma(if tokens <= 8 { 1 } else { 4 }),
            _ => Body::Mma(grouped_tile(&one(p), active(p, end.min(p.max_m)), tokens)),
        };
        let config = Config { min, max: end.min(p.max_m), body };
        match configs.last_mut() {
            Some(last) if last.body == body => last.max = config.max,
            _ => configs.push(config),
        }
    }
    configs
}

/// Experts that so many rows may choose.
fn active(p: &Problem, rows: u32) -> usize {
    p.experts.min((rows as usize).saturating_mul(p.choices))
}

/// Tiles of so many tokens that rows `min..=max` need at most.
fn tiles(p: &Problem, config: &Config, tokens: usize) -> Extent {
    let (choices, experts) = (p.choices as u32, p.experts as u32);
    // An expert has each row once at most: up to a tile's rows it has one tile.
    if config.max as usize <= tokens {
        return match active(p, config.max) < p.experts {
            true => Extent::per(p.m, 1, choices),
            false => Extent::fixed(experts),
        };
    }
    Extent::Sum { constant: experts, terms: vec![Term { symbol: p.m, per: tokens as u32, times: choices }] }
}

fn stage(p: &Problem, config: &Config, rows: usize) -> Result<Stage, KernelError> {
    let (mut stage, features, tokens) = grouped_stage(&one(p), config)?;
    stage.source.defines.extend([("EXPERTS", p.experts.to_string()), ("SHARE", p.share.to_string())]);
    stage.source.defines.sort();
    stage.source.name = format!("{NAME}-{}-{}x{rows}x{}-{}", p.dtype, p.experts, p.k, config.max);
    stage.grid = [Extent::fixed(rows.div_ceil(features) as u32), tiles(p, config, tokens), Extent::fixed(1)];
    for arg in &mut stage.args {
        if let Arg::Input(i @ 1..) = arg {
            *i += 2;
        }
    }
    stage.args.extend([Arg::Input(1), Arg::Input(2)]);
    let (expert, choices) = (stage.cost.fixed_bytes, p.choices as u64);
    let x = (p.k * p.dtype.size()) as u64;
    stage.cost.row_bytes = (stage.cost.row_bytes - x) * choices + x * (choices / p.share as u64);
    stage.cost.row_flops *= choices;
    match active(p, config.max) < p.experts {
        true => {
            stage.cost.fixed_bytes = 0;
            stage.cost.row_bytes += choices * expert;
        }
        false => stage.cost.fixed_bytes = expert * p.experts as u64,
    }
    Ok(stage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::HEADERS;

    const P: Problem = Problem {
        m: Symbol::Tokens,
        max_m: 4096,
        experts: 128,
        choices: 8,
        share: 8,
        n: 1536,
        k: 2048,
        dtype: DType::BF16,
        out: DType::BF16,
        epilogue: Epilogue::Store,
        bias: true,
    };

    fn problems() -> Vec<Problem> {
        let mixtral = Problem { experts: 8, choices: 2, share: 1, n: 4096, k: 14336, bias: false, ..P };
        let tiny = Problem { experts: 3, choices: 3, share: 3, n: 16, k: 5, max_m: 40, ..P };
        let one = Problem { experts: 1, choices: 1, share: 1, max_m: 1, ..tiny };
        let all = [P, mixtral, tiny, one];
        all.into_iter().flat_map(|p| [p, Problem { dtype: DType::F32, ..p }]).collect()
    }

    #[test]
    fn ranges_cover_every_row_count_once() {
        for p in problems() {
            let mut next = 1;
            for c in choose(&p) {
                assert!(c.min == next && c.min <= c.max, "{p:?}: {c:?}");
                next = c.max + 1;
            }
            assert_eq!(next, p.max_m + 1, "{p:?}");
        }
    }

    #[test]
    fn grids_hold_the_worst_choice() {
        // Rows that fill tiles as badly as they can: one token more than whole tiles, for as many experts as there are.
        for p in problems() {
            for config in choose(&p) {
                let tokens = match config.body {
                    Body::Mma(t) => t.tokens,
                    Body::Fma(per_thread) => 4 * per_thread,
                };
                for rows in [config.min, config.max] {
                    let choices = rows as usize * p.choices;
                    let mut left = choices;
                    let mut worst = 0;
                    for _ in 0..p.experts {
                        let one = left.min(1);
                        (worst, left) = (worst + one, left - one);
                    }
                    worst += left / tokens;
                    let symbols = lathe_device::Symbols {
                        tokens: rows,
                        sequences: 1,
                        rows: 1,
                        decode: false,
                        sm_count: 1,
                    };
                    let launch = lathe_device::DeviceLaunch {
                        module: 0,
                        entry: String::new(),
                        when: lathe_device::When::Always,
                        grid: [Extent::fixed(1), tiles(&p, &config, tokens), Extent::fixed(1)],
                        block: 32,
                        shared_bytes: 0,
                        dependent: false,
                        args: vec![],
                    };
                    let most = if rows as usize <= tokens { p.experts.min(choices) } else { worst };
                    assert!(launch.grid(&symbols).unwrap()[1] as usize >= most, "{p:?} {config:?} {rows}");
                }
            }
        }
    }

    #[test]
    fn arguments_follow_the_operands() {
        let stage = &launches(&P).unwrap().stages[0];
        let [x, weight, bias] = [0, 3, 4].map(Arg::Input);
        let m = Arg::Symbol(Symbol::Tokens);
        let want = [x, weight, bias, Arg::U64(0), Arg::Output(0), m, Arg::Input(1), Arg::Input(2)];
        assert_eq!(stage.args, want);
        let plain = &launches(&Problem { bias: false, ..P }).unwrap().stages[0];
        assert_eq!(plain.args[2], Arg::U64(0));
        let header = HEADERS.iter().find(|h| h.0 == "expert_gemm.cuh").unwrap().1;
        for name in ["EXPERTS", "SHARE"] {
            assert!(stage.source.defines.iter().any(|d| d.0 == name) && header.contains(name));
        }
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        for p in problems() {
            assert!(launches(&p).is_ok(), "{p:?}");
        }
        let why = launches(&Problem { n: 24, ..P }).unwrap_err().to_string();
        assert_eq!(why, "expert_gemm: unsupported: 24 stored rows of an expert; they are a multiple of 16");
        for wrong in [
            Problem { experts: 0, ..P },
            Problem { choices: 0, ..P },
            Problem { share: 0, ..P },
            Problem { max_m: u32::MAX, ..P },
            Problem { dtype: DType::I32, ..P },
        ] {
            assert!(launches(&wrong).is_err(), "{wrong:?}");
        }
    }
}
