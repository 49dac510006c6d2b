//! From request fields to [`SamplingParams`]: defaults, ranges, limits.
//!
//! A field that is absent takes the model's default (generation config, stored in the plan), then the API's.

use std::sync::Arc;

use lathe_api::{MAX_TOP_LOGPROBS, SamplingParams};
use lathe_plan::schema::{GenerationDefaults, ModelCard};

use crate::http::{ApiError, Fields};

/// Most choices of one prompt.
pub const MAX_CHOICES: u32 = 128;

/// Most stop strings, as in OpenAI's API times four; each costs a search per token.
const MAX_STOPS: usize = 16;

/// Bytes of a stop string, for the same reason.
const MAX_STOP_LEN: usize = 4096;

/// What a model says about drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// From the checkpoint's generation config.
    pub generation: GenerationDefaults,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// Ids are below it.
    pub vocab_size: u32,
}

impl From<&ModelCard> for SamplingDefaults {
    fn from(card: &ModelCard) -> Self {
        SamplingDefaults {
            generation: card.generation.clone(),
            eos_ids: card.eos_ids.clone(),
            vocab_size: card.vocab_size,
        }
    }
}

/// How one request draws and stops. `choice` of `params` is set per choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Choices per prompt, at least 1.
    pub n: u32,
    /// Tokens before which nothing stops.
    pub min_tokens: u32,
    /// Ids that end a choice.
    pub stop_ids: Arc<[u32]>,
    /// Strings that end a choice.
    pub stop: Vec<String>,
    /// The matched stop stays in the text.
    pub include_stop: bool,
    /// Added to logits.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Special tokens give no text.
    pub skip_special: bool,
}

impl Sampling {
    /// Takes the sampling fields out of a request.
    ///
    /// # Errors
    /// A field of the wrong type or out of its range, by name.
    pub fn from_fields(fields: &mut Fields, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        let model = &defaults.generation;
        let real = |fields: &mut Fields, name: &str, default: f32, range: Range| -> Result<f32, ApiError> {
            let Some(value) = fields.number(name)? else { return Ok(default) };
            if !range.holds(value) {
                return Err(ApiError::invalid(name, format!("{name}: {value} is not {}", range.text)));
            }
            Ok(value as f32)
        };
        let params = SamplingParams {
            temperature: real(fields, "temperature", model.temperature.unwrap_or(1.0), TEMPERATURE)?,
            top_k: top_k(fields, model.top_k.unwrap_or(0))?,
            top_p: real(fields, "top_p", model.top_p.unwrap_or(1.0), TOP_P)?,
            min_p: real(fields, "min_p", model.min_p.unwrap_or(0.0), MIN_P)?,
            repetition_penalty: real(
                fields,
                "repetition_penalty",
                model.repetition_penalty.unwrap_or(1.0),
                REPETITION,
            )?,
            presence_penalty: real(fields, "presence_penalty", 0.0, PENALTY)?,
            frequency_penalty: real(fields, "frequency_penalty", 0.0, PENALTY)?,
            // Two's complement keeps negative seeds apart.
            seed: fields.integer("seed")?.map_or_else(random_seed, |seed| seed as u64),
            choice: 0,
        };
        let n = fields.integer_in("n", 1, MAX_CHOICES.into())?.unwrap_or(1) as u32;
        if let Some(best_of) = fields.integer("best_of")?
            && best_of != i64::from(n)
        {
            return Err(ApiError::unsupported("best_of", "best_of: only the value of n is supported"));
        }
        let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
        let mut stop_ids = if ignore_eos { Vec::new() } else { defaults.eos_ids.clone() };
        for id in fields.ids("stop_token_ids", defaults.vocab_size)?.unwrap_or_default() {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Ok(Sampling {
            params,
            n,
            min_tokens: fields.integer_in("min_tokens", 0, u32::MAX.into())?.unwrap_or(0) as u32,
            stop_ids: stop_ids.into(),
            stop: stop(fields)?,
            include_stop: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            logit_bias: logit_bias(fields, defaults.vocab_size)?.into(),
            skip_special: fields.boolean("skip_special_tokens")?.unwrap_or(true),
        })
    }
}

/// `logprobs` of /v1/completions: a number of alternatives.
pub fn completion_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    Ok(fields.integer_in("logprobs", 0, MAX_TOP_LOGPROBS as i64)?.map(|n| n as u8))
}

