//! Rotary embedding as config.json spells it, old and new, and the table that it asks for.

use lathe_ir::rope_table::{RopeScaling as TableScaling, RopeTable};
use serde_json::{Map, Value};

use super::config::{Config, field_error, positive, size_of};
use crate::error::{CompileError, Result};

/// Rotary embedding as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of the head that rotates.
    pub partial_rotary_factor: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

/// Kinds of rotary scaling that Lathe computes.
#[derive(Clone, Debug, PartialEq)]
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
    /// A larger base for contexts beyond the original one ("NTK-aware").
    Dynamic {
        /// Ratio of the longest context to the original one.
        factor: f64,
        /// Context up to which nothing changes.
        original_max_position: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Divisor of frequencies that turn seldom.
        factor: f64,
        /// Context that the model was first trained for.
        original_max_position: usize,
        /// Turns within it from which a frequency is kept.
        beta_fast: f64,
        /// Turns within it up to which a frequency is divided by all of `factor`.
        beta_slow: f64,
        /// Whether the bounds of the blend are whole dimensions.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor for each frequency, of two sets of them.
    LongRope {
        /// Divisors in contexts up to the original one.
        short_factor: Vec<f64>,
        /// Divisors in longer contexts.
        long_factor: Vec<f64>,
        /// Context that the model was first trained for.
        original_max_position: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// What an architecture takes where its config says nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeDefaults {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of the head that rotates.
    pub partial_rotary_factor: f64,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        RopeDefaults { theta: 10_000.0, partial_rotary_factor: 1.0 }
    }
}

/// Older names of fields, by architecture family.
const THETA: [&str; 2] = ["rope_theta", "rotary_emb_base"];
const PARTIAL: [&str; 3] = ["partial_rotary_factor", "rotary_pct", "rope_pct"];

impl Rope {
    /// Elements of a head that rotate.
    ///
    /// # Errors
    /// A share that gives no even number of elements from 2 to `head_dim`.
    pub fn rotary_dim(&self, head_dim: usize) -> Result<usize> {
        let dim = (head_dim as f64 * self.partial_rotary_factor) as usize;
        if dim >= 2 && dim <= head_dim && dim.is_multiple_of(2) {
            return Ok(dim);
        }
        let what = match self.partial_rotary_factor {
            1.0 => format!("head_dim {head_dim}"),
            share => format!("partial_rotary_factor {share} of head_dim {head_dim}"),
        };
        Err(CompileError::unsupported(
            what,
            format!(
                "supported: an even number of rotated elements from 2 to {head_dim}, as rotary embedding turns pairs"
            ),
        ))
    }

    /// Longest context that the scaling reaches, for a model of `max_position`.
    pub fn longest(&self, max_position: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { factor, original_max_position }
            | RopeScaling::Yarn { factor, original_max_position, .. } => {
                max_position.max((factor * original_max_position as f64) as usize)
            }
            _ => max_position,
        }
    }

    /// The table of a plan for sequences of at most `positions`. Scalings that depend on a sequence's length are those of
    /// the longest sequence for all, so that a request's answer does not depend on how long it becomes.
    ///
    /// # Errors
    /// As [`Rope::rotary_dim`]; longrope factors of another number than that.
    pub fn table(&self, positions: usize, head_dim: usize) -> Result<RopeTable> {
        let dim = self.rotary_dim(head_dim)?;
        let plain = RopeTable::plain(positions, dim, self.theta);
        Ok(match &self.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => {
                RopeTable { scaling: TableScaling::Linear, factor: *factor, ..plain }
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                RopeTable {
                    scaling: TableScaling::Llama3,
                    factor: *factor,
                    low_freq_factor: *low_freq_factor,
                    high_freq_factor: *high_freq_factor,
                    original: *original_max_position,
                    ..plain
                }
            }
            RopeScaling::Dynamic { factor, original_max_position } => {
                if dim == 2 {
                    return Err(CompileError::unsupported(
                        "rope_type dynamic with 2 rotated elements",
                        "its base is a power of dim / (dim - 2)",
                    ));
                }
                let length = positions.max(*original_max_position) as f64;
                let stretch = factor * length / *original_max_position as f64 - (factor - 1.0);
                let theta = self.theta * libm::pow(stretch, dim as f64 / (dim as f64 - 2.0));
                RopeTable { theta, ..plain }
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                truncate,
                attention_factor,
            } => RopeTable {
                scaling: TableScaling::Yarn,
                factor: *factor,
                original: *original_max_position,
                beta_fast: *beta_fast,
                beta_slow: *beta_slow,
                truncate: *truncate,
                amplitude: *attention_factor,
                ..plain
            },
            RopeScaling::LongRope { short_factor, long_factor, original_max_position, attention_factor } => {
                let long = positions > *original_max_position;
                let (name, factors) =
                    if long { ("long_factor", long_factor) } else { ("short_factor", short_factor) };
                if factors.len() != dim / 2 {
                    return Err(field_error(
                        &format!("rope_scaling.{name}"),
                        format!("has {} numbers, and {} pairs rotate", factors.len(), dim / 2),
                    ));
                }
                RopeTable {
                    scaling: TableScaling::LongRope,
                    factors: factors.clone(),
                    amplitude: *attention_factor,
                    ..plain
                }
            }
        })
    }
}

