//! From a checkpoint to an unfused graph: one file per architecture, and its line in [`IMPORTERS`].

mod builder;
mod decoder;
mod experts;
mod falcon;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod limits;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmo2;
mod param;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen_moe;
mod shape;
mod stablelm;

use std::collections::BTreeMap;
use std::path::Path;

use lathe_ir::facts::Cache;
use lathe_ir::graph::Graph;
use lathe_numerics::{DType, contract};
use lathe_plan::schema::{GenerationDefaults, Limits, ModelCard, TextConfig};

use crate::checkpoint::{Checkpoint, Config, SyntheticTensor, TensorInfo, TensorSource, Tokenizer};
use crate::error::{CompileError, Result};
use crate::options::Options;
use names::Names;

/// Every architecture that can be imported.
pub const IMPORTERS: &[Importer] = &[
    llama::IMPORTER,
    mistral::IMPORTER,
    qwen2::IMPORTER,
    qwen3::IMPORTER,
    phi3::IMPORTER,
    granite::IMPORTER,
    olmo2::IMPORTER,
    gemma2::IMPORTER,
    gemma3::IMPORTER,
    gemma3::MULTIMODAL,
    gpt2::IMPORTER,
    gpt_neox::IMPORTER,
    stablelm::IMPORTER,
    falcon::IMPORTER,
    mixtral::IMPORTER,
    qwen_moe::QWEN2_MOE,
    qwen_moe::QWEN3_MOE,
    gpt_oss::IMPORTER,
];

/// One architecture.
pub struct Importer {
    /// As `architectures` of config.json spells it.
    pub architecture: &'static str,
    /// Published models that use it, for people.
    pub families: &'static str,
    /// What it has that a plain decoder has not, for people.
    pub features: &'static str,
    /// Reads a config; fails on whatever the architecture's graph cannot express.
    pub read: fn(&Config) -> Result<Box<dyn Model>>,
}

/// A config that was understood.
pub trait Model {
    /// Columns of the logits.
    fn vocab_size(&self) -> usize;
    /// Longest context that the model was made for.
    fn max_position(&self) -> usize;
    /// The KV cache.
    fn cache(&self, kv_dtype: DType) -> Cache;
    /// Every tensor that the graph needs.
    fn tensors(&self) -> Vec<TensorSpec>;
    /// Other names that checkpoints use for them.
    fn names(&self) -> Names;
    /// True for a tensor that published checkpoints hold and no graph needs.
    fn ignores(&self, tensor: &str) -> bool;
    /// The unfused decoder. All of [`Model::tensors`] are in `source` with their shapes.
    ///
    /// # Errors
    /// Only faults of the importer itself.
    fn build(
        &self,
        source: &dyn TensorSource,
        limits: Limits,
        dtype: DType,
        kv_dtype: DType,
    ) -> Result<Graph>;
}

/// A tensor that a model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// A norm's scale: ones where weights are synthetic.
    pub is_norm: bool,
}

impl TensorSpec {
    /// `[rows, cols]`.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        TensorSpec { name: name.into(), shape: vec![rows, cols], is_norm: false }
    }

    /// `[n]`.
    pub fn vector(name: impl Into<String>, n: usize) -> Self {
        TensorSpec { name: name.into(), shape: vec![n], is_norm: false }
    }

    /// `[n]`, a norm's scale.
    pub fn norm(name: impl Into<String>, n: usize) -> Self {
        TensorSpec { name: name.into(), shape: vec![n], is_norm: true }
    }
}

/// A checkpoint as the pipeline takes it.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The unfused decoder: inputs `tokens`, `positions`, `rows`, `state`; one output, `f32[r, vocab]`.
    pub graph: Graph,
    /// What goes into the plan's `CARD` section, limits, flags and hashes included; the pipeline changes nothing in it.
    pub card: ModelCard,
    /// What goes into `TEXT`.
    pub text: TextConfig,
    /// Bytes of tokenizer.json for `TOKN`; `None` for a model without text side.
    pub tokenizer_json: Option<Vec<u8>>,
    /// Type of weights and activations.
    pub dtype: DType,
    /// Type of keys and values.
    pub kv_dtype: DType,
}

/// The importer of a config's architecture, applied to it.
///
/// # Errors
/// An architecture without importer, by name; whatever its importer refuses.
pub fn model_of(config: &Config) -> Result<Box<dyn Model>> {
    config.refuse_quantization()?;
    let architecture = config.architecture()?;
    match IMPORTERS.iter().find(|i| i.architecture == architecture) {
        Some(importer) => (importer.read)(config),
        None => {
            let known: Vec<_> = IMPORTERS.iter().map(|i| i.architecture).collect();
            Err(CompileError::unsupported(
                format!("architecture {architecture}"),
                format!("supported: {}", known.join(", ")),
            ))
        }
    }
}

/// A checkpoint of the config's shape with generated weights in the config's dtype, bf16 if it names none.
///
/// # Errors
/// As [`model_of`] and [`Checkpoint::synthetic`].
pub fn synthetic(path: &Path, seed: u64, tokenizer: &Tokenizer) -> Result<Checkpoint> {
    let config = Config::read(path)?;
    let dtype = config.dtype()?.unwrap_or(DType::BF16);
    let tensors = model_of(&config)?
        .tensors()
        .into_iter()
        .map(|spec| SyntheticTensor {
            name: spec.name,
            info: TensorInfo { dtype, shape: spec.shape },
            ones: spec.is_norm,
        })
        .collect();
    Checkpoint::synthetic(config, tensors, seed, tokenizer)
}

