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

    /// True for a field that says null, which is not the same as nothing where a class has a default.
    pub fn is_null(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(Value::is_null)
    }

    /// An object of the config as a config of its own, e.g. `text_config` of a multimodal model.
    ///
    /// # Errors
    /// Absent, or no object.
    pub fn nested(&self, key: &str) -> Result<Config> {
        match self.get(key) {
            Some(Value::Object(fields)) => Ok(Config { fields: fields.clone(), bytes: self.bytes.clone() }),
            Some(other) => Err(field_error(key, format!("is {other}, expected an object"))),
            None => Err(field_error(key, "is missing")),
        }
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

    /// Refuses a checkpoint whose weights are stored quantized.
    ///
    /// # Errors
    /// A `quantization_config`, by its method.
    pub fn refuse_quantization(&self) -> Result<()> {
        for key in ["quantization_config", "compression_config"] {
            if let Some(value) = self.get(key) {
                let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
                let remedy = match method {
                    "mxfp4" => {
                        "load it with transformers, quantization_config=Mxfp4Config(dequantize=True), and save it in bf16"
                    }
                    _ => "use the unquantized original",
                };
                return Err(CompileError::unsupported(
                    format!("{key} with quant_method {method}"),
                    format!("supported: checkpoints in bf16, f16 or f32; {remedy}"),
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

pub(super) fn size_of(key: &str, value: &Value) -> Result<usize> {
    value
        .as_u64()
        .filter(|&n| (1..=lathe_ir::facts::INTEGER_LIMIT as u64).contains(&n))
        .map(|n| n as usize)
        .ok_or_else(|| field_error(key, format!("is {value}, expected an integer from 1 to 2^30")))
}

fn number_of(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| field_error(key, format!("is {value}, expected a number")))
}

pub(super) fn positive(key: &str, value: &Value) -> Result<f64> {
    let x = number_of(key, value)?;
    if x > 0.0 { Ok(x) } else { Err(field_error(key, format!("is {value}, expected a positive number"))) }
}

pub(super) fn field_error(key: &str, why: impl Into<String>) -> CompileError {
    CompileError::input(format!("{FILE}: {key}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes().to_vec()).unwrap()
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
