//! `MixtralForCausalLM` (arXiv 2401.04088): a Llama whose MLPs are experts; the chosen ones' weights add up to one.

use lathe_ir::ops::Over;

use super::decoder::{Decoder, Layer, Mlp};
use super::experts::{Experts, Names};
use super::{Importer, Model};
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer { architecture: "MixtralForCausalLM", read };

const NAMES: Names =
    Names { router: "block_sparse_moe.gate", expert: ("block_sparse_moe.experts", ["w1", "w3", "w2"]) };

fn read(config: &Config) -> Result<Box<dyn Model>> {
    let decoder = Decoder::read(config)?;
    let (experts, choices) = Experts::counts(config, "num_local_experts", "num_experts_per_tok")?;
    let mlp = Mlp::Experts(Experts {
        experts,
        choices,
        intermediate: config.size("intermediate_size")?,
        over: Over::Chosen,
        shared: None,
        names: &NAMES,
    });
    let window = config.opt_size("sliding_window")?.unwrap_or(0);
    let layers = vec![Layer { window, mlp }; decoder.layers.len()];
    Ok(Box::new(Decoder { layers, ..decoder }))
}
