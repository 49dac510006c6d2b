//! The look-up on a device; ids that the step before drew are resolved here, so that no host waits for them.

use lathe_device::{Arg, Extent, StepTable, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, mma16, word};
use crate::error::{KernelError, at_least};
use crate::view::float;

const NAME: &str = "embedding";
const TEXT: &str = include_str!("kernel.cu");
const THREADS: u32 = 128;

/// How a table is stored for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableLayout {
    /// `[vocab, h]`.
    RowMajor,
    /// As a GEMM's weight, see `cuda::mma16`.
    Mma16,
}

/// `out[t] = table[tokens[t]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Rows of the table.
    pub vocab: usize,
    /// Columns.
    pub h: usize,
    /// Of table and result.
    pub dtype: DType,
    /// Of the table.
    pub layout: TableLayout,
}

/// Inputs tokens `i32[t]` as `StepTable::Tokens` defines them, all below `vocab`, and the table; output `D[t, h]`.
///
/// # Errors
/// `Unsupported` for dtypes and for `Mma16` of 4-byte elements, `Shape` for an empty table.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    at_least(NAME, "vocab", 1, p.vocab)?;
    at_least(NAME, "h", 1, p.h)?;
    let bytes = (p.h * p.dtype.size()) as u64;
    let (name, mut defines, threads) = match p.layout {
        TableLayout::RowMajor => {
            let (word, size) = word(bytes);
            let words = bytes / size;
            (
                format!("{NAME}-{bytes}"),
                vec![("MMA16", "0".into()), ("WORD", word.into()), ("WORDS", words.to_string())],
                words,
            )
        }
        TableLayout::Mma16 if p.dtype.size() == 2 => {
            let tiles = p.h.div_ceil(mma16::TILE) as u64;
            (
                format!("{NAME}-mma16-{}", p.h),
                vec![("MMA16", "1".into()), ("H", p.h.to_string()), ("TILES", tiles.to_string())],
                4 * tiles,
            )
        }
        TableLayout::Mma16 => {
            return Err(KernelError::Unsupported {
                kernel: NAME,
                what: format!("a table of {} in fragment order; bf16 and f16 have one", p.dtype),
            });
        }
    };
    defines.push(("THREADS", THREADS.to_string()));
    let stage = Stage {
        source: Source::new(name, TEXT, defines),
        entry: NAME,
        when: When::Always,
        grid: [
            Extent::per(Symbol::Tokens, 1, 1),
            Extent::fixed(threads.div_ceil(u64::from(THREADS)) as u32),
            Extent::fixed(1),
        ],
        block: THREADS,
        shared_bytes: 0,
        dependent: true,
        args: vec![Arg::Input(0), Arg::Input(1), Arg::Table(StepTable::Drawn), Arg::Output(0)],
        cost: Cost { fixed_bytes: 0, row_bytes: 2 * bytes + 4, row_flops: 0 },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_their_own_code_and_enough_threads() {
        let p = Problem { vocab: 128_256, h: 4096, dtype: DType::BF16, layout: TableLayout::RowMajor };
        let plain = launches(&p).unwrap().stages.remove(0);
        assert_eq!(plain.grid[1], Extent::fixed(4));
        assert_eq!(plain.source.name, "embedding-8192");
        let packed = launches(&Problem { layout: TableLayout::Mma16, ..p }).unwrap().stages.remove(0);
        assert_eq!(packed.grid[1], Extent::fixed(8));
        assert!(packed.source.defines.contains(&("TILES", "256".into())));
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let p = Problem { vocab: 9, h: 8, dtype: DType::F32, layout: TableLayout::Mma16 };
        let e = launches(&p).unwrap_err().to_string();
        assert_eq!(e, "embedding: unsupported: a table of f32 in fragment order; bf16 and f16 have one");
        assert!(launches(&Problem { vocab: 0, layout: TableLayout::RowMajor, ..p }).is_err());
        assert!(launches(&Problem { dtype: DType::I32, layout: TableLayout::RowMajor, ..p }).is_err());
    }
}
