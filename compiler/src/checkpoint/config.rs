//! config.json in its old and its new spelling, as one form.

use std::path::Path;

use lathe_numerics::DType;
use serde_json::{Map, Value};

use super::parse_object;
use crate::error::{CompileError, Result};

const FILE: &str = "config.json";

/// A model's config, read field by field with errors that name the field.
#[derive(Clone, Debug)]
pub struct Config {
    fields: Map<String, Value>,
    bytes: Vec<u8>,
}

/// Rotary embedding as configured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of the head that rotates.
    pub partial_rotary_factor: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

/// Kinds of rotary scaling that Lathe computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Ratio of the new context to the old.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context that the model was first trained for.
        original_max_position: usize,
    },
}

impl Config {
    /// Reads a config file.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| CompileError::io(path, e))?;
        Config::parse(bytes)
    }

    /// Parses a config file's bytes.
    ///
    /// # Errors
    /// Bytes that are no JSON object.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        Ok(Config { fields: parse_object(FILE, &bytes)?, bytes })
    }

    /// The file as it was.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A field that is neither absent nor null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|v| !v.is_null())
    }

    /// A count that must be there and positive.
    ///
    /// # Errors
    /// Absent, or no positive integer.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| field_error(key, "is missing"))
    }

    /// A positive count that may be absent.
    ///
    /// # Errors
    /// No positive integer below 2^30.
    pub fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|v| size_of(key, v)).transpose()
    }

    /// A number with a default.
    ///
    /// # Errors
    /// No number.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |v| number_of(key, v))
    }

    /// A boolean with a default.
    ///
    /// # Errors
    /// No boolean.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(field_error(key, format!("is {other}, expected true or false"))),
        }
    }

    /// A string that may be absent.
    ///
    /// # Errors
    /// No string.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(field_error(key, format!("is {other}, expected a string"))),
        }
    }

    /// The one entry of `architectures`.
    ///
    /// # Errors
    /// Absent, empty, or several.
    pub fn architecture(&self) -> Result<&str> {
        match self.get("architectures").and_then(Value::as_array).map(Vec::as_slice) {
            Some([Value::String(name)]) => Ok(name),
            Some(other) => Err(field_error(
                "architectures",
                format!("is {}, expected one name", Value::Array(other.to_vec())),
            )),
            None => Err(field_error("architectures", "is missing: it names the model's architecture")),
        }
    }

    /// `dtype`, or `torch_dtype` as older files say.
    ///
    /// # Errors
    /// A type that Lathe does not compute in.
    pub fn dtype(&self) -> Result<Option<DType>> {
        for key in ["dtype", "torch_dtype"] {
            if let Some(name) = self.text(key)? {
                let name = name.strip_prefix("torch.").unwrap_or(name);
                return match name.parse::<DType>() {
                    Ok(d) if d.is_float() => Ok(Some(d)),
                    _ if name == "auto" => Ok(None),
                    _ => Err(CompileError::unsupported(
                        format!("{key} {name}"),
                        "supported: bfloat16, float16, float32",
                    )),
                };
            }
        }
        Ok(None)
    }

    /// Rotary embedding from `rope_parameters`, or from `rope_scaling` and `rope_theta` as older files say; where both
    /// stand, a non-null `rope_scaling` wins, as in transformers.
    ///
    /// # Errors
    /// A malformed field; a kind of scaling that Lathe does not compute.
    pub fn rope(&self, max_position: usize) -> Result<Rope> {
        let (key, scaling) = match (self.get("rope_scaling"), self.get("rope_parameters")) {
            (Some(v), _) => ("rope_scaling", Some(v)),
            (None, Some(v)) => ("rope_parameters", Some(v)),
            (None, None) => ("rope_scaling", None),
        };
        let empty = Map::new();
        let scaling = match scaling {
            None => &empty,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(field_error(key, format!("is {other}, expected an object"))),
        };
        if scaling.values().any(Value::is_object) {
            return Err(CompileError::unsupported(
                format!("{key} by layer type"),
                "supported: one set of parameters for all layers",
            ));
        }
        let number = |name: &str| -> Result<Option<f64>> {
            let value = scaling.get(name).filter(|v| !v.is_null());
            value.map(|v| positive(&format!("{key}.{name}"), v)).transpose()
        };
        let required = |name: &str| -> Result<f64> {
            number(name)?.ok_or_else(|| field_error(&format!("{key}.{name}"), "is missing"))
        };
        let top = |name: &str| self.get(name).map(|v| positive(name, v)).transpose();
        let kind = match scaling.get("rope_type").or_else(|| scaling.get("type")) {
            None | Some(Value::Null) => "default",
            Some(Value::String(s)) => s,
            Some(other) => return Err(field_error(&format!("{key}.rope_type"), format!("is {other}"))),
        };
        let scaling_of = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: required("factor")? },
            "llama3" => {
                let original = match number("original_max_position_embeddings")? {
                    Some(n) => n as usize,
                    None => self.opt_size("original_max_position_embeddings")?.unwrap_or(max_position),
                };
                let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
                if low >= high {
                    return Err(field_error(
                        &format!("{key}.low_freq_factor"),
                        format!("is {low}, and high_freq_factor is {high}: it must be smaller"),
                    ));
                }
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position: original,
                }
            }
            other => {
                return Err(CompileError::unsupported(
                    format!("rope_type {other}"),
                    "supported: default, linear, llama3",
                ));
            }
        };
        let theta = match number("rope_theta")? {
            Some(t) => t,
            None => top("rope_theta")?.unwrap_or(10_000.0),
        };
        let partial = match number("partial_rotary_factor")? {
            Some(p) => p,
            None => top("partial_rotary_factor")?.unwrap_or(1.0),
        };
        Ok(Rope { theta, partial_rotary_factor: partial, scaling: scaling_of })
    }

    /// Positions that attention of each layer sees, its own included, 0 for all: `sliding_window`, in all layers or in
    /// those that `layer_types` calls `sliding_attention`.
    ///
    /// # Errors
    /// Types for another number of layers, unknown ones, and a sliding layer without a window.
    pub fn windows(&self, layers: usize) -> Result<Vec<usize>> {
        const TYPES: &str = "layer_types";
        let window = self.opt_size("sliding_window")?;
        let Some(types) = self.get(TYPES) else { return Ok(vec![window.unwrap_or(0); layers]) };
        let types = types.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| field_error(TYPES, format!("is no list of {layers} types")))?;
        let of = |layer: &Value| match (layer.as_str(), window) {
            (Some("full_attention"), _) => Ok(0),
            (Some("sliding_attention"), Some(window)) => Ok(window),
            (Some("sliding_attention"), None) => Err(field_error("sliding_window", "is missing")),
            _ => Err(CompileError::unsupported(
                format!("layer type {layer}"),
                "supported: full_attention, sliding_attention",
            )),
        };
        types.iter().map(of).collect()
    }

    /// Refuses a checkpoint whose weights are stored quantized.
    ///
    /// # Errors
    /// A `quantization_config`, by its method.
    pub fn refuse_quantization(&self) -> Result<()> {
        for key in ["quantization_config", "compression_config"] {
            if let Some(value) = self.get(key) {
                let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
                return Err(CompileError::unsupported(
                    format!("{key} with quant_method {method}"),
                    "supported: checkpoints in bf16, f16 or f32; use the unquantized original",
                ));
            }
        }
        Ok(())
    }

    /// A token id or list of ids.
    ///
    /// # Errors
    /// Anything else, or a negative id.
    pub fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.get(key).map(|v| token_ids_of(FILE, key, v)).transpose()
    }
}

