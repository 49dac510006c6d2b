//! A request body, field by field, and what becomes of the fields that nothing took.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::{Map, Value};

use super::ApiError;

/// The fields of a JSON object that are not taken yet. `null` counts as absent.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
}

/// Fields that cannot change the answer.
const HARMLESS: &[&str] = &[
    "cache_salt",
    "metadata",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "session_id",
    "spaces_between_special_tokens",
    "store",
    "stream_interval",
    "user",
];

/// Fields that are known and not done, with the values under which they ask for nothing.
const NOT_DONE: &[(&str, &[&str])] = &[
    ("allowed_token_ids", &["[]"]),
    ("audio", &[]),
    ("bad_words", &["[]"]),
    ("chat_template", &[]),
    ("early_stopping", &["false"]),
    ("ec_transfer_params", &[]),
    ("echo", &["false"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("guided_choice", &[]),
    ("guided_decoding_backend", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_whitespace_pattern", &[]),
    ("kv_transfer_params", &[]),
    ("length_penalty", &["1", "1.0"]),
    ("logits_processors", &["[]"]),
    ("logprob_token_ids", &["[]"]),
    ("media_io_kwargs", &["{}"]),
    ("min_new_tokens", &[]),
    ("mm_processor_kwargs", &["{}"]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("prompt_embeds", &[]),
    ("prompt_logprobs", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("repetition_detection", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("structured_outputs", &["{}"]),
    ("suffix", &["\"\""]),
    ("thinking", &[]),
    ("thinking_token_budget", &[]),
    ("truncate_prompt_tokens", &[]),
    ("truncation_side", &[]),
    ("use_beam_search", &["false"]),
    ("verbosity", &["\"medium\""]),
    ("vllm_xargs", &["{}"]),
    ("web_search_options", &[]),
];

/// Most unknown names that are kept, so that a hostile client cannot fill memory or log.
const MAX_UNKNOWN: usize = 256;

static UNKNOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// Not JSON, or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(_) => Err(ApiError::bad_request("body: must be a JSON object")),
            Err(e) => Err(ApiError::bad_request(format!("body: not JSON: {e}"))),
        }
    }

    /// The rest of an object inside a request.
    pub fn of(map: Map<String, Value>) -> Self {
        Fields { map }
    }

    /// Takes a field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|v| !v.is_null())
    }

    /// Takes a number.
    ///
    /// # Errors
    /// Anything else.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, ApiError> {
        self.typed(name, "a number", |v| v.as_f64().filter(|f| f.is_finite()))
    }

    /// Takes a whole number; `2.0` counts as one.
    ///
    /// # Errors
    /// Anything else.
    pub fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.typed(name, "an integer", |v| {
            v.as_i64()
                .or_else(|| v.as_u64().map(|u| u as i64))
                .or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64))
        })
    }

    /// Takes a whole number of a range.
    ///
    /// # Errors
    /// Anything else.
    pub fn integer_in(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        match self.integer(name)? {
            Some(value) if !(min..=max).contains(&value) => {
                Err(ApiError::invalid(name, format!("{name}: {value} is not between {min} and {max}")))
            }
            value => Ok(value),
        }
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// Anything else.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// Takes a string.
    ///
    /// # Errors
    /// Anything else.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(ApiError::invalid(name, format!("{name}: must be a string"))),
        }
    }

    /// Takes an object.
    ///
    /// # Errors
    /// Anything else.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(ApiError::invalid(name, format!("{name}: must be an object"))),
        }
    }

    /// Takes a list of token ids below `vocab_size`.
    ///
    /// # Errors
    /// Anything else.
    pub fn ids(&mut self, name: &str, vocab_size: u32) -> Result<Option<Vec<u32>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => token_ids(name, &list, vocab_size).map(Some),
            Some(_) => Err(ApiError::invalid(name, format!("{name}: must be a list of token ids"))),
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        what: &str,
        get: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match get(&value) {
                Some(got) => Ok(Some(got)),
                None => Err(ApiError::invalid(name, format!("{name}: must be {what}"))),
            },
        }
    }

    /// Judges what is left: harmless fields pass, known ones that are not done are refused unless they ask for
    /// nothing, unknown ones are logged once per name.
    ///
    /// # Errors
    /// The first field that is not done.
    pub fn finish(self) -> Result<(), ApiError> {
        for (name, value) in self.map {
            if value.is_null() || HARMLESS.contains(&name.as_str()) {
                continue;
            }
            if let Some((_, neutral)) = NOT_DONE.iter().find(|(known, _)| *known == name) {
                let text = value.to_string();
                if !neutral.contains(&text.as_str()) {
                    return Err(ApiError::unsupported(&name, format!("{name}: not supported yet")));
                }
            } else {
                log_unknown(name);
            }
        }
        Ok(())
    }
}

