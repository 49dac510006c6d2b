//! Checkpoints as they are published: config, tokenizer, generation defaults and tensors.
//!
//! Everything that depends on a file's spelling is settled here; importers see one form.

mod config;
mod generation;
mod locate;
mod rope;
mod safetensors;
mod source;
mod synthetic;
mod text;

use std::path::PathBuf;

use lathe_plan::schema::TextConfig;

pub use config::Config;
pub use generation::Generation;
pub use locate::{HubCache, Located, locate};
pub use rope::{Rope, RopeDefaults, RopeScaling};
pub use safetensors::SafetensorsSource;
pub use source::{TensorInfo, TensorSource};
pub use synthetic::{SyntheticSource, SyntheticTensor};
pub use text::TextSide;

use crate::error::{CompileError, Result};

/// Where the text side comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tokenizer {
    /// The checkpoint's directory; a synthetic model then has none.
    #[default]
    Checkpoint,
    /// Another directory, with its generation_config.json.
    Dir(PathBuf),
    /// Nowhere: the plan takes token ids only.
    None,
}

/// A model before import.
pub struct Checkpoint {
    /// The hub id, if the model was named by one. A directory's name is no property of a checkpoint.
    pub hub_id: Option<String>,
    /// config.json.
    pub config: Config,
    /// generation_config.json, ids completed from config.json.
    pub generation: Generation,
    /// Chat templates and special tokens.
    pub text: TextConfig,
    /// Bytes of tokenizer.json; `None` for a model without text side.
    pub tokenizer_json: Option<Vec<u8>>,
    /// Seed of the weights, for synthetic models.
    pub synthetic_seed: Option<u64>,
    /// The weights.
    pub tensors: Box<dyn TensorSource + Send>,
}

impl Checkpoint {
    /// Opens a directory in Hugging Face form, or a hub id that lies in the local cache. Reads headers, no tensors.
    ///
    /// # Errors
    /// Whatever is missing, malformed or not supported, by name.
    pub fn open(model: &str, cache: &HubCache, tokenizer: &Tokenizer) -> Result<Checkpoint> {
        let Located { dir, hub_id } = locate(model, cache)?;
        let config = Config::read(&dir.join("config.json"))?;
        // A quantized checkpoint fails here, by its config, and not later by a strange tensor.
        config.refuse_quantization()?;
        let text = match tokenizer {
            Tokenizer::Checkpoint => Some(TextSide::read(&dir)?),
            Tokenizer::Dir(other) => Some(TextSide::read(other)?),
            Tokenizer::None => None,
        };
        let generation = Generation::read(
            match tokenizer {
                Tokenizer::Dir(other) => other,
                Tokenizer::Checkpoint | Tokenizer::None => &dir,
            },
            &config,
        )?;
        let tensors = Box::new(SafetensorsSource::open(&dir)?);
        Ok(Checkpoint::assemble(hub_id, config, generation, text, None, tensors))
    }

    /// A model of the config's shape with generated weights. `tensors` come from the config's importer.
    ///
    /// # Errors
    /// A tokenizer directory that is not whole.
    pub fn synthetic(
        config: Config,
        tensors: Vec<SyntheticTensor>,
        seed: u64,
        tokenizer: &Tokenizer,
    ) -> Result<Checkpoint> {
        let (generation, text) = match tokenizer {
            Tokenizer::Dir(dir) => (Generation::read(dir, &config)?, Some(TextSide::read(dir)?)),
            Tokenizer::Checkpoint | Tokenizer::None => (Generation::of_config(&config)?, None),
        };
        let tensors = Box::new(SyntheticSource::new(seed, tensors));
        Ok(Checkpoint::assemble(None, config, generation, text, Some(seed), tensors))
    }

    fn assemble(
        hub_id: Option<String>,
        config: Config,
        generation: Generation,
        text: Option<TextSide>,
        synthetic_seed: Option<u64>,
        tensors: Box<dyn TensorSource + Send>,
    ) -> Checkpoint {
        let (text, tokenizer_json) = match text {
            Some(side) => (side.config, Some(side.tokenizer_json)),
            None => (TextConfig::default(), None),
        };
        Checkpoint { hub_id, config, generation, text, tokenizer_json, synthetic_seed, tensors }
    }

    /// BLAKE3 over config.json and the name, type and shape of every tensor in order of names, so that sharding does
    /// not matter. Tensor bytes are left out: a full read would double the compile time, and every stored weight
    /// carries its own hash in the plan.
    pub fn source_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(self.config.bytes());
        field(&self.synthetic_seed.map_or(vec![], |s| s.to_le_bytes().to_vec()));
        for name in self.tensors.names() {
            let Some(info) = self.tensors.info(name) else { continue };
            field(name.as_bytes());
            field(info.dtype.name().as_bytes());
            let extents: Vec<u8> = info.shape.iter().flat_map(|&d| (d as u64).to_le_bytes()).collect();
            field(&extents);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Reads a file whose absence is normal.
fn read_optional(path: &std::path::Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CompileError::io(path, e)),
    }
}

/// A JSON object from a file of the checkpoint.
fn parse_object(file: &str, bytes: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::from_slice(bytes) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(CompileError::input(file, "is JSON but no object")),
        Err(e) => Err(CompileError::input(file, format!("is not JSON: {e}"))),
    }
}
