//! The bounds that fix a plan's memory, from flags and model.

use lathe_numerics::DType;
use lathe_plan::schema::{Limits, Target};

use crate::error::{CompileError, Result};
use crate::options::Options;
use crate::targets;

/// Context that a plan is made for unless a flag asks for more: every position costs KV memory at admission.
const DEFAULT_SEQ_LEN: u32 = 8192;
/// KV positions unless a flag says otherwise.
const DEFAULT_KV_TOKENS: u64 = 65_536;
/// Rows of logits that a step of few sequences may still ask for: prompt logprobs and verification want several.
const MIN_SAMPLE_ROWS: u32 = 64;
/// Bounds of the flags: far above any machine, low enough that no product of two overflows.
const MAX_BATCH: u32 = 1 << 16;
const MAX_NUM_TOKENS: u32 = 1 << 20;

/// Limits of a plan for a model that was made for `max_position` positions.
///
/// # Errors
/// A flag that cannot hold, alone, with another or with the model.
pub fn resolve(options: &Options, max_position: u32) -> Result<Limits> {
    let in_range = |flag: &str, value: u32, most: u32| {
        if (1..=most).contains(&value) {
            return Ok(value);
        }
        Err(CompileError::usage(format!("{flag} {value}"), format!("must be from 1 to {most}")))
    };
    let max_batch = in_range("--max-batch", options.max_batch, MAX_BATCH)?;
    let max_num_tokens = in_range("--max-num-tokens", options.max_num_tokens, MAX_NUM_TOKENS)?;
    if max_num_tokens < max_batch {
        return Err(CompileError::usage(
            format!("--max-num-tokens {max_num_tokens}"),
            format!("is below --max-batch {max_batch}: a step must hold one token of every sequence"),
        )
        .remedy(format!("pass --max-num-tokens {max_batch} or more, or a smaller --max-batch")));
    }
    let max_seq_len = options.max_seq_len.unwrap_or(max_position.min(DEFAULT_SEQ_LEN));
    if max_seq_len == 0 || max_seq_len > max_position {
        return Err(CompileError::usage(
            format!("--max-seq-len {max_seq_len}"),
            format!("must be from 1 to {max_position}, the model's max_position_embeddings"),
        ));
    }
    let default = (u64::from(max_batch) * u64::from(max_seq_len)).min(DEFAULT_KV_TOKENS);
    let kv_tokens = options.kv_tokens.unwrap_or(default.max(u64::from(max_seq_len)));
    if kv_tokens < u64::from(max_seq_len) {
        return Err(CompileError::usage(
            format!("--kv-tokens {kv_tokens}"),
            format!("is below --max-seq-len {max_seq_len}: one longest sequence must fit"),
        )
        .remedy(format!("pass --kv-tokens {max_seq_len} or more, or a smaller --max-seq-len")));
    }
    if kv_tokens > 1 << 40 {
        return Err(CompileError::usage(format!("--kv-tokens {kv_tokens}"), "must be at most 2^40"));
    }
    Ok(Limits {
        max_batch,
        max_num_tokens,
        max_sample_rows: max_batch.max(MIN_SAMPLE_ROWS).min(max_num_tokens),
        max_seq_len,
        kv_tokens,
    })
}

/// The flags that reproduce a plan from its checkpoint, every default spelt out, in one order.
pub fn flags(
    targets: &[Target],
    limits: &Limits,
    dtype: DType,
    kv_dtype: DType,
    synthetic_seed: Option<u64>,
    generation_defaults: bool,
) -> Vec<String> {
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    if let Some(seed) = synthetic_seed {
        flag("--synthetic-weights", seed.to_string());
    }
    flag("--target", targets.iter().map(targets::name).collect::<Vec<_>>().join(","));
    flag("--dtype", dtype.to_string());
    flag("--kv-cache", kv_dtype.to_string());
    flag("--max-batch", limits.max_batch.to_string());
    flag("--max-seq-len", limits.max_seq_len.to_string());
    flag("--max-num-tokens", limits.max_num_tokens.to_string());
    flag("--kv-tokens", limits.kv_tokens.to_string());
    if !generation_defaults {
        flag("--generation-config", "none".into());
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_model() {
        let of = |max_position| {
            let l = resolve(&Options::default(), max_position).unwrap();
            (l.max_seq_len, l.kv_tokens, l.max_sample_rows)
        };
        assert_eq!(of(512), (512, 32 * 512, 64));
        assert_eq!(of(131_072), (8192, 65_536, 64));
        let long = Options { max_seq_len: Some(131_072), max_batch: 100, ..Options::default() };
        let l = resolve(&long, 131_072).unwrap();
        assert_eq!((l.kv_tokens, l.max_sample_rows), (131_072, 100));
        let few = Options { max_num_tokens: 8, max_batch: 4, ..Options::default() };
        assert_eq!(resolve(&few, 512).unwrap().max_sample_rows, 8);
    }

    #[test]
    fn a_flag_that_cannot_hold_is_named() {
        let base = Options::default();
        let rows = [
            (Options { max_batch: 0, ..base.clone() }, "--max-batch 0: must be from 1 to 65536"),
            (
                Options { max_num_tokens: 16, ..base.clone() },
                "--max-num-tokens 16: is below --max-batch 32: a step must hold one token of every sequence",
            ),
            (
                Options { max_num_tokens: 2_000_000, ..base.clone() },
                "--max-num-tokens 2000000: must be from 1 to 1048576",
            ),
            (
                Options { max_seq_len: Some(4096), ..base.clone() },
                "--max-seq-len 4096: must be from 1 to 2048, the model's max_position_embeddings",
            ),
            (
                Options { kv_tokens: Some(100), ..base.clone() },
                "--kv-tokens 100: is below --max-seq-len 2048: one longest sequence must fit",
            ),
            (
                Options { kv_tokens: Some(u64::MAX), ..base },
                "--kv-tokens 18446744073709551615: must be at most 2^40",
            ),
        ];
        for (options, want) in rows {
            let error = resolve(&options, 2048).unwrap_err();
            assert!(matches!(error, CompileError::Usage { .. }));
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn flags_reproduce_the_limits() {
        let limits = resolve(&Options::default(), 2048).unwrap();
        let all = flags(&[Target::Cpu], &limits, DType::BF16, DType::F16, Some(7), false).join(" ");
        assert_eq!(
            all,
            "--synthetic-weights 7 --target cpu --dtype bf16 --kv-cache f16 --max-batch 32 --max-seq-len 2048 \
             --max-num-tokens 2048 --kv-tokens 65536 --generation-config none"
        );
    }
}
