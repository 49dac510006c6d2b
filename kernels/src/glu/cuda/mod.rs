//! The gated product on a device, with the CPU's bits: an element per lane, vectors of up to 16 bytes.

use lathe_device::{Arg, Symbol};
use lathe_numerics::{Activation, DType};

use crate::cuda::{Cost, Launches, Source, Stage, activation, element};
use crate::error::{KernelError, at_least};
use crate::view::float;

const NAME: &str = "glu";
const TEXT: &str = include_str!("kernel.cu");
const THREADS: usize = 256;

/// `out = act(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The gate's function.
    pub act: Activation,
    /// Rows.
    pub m: Symbol,
    /// Columns.
    pub cols: usize,
    /// Elements between rows of gate and of up.
    pub stride: usize,
    /// Of gate and up.
    pub dtype: DType,
    /// Of the result.
    pub out: DType,
}

/// Inputs gate and up `D[m, cols]` at `stride`, both aligned to 16 bytes; output `[m, cols]`.
///
/// # Errors
/// `Unsupported` for dtypes, `Shape` for empty rows and a stride below `cols`.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    float(NAME, p.dtype)?;
    float(NAME, p.out)?;
    at_least(NAME, "cols", 1, p.cols)?;
    at_least(NAME, "stride", p.cols, p.stride)?;
    let widest = 16 / p.dtype.size().max(p.out.size());
    let vec = widest.min(1 << (p.cols | p.stride).trailing_zeros().min(3));
    let source = Source::new(
        format!("{NAME}-{}-{}-{}-{}", p.act, p.dtype, p.out, p.cols),
        TEXT,
        vec![
            ("ACTIVATION", activation(p.act).into()),
            ("IN", element(p.dtype).into()),
            ("OUT", element(p.out).into()),
            ("COLS", p.cols.to_string()),
            ("STRIDE", p.stride.to_string()),
            ("THREADS", THREADS.to_string()),
            ("VEC", vec.to_string()),
        ],
    );
    let cols = p.cols as u64;
    let args = vec![Arg::Input(0), Arg::Input(1), Arg::Output(0)];
    let row_bytes = cols * (2 * p.dtype.size() + p.out.size()) as u64;
    let cost = Cost { fixed_bytes: 0, row_bytes, row_flops: 20 * cols };
    let stage = Stage::over_columns((source, NAME), (p.m, p.cols, vec), THREADS, args, cost);
    Ok(Launches { stages: vec![stage], workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_divide_columns_and_stride() {
        let vec = |cols, stride, dtype, out| {
            let p = Problem { act: Activation::Silu, m: Symbol::Tokens, cols, stride, dtype, out };
            launches(&p).unwrap().stages[0].source.defines.last().unwrap().1.clone()
        };
        assert_eq!(vec(11008, 22016, DType::BF16, DType::BF16), "8");
        assert_eq!(vec(11008, 22016, DType::F32, DType::BF16), "4");
        assert_eq!(vec(688, 690, DType::BF16, DType::BF16), "2");
        assert_eq!(vec(611, 1222, DType::F16, DType::F16), "1");
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let (act, dtype) = (Activation::Gelu, DType::BF16);
        let p = Problem { act, m: Symbol::Rows, cols: 8, stride: 8, dtype, out: dtype };
        assert!(launches(&p).is_ok());
        assert!(launches(&Problem { cols: 0, ..p }).is_err());
        assert!(launches(&Problem { stride: 7, ..p }).is_err());
        assert!(launches(&Problem { out: DType::I32, ..p }).is_err());
    }
}