/// An id or a list of ids, from any file.
pub(super) fn token_ids_of(file: &str, key: &str, value: &Value) -> Result<Vec<u32>> {
    let one = |v: &Value| {
        v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n < 1 << 31).ok_or_else(|| {
            CompileError::input(format!("{file}: {key}"), format!("is {value}, expected token ids"))
        })
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

fn size_of(key: &str, value: &Value) -> Result<usize> {
    value
        .as_u64()
        .filter(|&n| (1..=lathe_ir::facts::INTEGER_LIMIT as u64).contains(&n))
        .map(|n| n as usize)
        .ok_or_else(|| field_error(key, format!("is {value}, expected an integer from 1 to 2^30")))
}

fn number_of(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| field_error(key, format!("is {value}, expected a number")))
}

fn positive(key: &str, value: &Value) -> Result<f64> {
    let x = number_of(key, value)?;
    if x > 0.0 { Ok(x) } else { Err(field_error(key, format!("is {value}, expected a positive number"))) }
}

fn field_error(key: &str, why: impl Into<String>) -> CompileError {
    CompileError::input(format!("{FILE}: {key}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn windows_are_of_all_layers_or_of_those_that_slide() {
        let windows = |json: &str| config(json).windows(3).map_err(|e| e.to_string());
        assert_eq!(windows("{}"), Ok(vec![0; 3]));
        assert_eq!(windows(r#"{"sliding_window": 64}"#), Ok(vec![64; 3]));
        let types = r#"["sliding_attention", "full_attention", "sliding_attention"]"#;
        let both = format!(r#"{{"sliding_window": 64, "layer_types": {types}}}"#);
        assert_eq!(windows(&both), Ok(vec![64, 0, 64]));
        for (json, why) in [
            (&*format!(r#"{{"layer_types": {types}}}"#), "config.json: sliding_window: is missing"),
            (r#"{"layer_types": ["full_attention"]}"#, "config.json: layer_types: is no list of 3 types"),
            (
                r#"{"layer_types": ["full_attention", "full_attention", "chunked"]}"#,
                "unsupported layer type \"chunked\": supported: full_attention, sliding_attention",
            ),
        ] {
            assert_eq!(windows(json).unwrap_err(), why);
        }
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let llama3 = Rope {
            theta: 500_000.0,
            partial_rotary_factor: 1.0,
            scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position: 8192,
            },
        };
        let linear =
            Rope { theta: 1e6, partial_rotary_factor: 1.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        let plain = Rope { theta: 10_000.0, partial_rotary_factor: 1.0, scaling: RopeScaling::Default };
        let rows = [
            (
                r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
                llama3,
            ),
            (
                r#"{"rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", "factor": 32, "low_freq_factor": 1,
                "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
                llama3,
            ),
            (
                r#"{"rope_theta": 500000.0, "original_max_position_embeddings": 8192, "rope_scaling":
                {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}"#,
                llama3,
            ),
            (r#"{"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}"#, linear),
            (r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 1e6}"#, linear),
            (r#"{"rope_scaling": null}"#, plain),
            (r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}"#, plain),
            (r#"{}"#, plain),
        ];
        for (json, want) in rows {
            assert_eq!(config(json).rope(131_072).unwrap(), want, "{json}");
        }
    }

    #[test]
    fn both_spellings_of_dtype_mean_the_same() {
        for (json, want) in [
            (r#"{"torch_dtype": "bfloat16"}"#, Some(DType::BF16)),
            (r#"{"dtype": "bfloat16"}"#, Some(DType::BF16)),
            (r#"{"dtype": "float16", "torch_dtype": "float32"}"#, Some(DType::F16)),
            (r#"{"torch_dtype": "torch.float32"}"#, Some(DType::F32)),
            (r#"{"torch_dtype": "auto"}"#, None),
            (r#"{"torch_dtype": null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(config(json).dtype().unwrap(), want, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |json: &str, read: &dyn Fn(&Config) -> Result<()>, want: &str| {
            assert_eq!(read(&config(json)).unwrap_err().to_string(), want);
        };
        let rope = |c: &Config| c.rope(4096).map(drop);
        check(
            r#"{"rope_scaling": {"type": "yarn", "factor": 4.0}}"#,
            &rope,
            "unsupported rope_type yarn: supported: default, linear, llama3",
        );
        check(
            r#"{"rope_scaling": {"type": "linear"}}"#,
            &rope,
            "config.json: rope_scaling.factor: is missing",
        );
        check(r#"{"rope_scaling": 3}"#, &rope, "config.json: rope_scaling: is 3, expected an object");
        check(r#"{"rope_theta": -1}"#, &rope, "config.json: rope_theta: is -1, expected a positive number");
        check(
            r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#,
            &rope,
            "unsupported rope_parameters by layer type: supported: one set of parameters for all layers",
        );
        check(
            r#"{"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}"#,
            &rope,
            "config.json: rope_scaling.low_freq_factor: is 4, and high_freq_factor is 4: it must be smaller",
        );
        let dtype = |c: &Config| c.dtype().map(drop);
        check(
            r#"{"dtype": "float8_e4m3fn"}"#,
            &dtype,
            "unsupported dtype float8_e4m3fn: supported: bfloat16, float16, float32",
        );
        let arch = |c: &Config| c.architecture().map(drop);
        check("{}", &arch, "config.json: architectures: is missing: it names the model's architecture");
        check(
            r#"{"architectures": ["A", "B"]}"#,
            &arch,
            r#"config.json: architectures: is ["A","B"], expected one name"#,
        );
        let size = |c: &Config| c.size("hidden_size").map(drop);
        check("{}", &size, "config.json: hidden_size: is missing");
        for bad in ["0", "-4", "1.5", "\"64\"", "4294967296"] {
            check(
                &format!(r#"{{"hidden_size": {bad}}}"#),
                &size,
                &format!("config.json: hidden_size: is {bad}, expected an integer from 1 to 2^30"),
            );
        }
        let quant = |c: &Config| c.refuse_quantization();
        check(
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
            &quant,
            "unsupported quantization_config with quant_method gptq: supported: checkpoints in bf16, f16 or f32; use the unquantized original",
        );
        let ids = |c: &Config| c.token_ids("eos_token_id").map(drop);
        check(
            r#"{"eos_token_id": [1, -2]}"#,
            &ids,
            "config.json: eos_token_id: is [1,-2], expected token ids",
        );
        for (bytes, want) in
            [("[1]", "config.json: is JSON but no object"), ("{", "config.json: is not JSON")]
        {
            let error = Config::parse(bytes.into()).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn ids_are_one_or_many() {
        let c = config(r#"{"eos_token_id": [128001, 128008], "bos_token_id": 128000, "pad_token_id": null}"#);
        assert_eq!(c.token_ids("eos_token_id").unwrap(), Some(vec![128_001, 128_008]));
        assert_eq!(c.token_ids("bos_token_id").unwrap(), Some(vec![128_000]));
        assert_eq!(c.token_ids("pad_token_id").unwrap(), None);
    }
}
