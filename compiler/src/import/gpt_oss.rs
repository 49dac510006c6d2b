//! `GptOssForCausalLM` (arXiv 2508.10925): biases everywhere, attention sinks, every other layer with a sliding window,
//! experts with a clamped SwiGLU. Weights in bf16 or wider: published MXFP4 tensors are refused by the config.

use lathe_ir::ops::Over;
use lathe_ir::weight::RowPick;
use lathe_numerics::Gating;
use lathe_numerics::gating::{SWIGLU_ALPHA, SWIGLU_LIMIT};

use super::decoder::{Decoder, Mlp};
use super::experts::{Expert, Experts, counts};
use super::llama::{self, Biases};
use super::param::{Param, Projection};
use super::shape::windows;
use super::{Importer, TensorSpec};
use crate::checkpoint::Config;
use crate::error::{CompileError, Result};

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "GptOssForCausalLM",
    families: "gpt-oss 20B, 120B, in bf16",
    features: "experts, attention sinks, alternating sliding window, biases, clamped SwiGLU",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    for (key, only) in [("swiglu_limit", SWIGLU_LIMIT), ("swiglu_alpha", SWIGLU_ALPHA)] {
        let value = config.number(key, f64::from(only))?;
        if value as f32 != only {
            return Err(CompileError::unsupported(format!("{key} {value}"), format!("supported: {only}")));
        }
    }
    let bias = config.flag("attention_bias", true)?;
    let mut decoder = llama::decoder(config, Biases { qkv: bias, o: bias, mlp: false })?;
    let choices =
        if config.get("experts_per_token").is_some() { "experts_per_token" } else { "num_experts_per_tok" };
    let (experts, choices) = counts(config, "num_local_experts", choices)?;
    let (shape, intermediate) = (decoder.shape, config.size("intermediate_size")?);
    let window = config.opt_size("sliding_window")?;
    let windows = windows(config, shape.layers, window, |at| window.is_some() && at.is_multiple_of(2))?;
    for (at, (layer, window)) in decoder.layers.iter_mut().zip(windows).enumerate() {
        let prefix = format!("model.layers.{at}");
        layer.attention.window = window;
        layer.attention.sinks = Some(Param::vector(format!("{prefix}.self_attn.sinks"), shape.heads));
        layer.mlp = Mlp::Experts(Experts {
            router: Projection::new(&format!("{prefix}.mlp.router"), experts, shape.hidden, true),
            experts: stacked(&format!("{prefix}.mlp.experts"), experts, shape.hidden, intermediate),
            choices,
            over: Over::Chosen,
            act: Gating::ClampedSwiglu,
            shared: None,
        });
    }
    Ok(decoder)
}

/// Experts of tensors that hold all of them: `gate_up_proj[experts, hidden, 2 * intermediate]`, gate and up by turns of one
/// column, `down_proj[experts, intermediate, hidden]`, and the biases of both.
fn stacked(prefix: &str, experts: usize, hidden: usize, intermediate: usize) -> Vec<Expert> {
    let stored = |name: &str, shape: &[usize]| {
        let name = format!("{prefix}.{name}");
        Param::Stored(TensorSpec { name, shape: shape.to_vec(), is_norm: false })
    };
    let gate_up = stored("gate_up_proj", &[experts, hidden, 2 * intermediate]);
    let gate_up_bias = stored("gate_up_proj_bias", &[experts, 2 * intermediate]);
    let down = stored("down_proj", &[experts, intermediate, hidden]);
    let down_bias = stored("down_proj_bias", &[experts, hidden]);
    // One expert's rows, with features down instead of across; a bias becomes a column.
    let of = |all: &Param, e: usize, rows: usize| {
        Param::Transposed(Box::new(all.part(format!("{e}"), RowPick::run(e * rows, rows))))
    };
    let turn = |pair: &Param, name: &str, start: usize| {
        pair.part(name, RowPick { start, len: 1, stride: 2, count: intermediate })
    };
    let expert = |e: usize| {
        let (weight, bias) = (of(&gate_up, e, hidden), of(&gate_up_bias, e, 1));
        let half = |name: &str, start: usize| Projection {
            weight: turn(&weight, name, start),
            bias: Some(turn(&bias, name, start)),
        };
        Expert {
            gate: half("gate", 0),
            up: half("up", 1),
            down: Projection { weight: of(&down, e, intermediate), bias: Some(of(&down_bias, e, 1)) },
        }
    };
    (0..experts).map(expert).collect()
}
