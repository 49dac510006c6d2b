//! Two small shapes of every architecture of the registry.

use serde_json::{Value, json};

use super::config;

/// `base` with the fields of `change`; null removes.
pub fn with(base: &Value, change: &Value) -> Value {
    let mut out = base.clone();
    for (key, value) in change.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    out.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    out
}

/// A small config of every architecture, and a change that makes another shape of it.
pub fn shapes() -> Vec<(Value, Value)> {
    let of = |architecture: &str, change: Value| {
        with(&config(json!({"architectures": [architecture], "model_type": null})), &change)
    };
    let longrope = json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]});
    let gemma = json!({"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 16});
    let gemma3 = of("Gemma3ForCausalLM", with(&gemma, &json!({"sliding_window_pattern": 2})));
    // The kernels take experts of whole panels of features.
    let qwen =
        json!({"hidden_size": 32, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16});
    let mut both = of("Gemma3ForConditionalGeneration", json!({}));
    both["text_config"] = gemma3.clone();
    let mut both_changed = gemma3.clone();
    both_changed["head_dim"] = json!(10);
    vec![
        (of("LlamaForCausalLM", json!({})), json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})),
        (
            of("MistralForCausalLM", json!({"sliding_window": 32})),
            json!({"sliding_window": null, "head_dim": 10}),
        ),
        (
            of(
                "Qwen2ForCausalLM",
                json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1}),
            ),
            json!({"use_sliding_window": false, "max_window_layers": 0, "tie_word_embeddings": true}),
        ),
        (of("Qwen3ForCausalLM", json!({"head_dim": 12})), json!({"attention_bias": true})),
        (
            of("Phi3ForCausalLM", json!({"rope_scaling": longrope, "head_dim": 4})),
            json!({"rope_scaling": null, "partial_rotary_factor": 0.5, "sliding_window": 20}),
        ),
        (
            of("GraniteForCausalLM", json!({"embedding_multiplier": 12, "logits_scaling": 8.0})),
            json!({"residual_multiplier": 0.2, "attention_multiplier": 0.1, "mlp_bias": true}),
        ),
        (of("Olmo2ForCausalLM", json!({})), json!({"num_key_value_heads": 4})),
        (
            of("Gemma2ForCausalLM", gemma.clone()),
            json!({"attn_logit_softcapping": 50.0, "layer_types": ["full_attention", "sliding_attention"]}),
        ),
        (
            gemma3.clone(),
            json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 5e3}),
        ),
        (both, json!({"text_config": both_changed})),
        (
            of("GPT2LMHeadModel", json!({"n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 64})),
            json!({"n_inner": 40, "activation_function": "gelu", "n_head": 2}),
        ),
        (
            of(
                "GPTNeoXForCausalLM",
                json!({"num_attention_heads": 3, "num_key_value_heads": null, "hidden_act": "gelu"}),
            ),
            json!({"use_parallel_residual": false, "rotary_pct": 1.0, "attention_bias": false}),
        ),
        (
            of("StableLmForCausalLM", json!({"head_dim": 8, "num_key_value_heads": 4})),
            json!({"use_parallel_residual": true, "qk_layernorm": true, "use_qkv_bias": true, "num_key_value_heads": 2}),
        ),
        (
            of("FalconForCausalLM", json!({"new_decoder_architecture": true, "num_kv_heads": 2})),
            json!({"new_decoder_architecture": false, "parallel_attn": false, "bias": true, "multi_query": false}),
        ),
        (
            of(
                "MixtralForCausalLM",
                json!({"hidden_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2}),
            ),
            json!({"sliding_window": 16, "num_experts_per_tok": 1}),
        ),
        (
            of("Qwen2MoeForCausalLM", with(&qwen, &json!({"shared_expert_intermediate_size": 20}))),
            json!({"decoder_sparse_step": 2, "norm_topk_prob": true, "qkv_bias": false}),
        ),
        (of("Qwen3MoeForCausalLM", qwen), json!({"mlp_only_layers": [0], "head_dim": 12})),
        (
            of(
                "GptOssForCausalLM",
                json!({
                    "hidden_size": 32, "num_local_experts": 3, "num_experts_per_tok": 2,
                    "sliding_window": 16, "swiglu_limit": 7.0,
                }),
            ),
            json!({"layer_types": ["full_attention", "sliding_attention"], "attention_bias": false}),
        ),
    ]
}
