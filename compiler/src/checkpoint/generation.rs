//! generation_config.json: ids that end an answer, and sampling defaults.

use std::path::Path;

use lathe_plan::schema::GenerationDefaults;
use serde_json::{Map, Value};

use super::config::{Config, token_ids_of};
use super::{parse_object, read_optional};
use crate::error::{CompileError, Result};

const FILE: &str = "generation_config.json";

/// How a model wants to be sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Beginning-of-sequence id.
    pub bos_id: Option<u32>,
    /// Ids that end an answer, in the file's order, without repetition.
    pub eos_ids: Vec<u32>,
    /// Sampling parameters of requests that state none. Taken whatever `do_sample` says, as vLLM does: a request that
    /// wants greedy answers says temperature 0.
    pub defaults: GenerationDefaults,
}

impl Generation {
    /// Reads `dir/generation_config.json` where it exists; ids that it lacks come from config.json.
    ///
    /// # Errors
    /// A malformed file; a parameter out of its range.
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        match read_optional(&dir.join(FILE))? {
            Some(bytes) => Generation::parse(&bytes, config),
            None => Generation::of_config(config),
        }
    }

    /// The ids of config.json and no sampling defaults.
    ///
    /// # Errors
    /// Malformed ids.
    pub fn of_config(config: &Config) -> Result<Self> {
        Generation::parse(b"{}", config)
    }

    fn parse(bytes: &[u8], config: &Config) -> Result<Self> {
        let fields = parse_object(FILE, bytes)?;
        let ids = |key: &str| -> Result<Option<Vec<u32>>> {
            match fields.get(key).filter(|v| !v.is_null()) {
                Some(v) => token_ids_of(FILE, key, v).map(Some),
                None => config.token_ids(key),
            }
        };
        let mut eos_ids = Vec::new();
        for id in ids("eos_token_id")?.unwrap_or_default() {
            if !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let number = |key: &str, holds: fn(f64) -> bool, range: &str| number(&fields, key, holds, range);
        Ok(Generation {
            bos_id: ids("bos_token_id")?.and_then(|v| v.first().copied()),
            eos_ids,
            defaults: GenerationDefaults {
                temperature: number("temperature", |x| x >= 0.0, "at least 0")?,
                // 0 and -1 both mean "all" in files; so does an absent value in a plan.
                top_k: number(
                    "top_k",
                    |x| x >= -1.0 && x.fract() == 0.0 && x < 2e9,
                    "that is whole, from -1",
                )?
                .filter(|&k| k > 0.0)
                .map(|k| k as u32),
                top_p: number("top_p", |x| x > 0.0 && x <= 1.0, "in (0, 1]")?,
                min_p: number("min_p", |x| (0.0..=1.0).contains(&x), "in [0, 1]")?,
                repetition_penalty: number("repetition_penalty", |x| x > 0.0, "above 0")?,
            },
        })
    }
}

fn number(
    fields: &Map<String, Value>,
    key: &str,
    holds: fn(f64) -> bool,
    range: &str,
) -> Result<Option<f32>> {
    match fields.get(key).filter(|v| !v.is_null()) {
        None => Ok(None),
        Some(v) => match v.as_f64() {
            Some(x) if holds(x) => Ok(Some(x as f32)),
            _ => Err(CompileError::input(
                format!("{FILE}: {key}"),
                format!("is {v}, expected a number {range}"),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_file_wins_and_config_fills_gaps() {
        let c = config(r#"{"bos_token_id": 1, "eos_token_id": 2}"#);
        let g = Generation::parse(
            br#"{"eos_token_id": [128001, 128008, 128009, 128001], "temperature": 0.6, "top_p": 0.9, "top_k": 0, "do_sample": true}"#,
            &c,
        )
        .unwrap();
        assert_eq!(g.bos_id, Some(1));
        assert_eq!(g.eos_ids, [128_001, 128_008, 128_009]);
        assert_eq!(
            g.defaults,
            GenerationDefaults { temperature: Some(0.6), top_p: Some(0.9), ..GenerationDefaults::default() }
        );
        let bare = Generation::of_config(&c).unwrap();
        assert_eq!((bare.bos_id, bare.eos_ids), (Some(1), vec![2]));
        assert_eq!(bare.defaults, GenerationDefaults::default());
        assert_eq!(Generation::of_config(&config("{}")).unwrap(), Generation::default());
    }

    #[test]
    fn a_parameter_out_of_range_is_named() {
        for (json, want) in [
            (
                r#"{"temperature": -1}"#,
                "generation_config.json: temperature: is -1, expected a number at least 0",
            ),
            (r#"{"top_p": 0}"#, "generation_config.json: top_p: is 0, expected a number in (0, 1]"),
            (
                r#"{"top_k": 1.5}"#,
                "generation_config.json: top_k: is 1.5, expected a number that is whole, from -1",
            ),
            (r#"{"min_p": 2}"#, "generation_config.json: min_p: is 2, expected a number in [0, 1]"),
            (
                r#"{"repetition_penalty": "x"}"#,
                "generation_config.json: repetition_penalty: is \"x\", expected a number above 0",
            ),
            (
                r#"{"eos_token_id": "</s>"}"#,
                "generation_config.json: eos_token_id: is \"</s>\", expected token ids",
            ),
        ] {
            assert_eq!(Generation::parse(json.as_bytes(), &config("{}")).unwrap_err().to_string(), want);
        }
    }
}