impl Config {
    /// Rotary embedding from `rope_parameters`, or from `rope_scaling` and `rope_theta` as older files say; where both
    /// stand, a non-null `rope_scaling` wins, as in transformers. `layer_type` names the layers that are meant where a
    /// model has parameters by layer type; older files say `rope_local_base_freq` of the sliding ones, which are unscaled.
    ///
    /// # Errors
    /// A malformed field; a kind of scaling that Lathe does not compute.
    pub fn rope(
        &self,
        layer_type: Option<&str>,
        max_position: usize,
        defaults: RopeDefaults,
    ) -> Result<Rope> {
        let (key, found) = match (self.get("rope_scaling"), self.get("rope_parameters")) {
            (Some(v), _) => ("rope_scaling", Some(v)),
            (None, Some(v)) => ("rope_parameters", Some(v)),
            (None, None) => ("rope_scaling", None),
        };
        let mut fields = Fields { config: self, key: key.into(), map: None };
        if let Some(found) = found {
            fields.map = Some(object(key, found)?);
        }
        let by_layer_type = fields.map.is_some_and(|m| m.values().any(Value::is_object));
        match (layer_type, by_layer_type) {
            (None, true) => {
                return Err(CompileError::unsupported(
                    format!("{key} by layer type"),
                    "supported in this architecture: one set of parameters for all layers",
                ));
            }
            (Some(layer_type), true) => {
                let key = format!("{key}.{layer_type}");
                let of_type = fields.map.and_then(|m| m.get(layer_type));
                let of_type = of_type.ok_or_else(|| field_error(&key, "is missing"))?;
                fields = Fields { config: self, map: Some(object(&key, of_type)?), key };
            }
            (Some("sliding_attention"), false) => {
                let theta = self.get("rope_local_base_freq");
                let theta = theta.map(|v| positive("rope_local_base_freq", v)).transpose()?;
                return Ok(Rope {
                    theta: theta.unwrap_or(defaults.theta),
                    partial_rotary_factor: defaults.partial_rotary_factor,
                    scaling: RopeScaling::Default,
                });
            }
            _ => {}
        }
        Ok(Rope {
            theta: fields.first_of(&THETA)?.unwrap_or(defaults.theta),
            partial_rotary_factor: fields.first_of(&PARTIAL)?.unwrap_or(defaults.partial_rotary_factor),
            scaling: fields.scaling(max_position)?,
        })
    }
}

