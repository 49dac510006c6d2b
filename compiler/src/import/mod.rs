//! From a checkpoint's config to an unfused graph: one file per architecture.

use lathe_numerics::DType;
use lathe_plan::schema::{ModelCard, TextConfig};

/// A checkpoint as the pipeline takes it.
#[derive(Clone, Debug)]
pub struct Imported {
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
