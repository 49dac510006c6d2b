//! Checkpoint directories become graphs and cards, or typed errors.

mod checkpoints;

use checkpoints::{Dir, Stored, config, tensors};
use lathe_compiler::checkpoint::Tokenizer;
use lathe_compiler::error::CompileError;
use lathe_compiler::import::{IMPORTERS, Imported, import, synthetic};
use lathe_compiler::options::Options;
use lathe_ir::WeightExpr;
use lathe_numerics::DType;
use safetensors::Dtype;
use serde_json::{Value, json};

fn imported(change: Value, dtype: DType, options: &Options) -> Imported {
    let config = config(change);
    let checkpoint = Dir::of(&config, dtype).open().unwrap();
    let imported = import(&checkpoint, options).unwrap();
    lathe_ir::verify(&imported.graph).unwrap();
    let text = imported.graph.to_string();
    assert_eq!(lathe_ir::parse(&text).unwrap().to_string(), text);
    imported
}

fn lines(imported: &Imported, part: &str) -> usize {
    imported.graph.to_string().lines().filter(|l| l.contains(part)).count()
}

#[test]
fn every_shape_of_llama_verifies() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    for change in [
        json!({}),
        json!({"num_key_value_heads": null}),
        json!({"num_key_value_heads": 1, "tie_word_embeddings": true}),
        json!({"head_dim": 10, "vocab_size": 51, "intermediate_size": 33, "hidden_size": 23}),
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"rope_scaling": llama3}),
        json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "pretraining_tp": 4, "hidden_act": "swish"}),
        json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "bfloat16"}),
    ] {
        imported(change, DType::BF16, &Options::default());
    }
}

#[test]
fn the_graph_says_what_the_config_says() {
    let plain = imported(json!({}), DType::BF16, &Options::default());
    assert_eq!(lines(&plain, "= linear"), 2 * 7 + 1);
    assert_eq!(lines(&plain, "weight @lm_head.weight"), 1);
    assert_eq!(lines(&plain, "cache @kv : bf16[layers=2, kv_heads=2, head_dim=6]"), 1, "{}", plain.graph);
    let tied = imported(json!({"tie_word_embeddings": true}), DType::BF16, &Options::default());
    assert_eq!(lines(&tied, "lm_head"), 0);
    assert_eq!(lines(&tied, "@model.embed_tokens.weight"), 3, "{}", tied.graph);
    let biased = imported(json!({"attention_bias": true}), DType::BF16, &Options::default());
    assert_eq!(lines(&biased, "weight @model.layers.0.self_attn.o_proj.bias"), 1);
    assert_eq!(lines(&biased, "mlp.up_proj.bias"), 0);
}

#[test]
fn dtypes_follow_the_checkpoint_unless_told() {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let i = imported(json!({}), dtype, &Options::default());
        assert_eq!((i.dtype, i.kv_dtype), (dtype, dtype));
        assert!(!i.graph.weights().any(|(_, w)| matches!(w.expr, WeightExpr::Cast(..))));
    }
    let options = Options { dtype: Some(DType::F32), kv_dtype: Some(DType::F16), ..Options::default() };
    let i = imported(json!({}), DType::BF16, &options);
    assert_eq!((i.dtype, i.kv_dtype), (DType::F32, DType::F16));
    let casts = i.graph.weights().filter(|(_, w)| matches!(w.expr, WeightExpr::Cast(_, DType::F32))).count();
    assert_eq!(casts, 2 * 9 + 3);
}

#[test]
fn a_minority_of_another_type_is_cast() {
    let config = config(json!({}));
    let mut all = tensors(&config, DType::BF16);
    let norm = all.iter_mut().find(|t| t.name == "model.norm.weight").unwrap();
    *norm = Stored::zeros("model.norm.weight", Dtype::F32, &norm.shape);
    let i = import(&Dir::new(&config, &all).open().unwrap(), &Options::default()).unwrap();
    assert_eq!(i.dtype, DType::BF16);
    assert_eq!(lines(&i, "weight @model.norm.weight.bf16"), 1, "{}", i.graph);
}

