//! Tiny checkpoints in Hugging Face form, written to a temporary directory.

// Every test binary compiles this file and uses a part of it.
#![allow(dead_code)]

pub mod architectures;

use std::path::{Path, PathBuf};

use lathe_compiler::checkpoint::{
    Checkpoint, Config, HubCache, SyntheticSource, SyntheticTensor, TensorInfo, TensorSource, Tokenizer,
};
use lathe_compiler::error::Result;
use lathe_compiler::import::model_of;
use lathe_numerics::DType;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

/// A two-layer Llama's config; `change` overrides fields, null removes them.
pub fn config(change: Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config.as_object_mut().unwrap().retain(|_, v| !v.is_null());
    config
}

/// One tensor as it goes into a file.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Stored {
    pub fn zeros(name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        Stored { name: name.into(), dtype, shape: shape.to_vec(), bytes }
    }
}

/// The tensors that a config asks for, with random weights.
pub fn tensors(config: &Value, dtype: DType) -> Vec<Stored> {
    let parsed = Config::parse(config.to_string().into_bytes()).unwrap();
    let specs = model_of(&parsed).unwrap().tensors();
    let entries = specs.iter().map(|s| SyntheticTensor {
        name: s.name.clone(),
        info: TensorInfo { dtype, shape: s.shape.clone() },
        ones: s.is_norm,
    });
    let source = SyntheticSource::new(1, entries.collect());
    let stored = match dtype {
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let read = |name: &String, shape: &Vec<usize>| {
        let info = source.info(name).unwrap();
        let mut bytes = vec![0; info.len() * dtype.size()];
        source.read_rows(name, 0..info.rows(), &mut bytes).unwrap();
        Stored { name: name.clone(), dtype: stored, shape: shape.clone(), bytes }
    };
    specs.iter().map(|s| read(&s.name, &s.shape)).collect()
}

/// A checkpoint directory, gone when dropped.
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// config.json, a tokenizer.json and one safetensors file.
    pub fn new(config: &Value, tensors: &[Stored]) -> Self {
        let dir = Dir(tempfile::tempdir().unwrap());
        dir.write("config.json", &config.to_string());
        dir.write("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#);
        let views = tensors
            .iter()
            .map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        serialize_to_file(views.collect::<Vec<_>>(), None, &dir.path().join("model.safetensors")).unwrap();
        dir
    }

    /// A whole checkpoint of `config` in `dtype`.
    pub fn of(config: &Value, dtype: DType) -> Self {
        Dir::new(config, &tensors(config, dtype))
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    pub fn open(&self) -> Result<Checkpoint> {
        open(&self.path())
    }
}

/// Opens a directory; no hub cache.
pub fn open(dir: &Path) -> Result<Checkpoint> {
    Checkpoint::open(dir.to_str().unwrap(), &HubCache(None), &Tokenizer::Checkpoint)
}
