//! Prompts of /v1/completions: text, token ids, or lists of either; and the room that is left after them.

use serde_json::Value;

use super::fields::token_ids;
use super::{ApiError, Fields};

/// One prompt as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Takes the field `prompt`.
///
/// # Errors
/// Absent, of another shape, or with ids outside of the vocabulary.
pub fn take_prompts(fields: &mut Fields, vocab_size: u32) -> Result<Vec<Prompt>, ApiError> {
    let invalid = |why: &str| ApiError::invalid("prompt", format!("prompt: {why}"));
    let list = match fields.take("prompt") {
        None => return Err(invalid("is required")),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(invalid("must be text, token ids, or a list of either")),
    };
    match list.first() {
        None => Err(invalid("is an empty list")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(token_ids("prompt", &list, vocab_size)?)]),
        Some(_) => list
            .into_iter()
            .map(|entry| match entry {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) if ids.is_empty() => Err(invalid("holds an empty list")),
                Value::Array(ids) => Ok(Prompt::Ids(token_ids("prompt", &ids, vocab_size)?)),
                _ => Err(invalid("must be text, token ids, or a list of either")),
            })
            .collect(),
    }
}

/// Tokens that a sequence may draw: what was asked for, else `default`, else all that the context has left.
///
/// # Errors
/// Prompt and answer do not fit the context; both numbers are named.
pub fn room(
    param: &str,
    n_prompt: usize,
    asked: Option<u32>,
    default: Option<u32>,
    max_seq_len: u32,
) -> Result<u32, ApiError> {
    if n_prompt == 0 {
        return Err(ApiError::invalid(param, format!("{param}: has no token")));
    }
    let left = (max_seq_len as usize).saturating_sub(n_prompt) as u32;
    let fits = n_prompt <= max_seq_len as usize && (left > 0 || asked == Some(0));
    if !fits {
        return Err(ApiError::context_length(
            param,
            format!("{param}: has {n_prompt} tokens, the context holds {max_seq_len} with the answer"),
        ));
    }
    match asked {
        Some(asked) if asked > left => Err(ApiError::context_length(
            "max_tokens",
            format!(
                "max_tokens: {asked} with {n_prompt} prompt tokens is {}, the context holds {max_seq_len}",
                u64::from(asked) + n_prompt as u64
            ),
        )),
        Some(asked) => Ok(asked),
        None => Ok(default.map_or(left, |d| d.min(left))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Vec<Prompt>, ApiError> {
        take_prompts(&mut Fields::parse(json.as_bytes()).unwrap(), 10)
    }

    #[test]
    fn four_shapes_are_taken() {
        let text = |s: &str| Prompt::Text(s.to_owned());
        for (json, want) in [
            (r#"{"prompt":"a"}"#, vec![text("a")]),
            (r#"{"prompt":["a","b"]}"#, vec![text("a"), text("b")]),
            (r#"{"prompt":[1,2]}"#, vec![Prompt::Ids(vec![1, 2])]),
            (r#"{"prompt":[[1],[2,3]]}"#, vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]),
        ] {
            assert_eq!(prompts(json).unwrap(), want, "{json}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for json in [
            "{}",
            r#"{"prompt":1}"#,
            r#"{"prompt":[]}"#,
            r#"{"prompt":[[]]}"#,
            r#"{"prompt":[1,"a"]}"#,
            r#"{"prompt":["a",1]}"#,
            r#"{"prompt":[10]}"#,
            r#"{"prompt":[1.5]}"#,
            r#"{"prompt":[{}]}"#,
        ] {
            let error = prompts(json).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("prompt")), "{json}");
        }
    }

    #[test]
    fn room_is_what_fits() {
        assert_eq!(room("prompt", 3, None, Some(16), 100), Ok(16));
        assert_eq!(room("prompt", 90, None, Some(16), 100), Ok(10));
        assert_eq!(room("messages", 3, None, None, 100), Ok(97));
        assert_eq!(room("prompt", 3, Some(97), Some(16), 100), Ok(97));
        assert_eq!(room("prompt", 100, Some(0), Some(16), 100), Ok(0));
        for (n_prompt, asked, numbers) in
            [(100, None, ["100", "100"]), (101, Some(0), ["101", "100"]), (3, Some(98), ["101", "100"])]
        {
            let error = room("prompt", n_prompt, asked, Some(16), 100).unwrap_err();
            assert_eq!(error.code, Some("context_length_exceeded"));
            assert!(numbers.iter().all(|n| error.message.contains(n)), "{}", error.message);
        }
        assert_eq!(room("prompt", 0, None, None, 100).unwrap_err().status, 400);
    }
}
