//! `Qwen2MoeForCausalLM` (arXiv 2407.10671) and `Qwen3MoeForCausalLM` (arXiv 2505.09388). Qwen2: biases of queries, keys and
//! values, a network that all rows share behind a gate. Qwen3: norms of queries and keys instead. Some layers may have a
//! plain MLP.

use lathe_ir::ops::Over;
use lathe_numerics::{Activation, Gating};

use super::Importer;
use super::decoder::{Decoder, Mlp};
use super::experts::{Expert, Experts, Shared, counts};
use super::llama::{self, Biases, gated_mlp};
use super::param::Projection;
use super::qwen2::set_windows;
use super::qwen3;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry of Qwen2-MoE.
pub const QWEN2_MOE: Importer = Importer {
    architecture: "Qwen2MoeForCausalLM",
    families: "Qwen 1.5 MoE, Qwen 2 MoE",
    features: "experts, shared expert, QKV bias, sliding window by layer",
    read: |config| Ok(Box::new(qwen2(config)?)),
};
/// The registry's entry of Qwen3-MoE.
pub const QWEN3_MOE: Importer = Importer {
    architecture: "Qwen3MoeForCausalLM",
    families: "Qwen 3 MoE (30B-A3B, 235B-A22B)",
    features: "experts, norms of query and key by head, sliding window by layer",
    read: |config| Ok(Box::new(qwen3_moe(config)?)),
};

fn qwen2(config: &Config) -> Result<Decoder> {
    let qkv = config.flag("qkv_bias", true)?;
    let mut decoder = llama::decoder(config, Biases { qkv, ..Biases::default() })?;
    set_windows(config, &mut decoder)?;
    set_experts(config, &mut decoder, Some(config.size("shared_expert_intermediate_size")?))?;
    Ok(decoder)
}

fn qwen3_moe(config: &Config) -> Result<Decoder> {
    let mut decoder = qwen3::read(config)?;
    set_experts(config, &mut decoder, None)?;
    Ok(decoder)
}

fn set_experts(config: &Config, decoder: &mut Decoder, shared: Option<usize>) -> Result<()> {
    let (experts, choices) = counts(config, "num_experts", "num_experts_per_tok")?;
    let over = if config.flag("norm_topk_prob", false)? { Over::Chosen } else { Over::All };
    let intermediate = config.size("moe_intermediate_size")?;
    let step = config.opt_size("decoder_sparse_step")?.unwrap_or(1).max(1);
    let plain = config.token_ids("mlp_only_layers")?.unwrap_or_default();
    let hidden = decoder.shape.hidden;
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        if plain.contains(&(at as u32)) || !(at + 1).is_multiple_of(step) {
            continue;
        }
        let prefix = format!("model.layers.{at}.mlp");
        let names = ["gate_proj", "up_proj", "down_proj"];
        let expert = |e: usize| Expert::new(&format!("{prefix}.experts.{e}"), names, hidden, intermediate);
        let one = |name: &str, rows| Projection::new(&format!("{prefix}.{name}"), rows, hidden, false);
        let shared = shared.map(|width| Shared {
            mlp: Box::new(gated_mlp(
                &format!("{prefix}.shared_expert"),
                hidden,
                width,
                false,
                Activation::Silu,
            )),
            gate: one("shared_expert_gate", 1),
        });
        layer.mlp = Mlp::Experts(Experts {
            router: one("gate", experts),
            experts: (0..experts).map(expert).collect(),
            choices,
            over,
            act: Gating::Plain(Activation::Silu),
            shared,
        });
    }
    Ok(())
}
