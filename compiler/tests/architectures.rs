//! Every architecture of the registry: two shapes of each become verified graphs, what a graph cannot express is named, and
//! the README's table says what the registry says.

mod checkpoints;

use checkpoints::architectures::{shapes, with};
use checkpoints::{Dir, Stored, tensors};
use lathe_compiler::import::{IMPORTERS, Imported, import};
use lathe_compiler::options::Options;
use lathe_numerics::DType;
use serde_json::{Value, json};

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