/// `logprobs` and `top_logprobs` of /v1/chat/completions: a switch and a number of alternatives.
pub fn chat_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let on = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer_in("top_logprobs", 0, MAX_TOP_LOGPROBS as i64)?;
    match (on, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs: needs logprobs to be true")),
    }
}

/// A key for random numbers that no one asked to be reproducible.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys each state with the system's randomness: no crate needed for what is no secret.
    std::hash::RandomState::new().build_hasher().finish()
}

#[derive(Clone, Copy)]
struct Range {
    min: f64,
    min_open: bool,
    max: f64,
    text: &'static str,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        (value > self.min || (!self.min_open && value == self.min)) && value <= self.max
    }
}

const TEMPERATURE: Range = Range { min: 0.0, min_open: false, max: 100.0, text: "between 0 and 100" };
const TOP_P: Range = Range { min: 0.0, min_open: true, max: 1.0, text: "above 0 and at most 1" };
const MIN_P: Range = Range { min: 0.0, min_open: false, max: 1.0, text: "between 0 and 1" };
const REPETITION: Range = Range { min: 0.0, min_open: true, max: 100.0, text: "above 0 and at most 100" };
const PENALTY: Range = Range { min: -2.0, min_open: false, max: 2.0, text: "between -2 and 2" };

fn top_k(fields: &mut Fields, default: u32) -> Result<u32, ApiError> {
    // -1 is how vLLM's clients write "off".
    Ok(fields.integer_in("top_k", -1, u32::MAX.into())?.map_or(default, |k| k.max(0) as u32))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let wrong = || ApiError::invalid("stop", "stop: must be a string or a list of strings");
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(serde_json::Value::String(one)) => vec![one],
        Some(serde_json::Value::Array(many)) => many
            .into_iter()
            .map(|v| match v {
                serde_json::Value::String(s) => Ok(s),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong()),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("stop: {} strings, at most {MAX_STOPS}", stops.len())));
    }
    if let Some(long) = stops.iter().find(|s| s.len() > MAX_STOP_LEN) {
        let why = format!("stop: a string has {} bytes, at most {MAX_STOP_LEN}", long.len());
        return Err(ApiError::invalid("stop", why));
    }
    // An empty one would match before the first token.
    Ok(stops.into_iter().filter(|s| !s.is_empty()).collect())
}

