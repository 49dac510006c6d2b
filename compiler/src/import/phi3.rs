//! `Phi3ForCausalLM`: Phi-3, 3.5 and 4: Llama with fused QKV and gate/up weights, part of a head rotated, LongRoPE, and a
//! sliding window.

use lathe_ir::weight::RowPick;

use super::Importer;
use super::decoder::{Decoder, Mlp};
use super::llama::{self, Biases};
use super::param::Projection;
use super::shape::windows;
use crate::checkpoint::Config;
use crate::error::Result;

/// The registry's entry.
pub const IMPORTER: Importer = Importer {
    architecture: "Phi3ForCausalLM",
    families: "Phi-3, 3.5 mini and medium, Phi-4, Phi-4 mini",
    features: "fused QKV and gate/up, partial rotary embedding, longrope, sliding window",
    read: |config| Ok(Box::new(read(config)?)),
};

fn read(config: &Config) -> Result<Decoder> {
    let mut decoder = llama::decoder(config, Biases::default())?;
    let (shape, intermediate) = (decoder.shape, config.size("intermediate_size")?);
    let window = config.opt_size("sliding_window")?;
    let windows = windows(config, shape.layers, window, |_| window.is_some())?;
    for (at, (layer, window)) in decoder.layers.iter_mut().zip(windows).enumerate() {
        let prefix = format!("model.layers.{at}");
        let (q, kv) = (shape.q(), shape.kv());
        let fused = Projection::new(&format!("{prefix}.self_attn.qkv_proj"), q + 2 * kv, shape.hidden, false);
        layer.attention.q = fused.part("q", RowPick::run(0, q));
        layer.attention.k = fused.part("k", RowPick::run(q, kv));
        layer.attention.v = fused.part("v", RowPick::run(q + kv, kv));
        layer.attention.window = window;
        let fused =
            Projection::new(&format!("{prefix}.mlp.gate_up_proj"), 2 * intermediate, shape.hidden, false);
        if let Mlp::Gated { gate, up, .. } = &mut layer.mlp {
            *gate = fused.part("gate", RowPick::run(0, intermediate));
            *up = fused.part("up", RowPick::run(intermediate, intermediate));
        }
    }
    Ok(decoder)
}