/// Reads a JSON list of token ids below `vocab_size`.
pub fn token_ids(name: &str, list: &[Value], vocab_size: u32) -> Result<Vec<u32>, ApiError> {
    list.iter()
        .map(|v| match v.as_u64() {
            Some(id) if id < u64::from(vocab_size) => Ok(id as u32),
            Some(id) => Err(ApiError::invalid(
                name,
                format!("{name}: token id {id} is not below the vocabulary's {vocab_size}"),
            )),
            None => Err(ApiError::invalid(name, format!("{name}: {v} is not a token id"))),
        })
        .collect()
}

fn log_unknown(name: String) {
    let mut seen = UNKNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if seen.len() < MAX_UNKNOWN && name.len() <= 64 && seen.insert(name.clone()) {
        tracing::warn!(field = name, "an unknown request field is ignored");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn lists_are_sorted_and_apart() {
        assert!(HARMLESS.is_sorted());
        assert!(NOT_DONE.is_sorted_by_key(|(name, _)| *name));
        assert!(NOT_DONE.iter().all(|(name, _)| !HARMLESS.contains(name)));
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for (body, text) in [("", "not JSON"), ("{", "not JSON"), ("[1]", "must be a JSON object")] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert!(error.status == 400 && error.message.contains(text), "{body}: {}", error.message);
        }
    }

    #[test]
    fn leftovers_are_judged_by_name_and_value() {
        for (json, refused) in [
            (r#"{"user":"a","metadata":{"b":1},"store":true,"service_tier":"auto"}"#, None),
            (r#"{"no_such_field":1}"#, None),
            (r#"{"response_format":{"type":"text"},"suffix":null,"use_beam_search":false}"#, None),
            (r#"{"response_format":{"type":"json_object"}}"#, Some("response_format")),
            (r#"{"guided_json":{}}"#, Some("guided_json")),
            (r#"{"structured_outputs":{"regex":"a"}}"#, Some("structured_outputs")),
            (r#"{"prompt_logprobs":1}"#, Some("prompt_logprobs")),
            (r#"{"suffix":"x"}"#, Some("suffix")),
            (r#"{"modalities":["text"]}"#, None),
            (r#"{"modalities":["text","audio"]}"#, Some("modalities")),
        ] {
            let outcome = fields(json).finish();
            match refused {
                None => assert!(outcome.is_ok(), "{json}"),
                Some(name) => {
                    let error = outcome.unwrap_err();
                    assert_eq!((error.status, error.param.as_deref()), (400, Some(name)), "{json}");
                    assert!(error.message.contains(name));
                }
            }
        }
    }

    #[test]
    fn numbers_keep_their_kind() {
        assert_eq!(fields(r#"{"a":2.0}"#).integer("a").unwrap(), Some(2));
        assert!(fields(r#"{"a":2.5}"#).integer("a").is_err());
        assert!(fields(r#"{"a":"2"}"#).integer("a").is_err());
        assert_eq!(fields(r#"{"a":18446744073709551615}"#).integer("a").unwrap(), Some(-1));
        assert_eq!(fields(r#"{"a":2}"#).number("a").unwrap(), Some(2.0));
        assert_eq!(fields(r#"{"a":[0,9]}"#).ids("a", 10).unwrap(), Some(vec![0, 9]));
        assert!(fields(r#"{"a":[10]}"#).ids("a", 10).is_err());
        assert!(fields(r#"{"a":[-1]}"#).ids("a", 10).is_err());
    }
}