/// The fields of one set of rotary parameters.
struct Fields<'a> {
    config: &'a Config,
    key: String,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.and_then(|m| m.get(name)).filter(|v| !v.is_null())
    }

    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.get(name).map(|v| positive(&self.name(name), v)).transpose()
    }

    fn required(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| field_error(&self.name(name), "is missing"))
    }

    /// The first of `names` that is here, or else at the config's top.
    fn first_of(&self, names: &[&str]) -> Result<Option<f64>> {
        for name in names {
            if let Some(x) = self.number(name)? {
                return Ok(Some(x));
            }
        }
        for name in names {
            if let Some(value) = self.config.get(name) {
                return Ok(Some(positive(name, value)?));
            }
        }
        Ok(None)
    }

    fn original(&self, max_position: usize) -> Result<usize> {
        const NAME: &str = "original_max_position_embeddings";
        match self.get(NAME) {
            // Some files write it as a float.
            Some(v) if v.is_f64() => Ok(positive(&self.name(NAME), v)? as usize),
            Some(v) => size_of(&self.name(NAME), v),
            None => Ok(self.config.opt_size(NAME)?.unwrap_or(max_position)),
        }
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        match self.get(name) {
            Some(Value::Array(list)) => list.iter().map(|v| positive(&self.name(name), v)).collect(),
            Some(other) => {
                Err(field_error(&self.name(name), format!("is {other}, expected a list of numbers")))
            }
            None => Err(field_error(&self.name(name), "is missing")),
        }
    }

    fn scaling(&self, max_position: usize) -> Result<RopeScaling> {
        let kind = match self.get("rope_type").or_else(|| self.get("type")) {
            None => "default",
            Some(Value::String(s)) => s,
            Some(other) => return Err(field_error(&self.name("rope_type"), format!("is {other}"))),
        };
        Ok(match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: self.required("factor")? },
            "llama3" => {
                let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
                if low >= high {
                    return Err(field_error(
                        &self.name("low_freq_factor"),
                        format!("is {low}, and high_freq_factor is {high}: it must be smaller"),
                    ));
                }
                RopeScaling::Llama3 {
                    factor: self.required("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position: self.original(max_position)?,
                }
            }
            // The original length of this kind is the model's own, whatever else the file says.
            "dynamic" => {
                let factor = self.required("factor")?;
                if factor < 1.0 {
                    return Err(field_error(
                        &self.name("factor"),
                        format!("is {factor}, expected 1 or more"),
                    ));
                }
                RopeScaling::Dynamic { factor, original_max_position: max_position }
            }
            "yarn" => self.yarn(max_position)?,
            // `su` is what Phi-3 called it first.
            "longrope" | "su" => self.longrope(max_position)?,
            other => {
                return Err(CompileError::unsupported(
                    format!("rope_type {other}"),
                    "supported: default, linear, dynamic, llama3, yarn, longrope",
                ));
            }
        })
    }

    fn yarn(&self, max_position: usize) -> Result<RopeScaling> {
        let original = self.original(max_position)?;
        let factor = self.number("factor")?.unwrap_or(max_position as f64 / original as f64);
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * libm::log(factor) + 1.0 };
        // DeepSeek writes 0 for "none".
        let scale = |name: &str| match self.get(name).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.number(name),
        };
        let attention_factor =
            match (self.number("attention_factor")?, scale("mscale")?, scale("mscale_all_dim")?) {
                (Some(given), _, _) => given,
                (None, Some(m), Some(all)) => mscale(m) / mscale(all),
                _ => mscale(1.0),
            };
        let truncate = match self.get("truncate") {
            None => true,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                return Err(field_error(
                    &self.name("truncate"),
                    format!("is {other}, expected true or false"),
                ));
            }
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position: original,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            truncate,
            attention_factor,
        })
    }

    fn longrope(&self, max_position: usize) -> Result<RopeScaling> {
        let original = self.original(max_position)?;
        let factor = self.number("factor")?.unwrap_or(max_position as f64 / original as f64);
        let derived = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + libm::log(factor) / libm::log(original as f64)).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short_factor: self.numbers("short_factor")?,
            long_factor: self.numbers("long_factor")?,
            original_max_position: original,
            attention_factor: self.number("attention_factor")?.unwrap_or(derived),
        })
    }
}

