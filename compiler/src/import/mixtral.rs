//! `MixtralForCausalLM` (arXiv 2401.04088): Mistral with experts; the chosen ones' weights add up to one.

use lathe_ir::ops::Over;
use lathe_numerics::{Activation, Gating};

use super::Importer;
use super::decoder::{Decoder, Mlp};
use super::experts::{Expert, Experts, counts};
use super::llama::{self, Biases};
use super::mistral::set_windows;
use super::param::Projection;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "MixtralForCausalLM",
    families: "Mixtral 8x7B, 8x22B",
    features: "experts, sliding window",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut decoder = llama::decoder(config, Biases::default())?;
    set_windows(config, &mut decoder)?;
    let (experts, choices) = counts(config, "num_local_experts", "num_experts_per_tok")?;
    let (hidden, intermediate) = (decoder.shape.hidden, config.size("intermediate_size")?);
    for (at, layer) in decoder.layers.iter_mut().enumerate() {
        let prefix = format!("model.layers.{at}.block_sparse_moe");
        let expert = |e: usize| {
            Expert::new(&format!("{prefix}.experts.{e}"), ["w1", "w3", "w2"], hidden, intermediate)
        };
        layer.mlp = Mlp::Experts(Experts {
            router: Projection::new(&format!("{prefix}.gate"), experts, hidden, false),
            experts: (0..experts).map(expert).collect(),
            choices,
            over: Over::Chosen,
            act: Gating::Plain(Activation::Silu),
            shared: None,
        });
    }
    Ok(decoder)
}
