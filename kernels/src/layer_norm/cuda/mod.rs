//! The layer norm on a device: one block per row, or per group of a row; the row stays in registers between its sums.
//!
//! Both sums take the order of `rms_norm/cuda`. Otherwise the arithmetic of the CPU's norm.

use lathe_device::Arg;

use crate::cuda::Launches;
use crate::error::KernelError;
use crate::rms_norm::cuda::{NormProblem, norm_stage};

/// Inputs x `D[m, h]`, weight, and with `bias` as many biases of the weight's type; output `D[m, h]`.
///
/// # Errors
/// `Unsupported` for dtypes and groups of more than 16,384 elements, `Shape` for empty rows.
pub fn launches(p: &NormProblem, bias: bool) -> Result<Launches, KernelError> {
    const NAME: &str = "layer_norm";
    let mut args: Vec<Arg> = (0..2 + u32::from(bias)).map(Arg::Input).collect();
    args.extend([Arg::Output(0), Arg::F32(p.eps)]);
    let defines = vec![("BIAS", u8::from(bias).to_string())];
    norm_stage(p, (NAME, include_str!("kernel.cu"), defines), NAME, args, 2 * p.dtype.size())
}

#[cfg(test)]
mod tests {
    use lathe_device::Symbol;
    use lathe_numerics::DType;

    use super::*;

    #[test]
    fn a_bias_is_an_argument() {
        let p = NormProblem::rows(Symbol::Tokens, 768, DType::BF16, 1e-5);
        let args = |bias| launches(&p, bias).unwrap().stages[0].args.len();
        assert_eq!((args(false), args(true)), (4, 5));
        assert!(launches(&NormProblem { h: 0, ..p }, true).is_err());
    }
}
