//! Every architecture of the registry: two shapes of each become verified graphs, what a graph cannot express is named, and
//! the README's table says what the registry says.

mod checkpoints;

use checkpoints::{Dir, Stored, config, tensors};
use lathe_compiler::import::{IMPORTERS, Imported, import};
use lathe_compiler::options::Options;
use lathe_numerics::DType;
use serde_json::{Value, json};

/// `base` with the fields of `change`; null removes.
fn with(base: &Value, change: &Value) -> Value {
    let mut out = base.clone();
    for (key, value) in change.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    out.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    out
}

/// A small config of every architecture, and a change that makes another shape of it.
fn shapes() -> Vec<(Value, Value)> {
    let of = |architecture: &str, change: Value| {
        with(&config(json!({"architectures": [architecture], "model_type": null})), &change)
    };
    let longrope = json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]});
    let gemma = json!({"head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 16});
    let gemma3 = of("Gemma3ForCausalLM", with(&gemma, &json!({"sliding_window_pattern": 2})));
    let qwen = json!({"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16});
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
            of("MixtralForCausalLM", json!({"num_local_experts": 4, "num_experts_per_tok": 2})),
            json!({"sliding_window": 16, "num_experts_per_tok": 1}),
        ),
        (
            of("Qwen2MoeForCausalLM", with(&qwen, &json!({"shared_expert_intermediate_size": 20}))),
            json!({"decoder_sparse_step": 2, "norm_topk_prob": true, "qkv_bias": false}),
        ),
        (of("Qwen3MoeForCausalLM", qwen), json!({"mlp_only_layers": [0], "head_dim": 8})),
        (
            of(
                "GptOssForCausalLM",
                json!({"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 16, "swiglu_limit": 7.0}),
            ),
            json!({"layer_types": ["full_attention", "sliding_attention"], "attention_bias": false}),
        ),
    ]
}

fn imported(config: &Value, stored: &[Stored], dtype: DType) -> Imported {
    let options = Options { dtype: Some(dtype), ..Options::default() };
    let imported = import(&Dir::new(config, stored).open().unwrap(), &options).unwrap();
    lathe_ir::verify(&imported.graph).unwrap();
    imported
}

#[test]
fn every_architecture_has_verified_graphs() {
    let shapes = shapes();
    let covered: Vec<&str> = shapes.iter().map(|(c, _)| c["architectures"][0].as_str().unwrap()).collect();
    let missing: Vec<_> = IMPORTERS.iter().filter(|i| !covered.contains(&i.architecture)).collect();
    assert!(missing.is_empty(), "{:?}", missing.iter().map(|i| i.architecture).collect::<Vec<_>>());
    for (base, change) in &shapes {
        let mut texts = Vec::new();
        for config in [base.clone(), with(base, change)] {
            for dtype in [DType::BF16, DType::F32] {
                let stored = tensors(&config, DType::BF16);
                let text = imported(&config, &stored, dtype).graph.to_string();
                assert_eq!(lathe_ir::parse(&text).unwrap().to_string(), text);
                assert!(stored.iter().all(|t| text.contains(&format!("@{} ", t.name))), "{config}");
                texts.push(text);
            }
        }
        assert!(texts[0] != texts[2] && texts[1] != texts[3], "{change} changes nothing of {base}");
    }
}

#[test]
fn checkpoints_may_use_other_prefixes() {
    for (architecture, renames) in [
        ("GPT2LMHeadModel", &[("transformer.", "")][..]),
        ("GPTNeoXForCausalLM", &[("lm_head.", "embed_out.")]),
        ("Gemma3ForConditionalGeneration", &[("model.", "language_model.model.")]),
        ("Gemma3ForConditionalGeneration", &[("model.", "model.language_model.")]),
    ] {
        let (config, _) = shapes().into_iter().find(|(c, _)| c["architectures"][0] == architecture).unwrap();
        let mut stored = tensors(&config, DType::BF16);
        let want = imported(&config, &stored, DType::BF16).graph.nodes().count();
        for (from, to) in renames {
            let named = |t: &&mut Stored| t.name.starts_with(from);
            let n = stored.iter_mut().filter(named).map(|t| t.name = t.name.replacen(from, to, 1)).count();
            assert!(n > 0, "{architecture} has no tensor of {from}");
        }
        assert_eq!(imported(&config, &stored, DType::BF16).graph.nodes().count(), want);
    }
}

/// The change to the first shape of an architecture, and the message.
#[test]
fn what_a_graph_cannot_express_is_named() {
    let rows = [
        (
            "FalconForCausalLM",
            json!({"alibi": true}),
            "unsupported alibi true: supported: rotary embedding; attention biases by distance (ALiBi) are missing",
        ),
        (
            "FalconForCausalLM",
            json!({"num_ln_in_parallel_attn": 3}),
            "unsupported num_ln_in_parallel_attn 3: supported: 1, and 2 with new_decoder_architecture",
        ),
        (
            "GPT2LMHeadModel",
            json!({"scale_attn_by_inverse_layer_idx": true}),
            "unsupported scale_attn_by_inverse_layer_idx true: supported: the same scale of scores in every layer",
        ),
        (
            "GPT2LMHeadModel",
            json!({"scale_attn_weights": false}),
            "unsupported scale_attn_weights false: supported: scores divided by the root of the head's size",
        ),
        (
            "GPT2LMHeadModel",
            json!({"activation_function": "relu"}),
            "unsupported activation_function relu: supported: gelu_new, gelu_pytorch_tanh, gelu, silu",
        ),
        (
            "Gemma2ForCausalLM",
            json!({"use_bidirectional_attention": true}),
            "unsupported use_bidirectional_attention true: supported: causal attention",
        ),
        (
            "Gemma3ForCausalLM",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "config.json: rope_parameters.sliding_attention: is missing",
        ),
        (
            "Qwen3ForCausalLM",
            json!({"layer_types": ["full_attention", "chunked_attention"]}),
            "unsupported layer type \"chunked_attention\": supported: full_attention, sliding_attention",
        ),
        (
            "Qwen2ForCausalLM",
            json!({"layer_types": ["full_attention"]}),
            "config.json: layer_types: has 1 entries, and num_hidden_layers is 2",
        ),
        (
            "Qwen2ForCausalLM",
            json!({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": false}),
            "config.json: sliding_window: is missing, and layer_types has sliding layers",
        ),
        (
            "Phi3ForCausalLM",
            json!({"head_dim": 6}),
            "config.json: rope_scaling.short_factor: has 2 numbers, and 3 pairs rotate",
        ),
        (
            "GraniteForCausalLM",
            json!({"logits_scaling": 0}),
            "config.json: logits_scaling: is 0, expected a positive number",
        ),
        (
            "MixtralForCausalLM",
            json!({"num_experts_per_tok": 5}),
            "config.json: num_experts_per_tok: is 5, expected 1 to num_local_experts 4",
        ),
        ("GptOssForCausalLM", json!({"swiglu_limit": 5.0}), "unsupported swiglu_limit 5: supported: 7"),
        ("MistralForCausalLM", json!({"hidden_act": "gelu"}), "unsupported hidden_act gelu: supported: silu"),
    ];
    for (architecture, change, want) in rows {
        let (base, _) = shapes().into_iter().find(|(c, _)| c["architectures"][0] == architecture).unwrap();
        let changed = with(&base, &change);
        let dir = Dir::new(&changed, &tensors(&base, DType::BF16));
        // A factor's length is a matter of the table, which is made behind the tensors' check.
        let dir = if change.get("head_dim").is_some() { Dir::of(&changed, DType::BF16) } else { dir };
        let error = import(&dir.open().unwrap(), &Options::default()).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some(want), "{architecture} {change}");
    }
}

#[test]
fn the_readme_lists_the_registry() {
    const BEGIN: &str = "<!-- architectures: BLESS=1 cargo test -p lathe-compiler --test architectures -->\n";
    const END: &str = "<!-- end of architectures -->";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("README.md has no table of architectures");
    let (table, after) = rest.split_once(END).expect("the table of architectures has no end");
    let mut want =
        "| `architectures` of config.json | families | beyond a plain decoder |\n|---|---|---|\n".to_owned();
    for i in IMPORTERS {
        want += &format!("| `{}` | {} | {} |\n", i.architecture, i.families, i.features);
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{want}{END}{after}")).unwrap();
    } else {
        assert_eq!(table, want, "README.md is behind the registry; BLESS=1 writes the table");
    }
}