fn object<'a>(key: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| field_error(key, format!("is {value}, expected an object")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes().to_vec()).unwrap()
    }

    fn rope(json: &str) -> Rope {
        config(json).rope(None, 4096, RopeDefaults::default()).unwrap()
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
                llama3.clone(),
            ),
            (
                r#"{"rope_parameters": {"rope_theta": 500000, "rope_type": "llama3", "factor": 32, "low_freq_factor": 1,
                "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
                llama3.clone(),
            ),
            (
                r#"{"rope_theta": 500000.0, "original_max_position_embeddings": 8192, "rope_scaling":
                {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}"#,
                llama3.clone(),
            ),
            (r#"{"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}"#, linear.clone()),
            (
                r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 1e6}"#,
                linear.clone(),
            ),
            (r#"{"rope_scaling": null}"#, plain.clone()),
            (r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}"#, plain.clone()),
            (r#"{}"#, plain.clone()),
        ];
        for (json, want) in rows {
            assert_eq!(config(json).rope(None, 131_072, RopeDefaults::default()).unwrap(), want, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rows = [
            (
                r#"{"rope_scaling": {"type": "mrope"}}"#,
                "unsupported rope_type mrope: supported: default, linear, dynamic, llama3, yarn, longrope",
            ),
            (
                r#"{"rope_scaling": {"type": "dynamic", "factor": 0.5}}"#,
                "config.json: rope_scaling.factor: is 0.5, expected 1 or more",
            ),
            (
                r#"{"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}"#,
                "config.json: rope_scaling.long_factor: is missing",
            ),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "config.json: rope_scaling.factor: is missing"),
            (r#"{"rope_scaling": 3}"#, "config.json: rope_scaling: is 3, expected an object"),
            (r#"{"rope_theta": -1}"#, "config.json: rope_theta: is -1, expected a positive number"),
            (
                r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#,
                "unsupported rope_parameters by layer type: supported in this architecture: one set of parameters for all layers",
            ),
            (
                r#"{"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}"#,
                "config.json: rope_scaling.low_freq_factor: is 4, and high_freq_factor is 4: it must be smaller",
            ),
        ];
        for (json, want) in rows {
            let error = config(json).rope(None, 4096, RopeDefaults::default()).unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn lengths_choose_frequencies() {
        let dynamic = rope(r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#);
        assert_eq!(dynamic.longest(4096), 8192);
        assert_eq!(dynamic.table(4096, 8).unwrap(), RopeTable::plain(4096, 8, 10_000.0));
        // 2 * 2 - 1 = 3 times the context at twice the length, to the power of 8 / 6.
        let theta = dynamic.table(8192, 8).unwrap().theta;
        assert!((theta - 10_000.0 * 3f64.powf(8.0 / 6.0)).abs() < 1e-6, "{theta}");

        let long = r#"{"original_max_position_embeddings": 1024, "rope_scaling": {"type": "su",
            "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0]}}"#;
        let long = rope(long);
        assert_eq!(long.table(1024, 4).unwrap().factors, [1.0, 1.5]);
        let table = long.table(1025, 4).unwrap();
        assert_eq!(table.factors, [2.0, 4.0]);
        assert!((table.amplitude - 1.2_f64.sqrt()).abs() < 1e-12, "{}", table.amplitude);
        let error = long.table(8, 8).unwrap_err().to_string();
        assert_eq!(error, "config.json: rope_scaling.short_factor: has 2 numbers, and 4 pairs rotate");
    }

    #[test]
    fn the_temperature_of_yarn_is_given_or_follows_from_the_factor() {
        let amplitude = |fields: &str| {
            let json = format!(
                r#"{{"rope_scaling": {{"type": "yarn", "factor": 4.0, {fields}
                "original_max_position_embeddings": 2048}}}}"#
            );
            let rope = rope(&json);
            assert_eq!(rope.longest(2048), 8192);
            rope.table(16, 8).unwrap().amplitude
        };
        let of = |m: f64| 0.1 * m * 4f64.ln() + 1.0;
        assert!((amplitude("") - of(1.0)).abs() < 1e-12);
        assert!((amplitude(r#""attention_factor": 1.5,"#) - 1.5).abs() < 1e-12);
        assert!((amplitude(r#""mscale": 2.0, "mscale_all_dim": 0.5,"#) - of(2.0) / of(0.5)).abs() < 1e-12);
        assert!((amplitude(r#""mscale": 2.0, "mscale_all_dim": 0,"#) - of(1.0)).abs() < 1e-12);
    }

    #[test]
    fn both_spellings_by_layer_type_mean_the_same() {
        let new = r#"{"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}}"#;
        let old = r#"{"rope_local_base_freq": 5000.0, "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}"#;
        for layer_type in ["sliding_attention", "full_attention"] {
            let of = |json| config(json).rope(Some(layer_type), 4096, RopeDefaults::default()).unwrap();
            assert_eq!(of(new), of(old), "{layer_type}");
        }
        let local = config(old).rope(Some("sliding_attention"), 4096, RopeDefaults::default()).unwrap();
        assert_eq!((local.theta, local.scaling), (5000.0, RopeScaling::Default));
    }

    #[test]
    fn part_of_a_head_may_rotate() {
        for (json, head_dim, want) in [
            ("{}", 16, 16),
            (r#"{"partial_rotary_factor": 0.75}"#, 128, 96),
            (r#"{"rotary_pct": 0.25}"#, 80, 20),
            (r#"{"rope_parameters": {"partial_rotary_factor": 0.5}}"#, 12, 6),
        ] {
            assert_eq!(rope(json).rotary_dim(head_dim).unwrap(), want, "{json}");
        }
        let error = rope(r#"{"partial_rotary_factor": 0.3}"#).rotary_dim(10).unwrap_err().to_string();
        let want = "unsupported partial_rotary_factor 0.3 of head_dim 10: supported: an even";
        assert!(error.starts_with(want), "{error}");
    }
}