#[test]
fn the_card_is_complete_and_names_no_folder() {
    let config = config(json!({"eos_token_id": [2, 3, 60]}));
    let (a, b) = (Dir::of(&config, DType::BF16), Dir::of(&config, DType::BF16));
    for dir in [&a, &b] {
        dir.write("generation_config.json", r#"{"temperature": 0.6, "top_p": 0.9}"#);
        dir.write("chat_template.jinja", "{{ messages }}");
    }
    let [one, two] = [&a, &b].map(|d| import(&d.open().unwrap(), &Options::default()).unwrap());
    assert_eq!((&one.card, &one.text), (&two.card, &two.text));
    let card = &one.card;
    let matrices = 2 * (24 * 24 * 2 + 12 * 24 * 2 + 3 * 24 * 40) + 2 * 50 * 24;
    assert_eq!(card.n_parameters, matrices + 5 * 24);
    assert_eq!(card.name, "llama-12k");
    assert_eq!((card.bos_id, card.eos_ids.as_slice()), (Some(1), &[2, 3][..]));
    assert_eq!((card.generation.temperature, card.generation.top_p), (Some(0.6), Some(0.9)));
    assert_eq!((card.vocab_size, card.max_position, card.limits.max_seq_len), (50, 256, 256));
    assert_eq!(
        card.flags.join(" "),
        "--target cpu --dtype bf16 --kv-cache bf16 --max-batch 32 --max-seq-len 256 --max-num-tokens 2048 --kv-tokens 8192"
    );
    assert_eq!(one.text.chat_templates, [("default".to_owned(), "{{ messages }}".to_owned())]);
    assert!(one.tokenizer_json.is_some());
    let none = Options { generation_defaults: false, ..Options::default() };
    let bare = import(&a.open().unwrap(), &none).unwrap();
    assert_eq!((bare.card.generation.temperature, bare.card.eos_ids), (None, vec![2, 3]));
}

#[test]
fn the_source_hash_sees_config_and_tensors() {
    let hash = |change: Value, dtype| Dir::of(&config(change), dtype).open().unwrap().source_hash();
    let base = hash(json!({}), DType::BF16);
    assert_eq!(base, hash(json!({}), DType::BF16));
    assert_ne!(base, hash(json!({}), DType::F16));
    assert_ne!(base, hash(json!({"rope_theta": 5.0}), DType::BF16));
}

#[test]
fn a_synthetic_model_needs_a_config_only() {
    let dir = Dir::of(&config(json!({"torch_dtype": null})), DType::BF16);
    let path = dir.path().join("config.json");
    let checkpoint = synthetic(&path, 7, &Tokenizer::None).unwrap();
    let i = import(&checkpoint, &Options::default()).unwrap();
    lathe_ir::verify(&i.graph).unwrap();
    assert_eq!((i.dtype, &i.tokenizer_json), (DType::BF16, &None));
    assert_eq!(i.card.flags[..2], ["--synthetic-weights", "7"]);
    assert_ne!(checkpoint.source_hash(), synthetic(&path, 8, &Tokenizer::None).unwrap().source_hash());
    let with_text = synthetic(&path, 7, &Tokenizer::Dir(dir.path())).unwrap();
    assert!(with_text.tokenizer_json.is_some());
}

/// Every refusal of an importer: the change to a good config, and the message.
#[test]
fn what_cannot_be_imported_is_named() {
    let base = config(json!({}));
    let good = tensors(&base, DType::BF16);
    let known: Vec<_> = IMPORTERS.iter().map(|i| i.architecture).collect();
    let unknown = format!("unsupported architecture MambaForCausalLM: supported: {}", known.join(", "));
    let rows = [
        (json!({"architectures": ["MambaForCausalLM"]}), unknown.as_str()),
        (
            json!({"architectures": null}),
            "config.json: architectures: is missing: it names the model's architecture",
        ),
        (json!({"hidden_act": "gelu"}), "unsupported hidden_act gelu: supported: silu"),
        (
            json!({"sliding_window": 4096}),
            "unsupported sliding_window 4096: supported in this architecture: full attention",
        ),
        (
            json!({"rope_scaling": {"rope_type": "mrope"}}),
            "unsupported rope_type mrope: supported: default, linear, dynamic, llama3, yarn, longrope",
        ),
        (
            json!({"partial_rotary_factor": 0.5, "head_dim": 6}),
            "unsupported partial_rotary_factor 0.5 of head_dim 6: supported: an even number of rotated elements from 2 to 6, as rotary embedding turns pairs",
        ),
        (
            json!({"head_dim": 5}),
            "unsupported head_dim 5: supported: an even number of rotated elements from 2 to 5, as rotary embedding turns pairs",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "config.json: num_key_value_heads: is 3, which does not divide num_attention_heads 4",
        ),
        (
            json!({"num_attention_heads": 5, "num_key_value_heads": 5}),
            "config.json: num_attention_heads: is 5, which does not divide hidden_size 24, and head_dim is missing",
        ),
        (json!({"rms_norm_eps": -1.0}), "config.json: rms_norm_eps: is -1, expected 0 or more"),
        (
            json!({"vocab_size": 51}),
            "model.embed_tokens.weight: has shape [50, 24], and config.json asks for [51, 24]",
        ),
        (
            json!({"num_hidden_layers": 3}),
            "model.layers.2.self_attn.q_proj.weight: is absent from the checkpoint, as are 8 other tensors",
        ),
    ];
    for (change, want) in rows {
        let checkpoint = Dir::new(&config(change), &good).open().unwrap();
        assert_eq!(import(&checkpoint, &Options::default()).unwrap_err().to_string(), want);
    }
    let quantized = config(json!({"quantization_config": {"quant_method": "fp8"}}));
    let error = Dir::new(&quantized, &good).open().err().unwrap();
    assert!(matches!(error, CompileError::Unsupported { .. }), "{error}");
    assert!(error.to_string().starts_with("unsupported quantization_config with quant_method fp8"));
}

#[test]
fn a_needed_tensor_of_an_unreadable_type_is_named() {
    let config = config(json!({}));
    let mut all = tensors(&config, DType::BF16);
    all.retain(|t| t.name != "lm_head.weight");
    all.push(Stored::zeros("lm_head.weight", Dtype::F8_E4M3, &[50, 24]));
    let error = import(&Dir::new(&config, &all).open().unwrap(), &Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unsupported dtype F8_E4M3 of tensor lm_head.weight: supported: F32, F16, BF16"
    );
}

#[test]
fn tensors_that_no_graph_needs_do_no_harm() {
    let config = config(json!({"tie_word_embeddings": true}));
    let mut all = tensors(&config, DType::BF16);
    all.push(Stored::zeros("lm_head.weight", Dtype::BF16, &[50, 24]));
    all.push(Stored::zeros("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[3]));
    all.push(Stored::zeros("position_ids", Dtype::I64, &[1, 8]));
    let i = import(&Dir::new(&config, &all).open().unwrap(), &Options::default()).unwrap();
    assert_eq!(lines(&i, "lm_head"), 0);
}

#[test]
fn a_plan_without_text_is_asked_for_by_name() {
    let dir = Dir::of(&config(json!({})), DType::BF16);
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(dir.open().is_err_and(|e| e.to_string().contains("tokenizer.json: is missing")));
    let cache = lathe_compiler::checkpoint::HubCache(None);
    let open = lathe_compiler::checkpoint::Checkpoint::open;
    let checkpoint = open(dir.path().to_str().unwrap(), &cache, &Tokenizer::None).unwrap();
    assert_eq!(checkpoint.tokenizer_json, None);
}