/// Imports a checkpoint: checks its tensors against its config and builds the graph.
///
/// # Errors
/// What is not supported, a tensor that is absent or has another shape than the config says, a flag that cannot hold.
pub fn import(checkpoint: &Checkpoint, options: &Options) -> Result<Imported> {
    let config = &checkpoint.config;
    let source: &dyn TensorSource = checkpoint.tensors.as_ref();
    let model = model_of(config)?;
    let specs = model.tensors();
    let stored = check_tensors(source, &specs, model.as_ref())?;
    let dtype = options.dtype.unwrap_or(stored);
    let kv_dtype = options.kv_dtype.unwrap_or(dtype);
    for (flag, dtype) in [("--dtype", dtype), ("--kv-cache", kv_dtype)] {
        if !dtype.is_float() {
            return Err(CompileError::usage(format!("{flag} {dtype}"), "must be one of bf16, f16, f32"));
        }
    }
    let limits = limits::resolve(options, model.max_position() as u32)?;
    let graph = model.build(source, limits, dtype, kv_dtype)?;
    let n_parameters = specs.iter().map(|s| s.shape.iter().product::<usize>() as u64).sum();
    let vocab_size = model.vocab_size() as u32;
    let generation = &checkpoint.generation;
    let (eos_ids, outside): (Vec<u32>, Vec<u32>) =
        generation.eos_ids.iter().copied().partition(|&id| id < vocab_size);
    if !outside.is_empty() {
        tracing::warn!(
            "end ids {outside:?} lie outside the vocabulary of {vocab_size} and can never occur: left out"
        );
    }
    let architecture = config.architecture()?.to_owned();
    let card = ModelCard {
        name: checkpoint.hub_id.clone().unwrap_or_else(|| name_of(config, &architecture, n_parameters)),
        architecture,
        n_parameters,
        vocab_size,
        bos_id: generation.bos_id.filter(|&id| id < vocab_size),
        eos_ids,
        generation: match options.generation_defaults {
            true => generation.defaults.clone(),
            false => GenerationDefaults::default(),
        },
        max_position: model.max_position() as u32,
        limits,
        producer: env!("CARGO_PKG_VERSION").to_owned(),
        contract: contract::CONTRACT.0,
        flags: limits::flags(
            &options.targets,
            &limits,
            dtype,
            kv_dtype,
            checkpoint.synthetic_seed,
            options.generation_defaults,
        ),
        numeric_passes: Vec::new(),
        source_hash: checkpoint.source_hash(),
    };
    Ok(Imported {
        graph,
        card,
        text: checkpoint.text.clone(),
        tokenizer_json: checkpoint.tokenizer_json.clone(),
        dtype,
        kv_dtype,
    })
}

/// A name from the checkpoint alone, e.g. `llama-1.24b`: a directory's name would make the same checkpoint compile to
/// different bytes.
fn name_of(config: &Config, architecture: &str, n_parameters: u64) -> String {
    let family = match config.text("model_type") {
        Ok(Some(name)) => name,
        _ => architecture,
    };
    let n = n_parameters as f64;
    let size = match n_parameters {
        0..1_000_000 => format!("{:.0}k", n / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0}m", n / 1e6),
        _ => format!("{:.2}b", n / 1e9),
    };
    format!("{family}-{size}")
}

/// Checks every needed tensor; returns the type that most elements are stored in.
fn check_tensors(source: &dyn TensorSource, specs: &[TensorSpec], model: &dyn Model) -> Result<DType> {
    let names = model.names();
    let specs: Vec<TensorSpec> = specs
        .iter()
        .map(|s| TensorSpec { name: names.stored(source, &s.name).into_owned(), ..s.clone() })
        .collect();
    let absent: Vec<&str> =
        specs.iter().filter(|s| source.stored_type(&s.name).is_none()).map(|s| s.name.as_str()).collect();
    if let [first, rest @ ..] = absent.as_slice() {
        let more =
            if rest.is_empty() { String::new() } else { format!(", as are {} other tensors", rest.len()) };
        return Err(CompileError::input(*first, format!("is absent from the checkpoint{more}")));
    }
    let mut elements: BTreeMap<DType, usize> = BTreeMap::new();
    for spec in &specs {
        let Some(info) = source.info(&spec.name) else {
            let stored = source.stored_type(&spec.name).unwrap_or_default();
            return Err(CompileError::unsupported(
                format!("dtype {stored} of tensor {}", spec.name),
                "supported: F32, F16, BF16",
            ));
        };
        if info.shape != spec.shape {
            return Err(CompileError::input(
                spec.name.as_str(),
                format!("has shape {:?}, and config.json asks for {:?}", info.shape, spec.shape),
            ));
        }
        *elements.entry(info.dtype).or_default() += info.len();
    }
    let needed: std::collections::BTreeSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let unknown: Vec<&str> =
        source.names().into_iter().filter(|n| !needed.contains(n) && !model.ignores(n)).collect();
    if let Some(first) = unknown.first() {
        tracing::warn!(
            "the checkpoint holds {} tensors that the architecture does not use, e.g. {first}",
            unknown.len()
        );
    }
    // Ties go to the type that comes first in DType's order, so that the choice is a function of the checkpoint.
    let most = elements.iter().map(|(_, &n)| n).max().unwrap_or(0);
    Ok(elements.iter().find(|(_, n)| **n == most).map_or(DType::F32, |(&d, _)| d))
}
