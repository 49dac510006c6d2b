//! Chosen rows on a device, copied as the widest words that divide a row.

use lathe_device::{Arg, Extent, Symbol, When};
use lathe_numerics::DType;

use crate::cuda::{Cost, Launches, Source, Stage, word};
use crate::error::{KernelError, at_least};

const NAME: &str = "gather_rows";
const TEXT: &str = include_str!("kernel.cu");
const THREADS: u32 = 128;

/// `out[r] = x[rows[r]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Columns.
    pub cols: usize,
    /// Of both sides.
    pub dtype: DType,
}

/// Inputs x `D[t, cols]`, rows `i32[r]`; output `D[r, cols]`.
///
/// # Errors
/// `Shape` for empty rows.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    at_least(NAME, "cols", 1, p.cols)?;
    let bytes = (p.cols * p.dtype.size()) as u64;
    let (word, size) = word(bytes);
    let words = bytes / size;
    let source = Source::new(
        format!("{NAME}-{bytes}"),
        TEXT,
        vec![("WORD", word.into()), ("WORDS", words.to_string()), ("THREADS", THREADS.to_string())],
    );
    let blocks = words.div_ceil(u64::from(THREADS)) as u32;
    let stage = Stage {
        source,
        entry: NAME,
        when: When::Always,
        grid: [Extent::per(Symbol::Rows, 1, 1), Extent::fixed(blocks), Extent::fixed(1)],
        block: THREADS,
        shared_bytes: 0,
        dependent: true,
        args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0)],
        cost: Cost { fixed_bytes: 0, row_bytes: 2 * bytes + 4, row_flops: 0 },
    };
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_divide_the_row() {
        let of = |cols, dtype| {
            let stage = launches(&Problem { cols, dtype }).unwrap().stages.remove(0);
            (stage.source.defines[1].1.clone(), stage.source.defines[2].1.clone(), stage.grid[1].clone())
        };
        assert_eq!(of(4096, DType::BF16), ("uint4".into(), "512".into(), Extent::fixed(4)));
        assert_eq!(of(611, DType::BF16), ("lathe::u16".into(), "611".into(), Extent::fixed(5)));
        assert_eq!(of(611, DType::F32), ("lathe::u32".into(), "611".into(), Extent::fixed(5)));
        assert!(launches(&Problem { cols: 0, dtype: DType::F32 }).is_err());
    }
}
