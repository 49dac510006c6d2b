//! `Qwen2MoeForCausalLM` (arXiv 2407.10671) and `Qwen3MoeForCausalLM` (arXiv 2505.09388). Qwen2: biases of queries, keys and
//! values, an expert that all rows share behind a gate. Qwen3: norms of queries and keys instead. Some layers may have a
//! plain MLP.

use lathe_ir::ops::Over;

use super::decoder::{Decoder, Layer, Mlp};
use super::experts::{Experts, Names};
use super::{Importer, Model};
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// The registry's entry of Qwen2-MoE.
pub const QWEN2_MOE: Importer = Importer { architecture: "Qwen2MoeForCausalLM", read: qwen2 };
/// The registry's entry of Qwen3-MoE.
pub const QWEN3_MOE: Importer = Importer { architecture: "Qwen3MoeForCausalLM", read: qwen3 };

const NAMES: Names =
    Names { router: "mlp.gate", expert: ("mlp.experts", ["gate_proj", "up_proj", "down_proj"]) };

fn qwen2(config: &Config) -> Result<Box<dyn Model>> {
    let decoder = Decoder::read(config)?;
    let shared = Some(config.size("shared_expert_intermediate_size")?);
    let layers = layers(config, &decoder, shared)?;
    Ok(Box::new(Decoder { layers, qkv_bias: config.flag("qkv_bias", true)?, o_bias: false, ..decoder }))
}

fn qwen3(config: &Config) -> Result<Box<dyn Model>> {
    let decoder = Decoder::read(config)?;
    let layers = layers(config, &decoder, None)?;
    Ok(Box::new(Decoder { layers, qk_norm: true, ..decoder }))
}

fn layers(config: &Config, decoder: &Decoder, shared: Option<usize>) -> Result<Vec<Layer>> {
    if config.flag("use_sliding_window", false)? {
        return Err(CompileError::unsupported("use_sliding_window", "supported: full attention"));
    }
    let (experts, choices) = Experts::counts(config, "num_experts", "num_experts_per_tok")?;
    let over = if config.flag("norm_topk_prob", false)? { Over::Chosen } else { Over::All };
    let intermediate = config.size("moe_intermediate_size")?;
    let sparse = Mlp::Experts(Experts { experts, choices, intermediate, over, shared, names: &NAMES });
    let step = config.opt_size("decoder_sparse_step")?.unwrap_or(1).max(1);
    let plain = config.token_ids("mlp_only_layers")?.unwrap_or_default();
    let layer = |(at, layer): (usize, &Layer)| {
        let is_sparse = !plain.contains(&(at as u32)) && (at + 1).is_multiple_of(step);
        if is_sparse { Layer { mlp: sparse.clone(), ..layer.clone() } } else { layer.clone() }
    };
    Ok(decoder.layers.iter().enumerate().map(layer).collect())
}