fn logit_bias(fields: &mut Fields, vocab_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    let invalid = |why: String| ApiError::invalid("logit_bias", format!("logit_bias: {why}"));
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Object(map)) => map,
        Some(_) => return Err(invalid("must map token ids to numbers".to_owned())),
    };
    let mut biases = Vec::with_capacity(map.len());
    for (key, value) in map {
        let id: u32 = key.trim().parse().map_err(|_| invalid(format!("key {key:?} is not a token id")))?;
        if id >= vocab_size {
            return Err(invalid(format!("token id {id} is not below the vocabulary's {vocab_size}")));
        }
        let bias = value.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        let bias = bias.ok_or_else(|| invalid(format!("value of {key} is not between -100 and 100")))?;
        biases.push((id, bias as f32));
    }
    // Keys like "7" and "07" name the same id: the last one counts.
    biases.reverse();
    biases.sort_by_key(|(id, _)| *id);
    biases.dedup_by_key(|(id, _)| *id);
    Ok(biases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> SamplingDefaults {
        SamplingDefaults {
            generation: GenerationDefaults { temperature: Some(0.6), top_p: Some(0.9), ..Default::default() },
            eos_ids: vec![2, 3],
            vocab_size: 100,
        }
    }

    fn resolve(json: &str) -> Result<Sampling, ApiError> {
        Sampling::from_fields(&mut Fields::parse(json.as_bytes()).unwrap(), &defaults())
    }

    #[test]
    fn absent_fields_take_the_models_then_the_apis_defaults() {
        let s = resolve("{}").unwrap();
        assert_eq!((s.params.temperature, s.params.top_p, s.params.top_k), (0.6, 0.9, 0));
        let none = SamplingDefaults { generation: GenerationDefaults::default(), ..defaults() };
        let s = Sampling::from_fields(&mut Fields::parse(b"{}").unwrap(), &none).unwrap();
        assert_eq!((s.params.temperature, s.params.top_p), (1.0, 1.0));
        assert_eq!((s.n, s.min_tokens, &*s.stop_ids, s.skip_special), (1, 0, &[2, 3][..], true));
    }

    #[test]
    fn null_is_absent() {
        let s = resolve(r#"{"temperature":null,"stop":null,"logit_bias":null,"n":null}"#).unwrap();
        assert_eq!((s.params.temperature, s.n), (0.6, 1));
    }

    #[test]
    fn random_seeds_differ_and_given_ones_stay() {
        assert_ne!(resolve("{}").unwrap().params.seed, resolve("{}").unwrap().params.seed);
        assert_eq!(resolve(r#"{"seed":7}"#).unwrap().params.seed, 7);
        assert_eq!(resolve(r#"{"seed":-1}"#).unwrap().params.seed, u64::MAX);
    }

    #[test]
    fn stops_and_biases_are_taken_apart() {
        let s = resolve(r#"{"stop":"x","stop_token_ids":[3,9],"ignore_eos":true}"#).unwrap();
        assert_eq!((s.stop.as_slice(), &*s.stop_ids), (&["x".to_owned()][..], &[3, 9][..]));
        let s = resolve(r#"{"stop":["a","","b"],"logit_bias":{"9":-100,"4":1.5},"top_k":-1}"#).unwrap();
        assert_eq!(s.stop, ["a", "b"]);
        assert_eq!(&*s.logit_bias, &[(4, 1.5), (9, -100.0)]);
    }

    #[test]
    fn what_is_off_is_named() {
        for (json, param) in [
            (r#"{"temperature":-1}"#, "temperature"),
            (r#"{"temperature":"hot"}"#, "temperature"),
            (r#"{"top_p":0}"#, "top_p"),
            (r#"{"top_p":1.1}"#, "top_p"),
            (r#"{"min_p":2}"#, "min_p"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"top_k":1.5}"#, "top_k"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
            (r#"{"presence_penalty":2.5}"#, "presence_penalty"),
            (r#"{"frequency_penalty":-3}"#, "frequency_penalty"),
            (r#"{"n":0}"#, "n"),
            (r#"{"n":129}"#, "n"),
            (r#"{"n":2,"best_of":3}"#, "best_of"),
            (r#"{"seed":1.5}"#, "seed"),
            (r#"{"stop":[1]}"#, "stop"),
            (r#"{"stop":{}}"#, "stop"),
            (r#"{"stop_token_ids":[100]}"#, "stop_token_ids"),
            (r#"{"stop_token_ids":"2"}"#, "stop_token_ids"),
            (r#"{"logit_bias":{"100":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"a":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"1":101}}"#, "logit_bias"),
            (r#"{"logit_bias":[1]}"#, "logit_bias"),
            (r#"{"min_tokens":-1}"#, "min_tokens"),
            (r#"{"ignore_eos":1}"#, "ignore_eos"),
        ] {
            let error = resolve(json).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{json}: {}", error.message);
            assert_eq!(error.status, 400, "{json}");
        }
    }

    #[test]
    fn logprobs_have_two_spellings() {
        let completion = |json: &str| completion_logprobs(&mut Fields::parse(json.as_bytes()).unwrap());
        let chat = |json: &str| chat_logprobs(&mut Fields::parse(json.as_bytes()).unwrap());
        assert_eq!(completion(r#"{"logprobs":1}"#).unwrap(), Some(1));
        assert_eq!(completion("{}").unwrap(), None);
        assert!(completion(r#"{"logprobs":21}"#).is_err());
        assert!(completion(r#"{"logprobs":true}"#).is_err());
        assert_eq!(chat(r#"{"logprobs":true,"top_logprobs":20}"#).unwrap(), Some(20));
        assert_eq!(chat(r#"{"logprobs":true}"#).unwrap(), Some(0));
        assert_eq!(chat(r#"{"logprobs":false}"#).unwrap(), None);
        assert!(chat(r#"{"top_logprobs":2}"#).is_err());
        assert!(chat(r#"{"logprobs":1}"#).is_err());
    }
}
