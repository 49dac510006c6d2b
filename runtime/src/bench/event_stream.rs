//! Server-sent events: bytes in pieces of any size become the data of whole events, and those parts of an answer.

use serde_json::Value;

use super::watch::{Failure, Watch};

/// Longest event; more is no answer of a chat server.
const MAX_EVENT: usize = 16 << 20;

/// What has come and is not a whole event yet.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that hold no line end.
    searched: usize,
    data: String,
}

impl Events {
    /// Takes bytes and hands over the data of each event that they complete.
    ///
    /// # Errors
    /// `take`'s own, text that is not UTF-8, and events without end.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(end) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let end = self.searched + end;
            let line = std::str::from_utf8(&self.buffer[start..end])
                .map_err(|_| Failure::Malformed("a line of the stream is not UTF-8".to_owned()))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.is_empty() {
                if !self.data.is_empty() {
                    take(&self.data)?;
                    self.data.clear();
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
            // Comments, ids and event names say nothing here.
            start = end + 1;
            self.searched = start;
        }
        self.buffer.drain(..start);
        self.searched = self.buffer.len();
        if self.buffer.len() + self.data.len() > MAX_EVENT {
            return Err(Failure::Malformed("an event of the stream has no end".to_owned()));
        }
        Ok(())
    }
}

/// Reads one event's data into `watch`.
///
/// # Errors
/// No JSON, or an error that the server reports.
pub fn read(data: &str, watch: &mut Watch) -> Result<(), Failure> {
    if data == "[DONE]" {
        watch.finish();
        return Ok(());
    }
    let value: Value = serde_json::from_str(data)
        .map_err(|e| Failure::Malformed(format!("an event is no JSON: {e}: {}", shorten(data))))?;
    if let Some(error) = value.get("error").filter(|e| !e.is_null()) {
        return Err(Failure::Stream(message(error)));
    }
    if let Some(usage) = value.get("usage").filter(|u| !u.is_null()) {
        let count = |name: &str| usage.get(name).and_then(Value::as_u64);
        if let (Some(input), Some(output)) = (count("prompt_tokens"), count("completion_tokens")) {
            watch.usage(input, output);
        }
    }
    for choice in value.get("choices").and_then(Value::as_array).into_iter().flatten() {
        let ends = choice.get("finish_reason").is_some_and(|r| !r.is_null());
        let holds_tokens = match (choice.get("text"), choice.get("delta")) {
            // A server without a tokenizer sends empty texts, one per token.
            (Some(text), _) => text.as_str().is_some_and(|t| !t.is_empty()) || !ends,
            (None, Some(delta)) => holds_tokens(delta),
            (None, None) => false,
        };
        if holds_tokens {
            watch.tokens();
        }
        if ends {
            watch.finish();
        }
    }
    Ok(())
}

/// Whether a part of a message is more than its role.
fn holds_tokens(delta: &Value) -> bool {
    delta.as_object().into_iter().flatten().any(|(name, value)| {
        name != "role"
            && match value {
                Value::String(text) => !text.is_empty(),
                Value::Array(list) => !list.is_empty(),
                _ => false,
            }
    })
}

/// What an error says, in OpenAI's form or any other.
pub fn message(error: &Value) -> String {
    let text = error.get("message").or_else(|| error.get("detail")).unwrap_or(error);
    shorten(&text.as_str().map_or_else(|| text.to_string(), str::to_owned))
}

/// The beginning of a text, on one line.
pub fn shorten(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut short: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = short.char_indices().nth(LONGEST) {
        short.truncate(at);
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::bench::watch::{Answer, Counted};

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut got) = (Events::default(), Vec::new());
        for piece in pieces {
            events
                .push(piece, |data| {
                    got.push(data.to_owned());
                    Ok(())
                })
                .unwrap();
        }
        got
    }

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = "data: {\"a\":1}\n\n: keep-alive\n\nevent: x\r\ndata:two\r\ndata: lines ü\r\n\r\ndata: [DONE]\n\ndata: cut";
        let want = ["{\"a\":1}", "two\nlines ü", "[DONE]"];
        assert_eq!(events(&[text.as_bytes()]), want);
        for size in 1..9 {
            assert_eq!(events(&text.as_bytes().chunks(size).collect::<Vec<_>>()), want, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let line = vec![b'x'; MAX_EVENT + 1];
        assert!(matches!(events.push(&line, |_| Ok(())), Err(Failure::Malformed(_))));
        assert!(matches!(Events::default().push(b"data: \xff\n", |_| Ok(())), Err(Failure::Malformed(_))));
    }

    fn watched(events: &[&str]) -> Result<Option<Answer>, Failure> {
        let mut watch = Watch::new(Instant::now());
        for event in events {
            read(event, &mut watch)?;
        }
        Ok(watch.answer())
    }

    #[test]
    fn both_apis_are_counted_alike() {
        let completion = [
            r#"{"choices":[{"text":"a","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"b","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}]}"#,
        ];
        let chat = [
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"a"},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"content":"b"},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        ];
        for events in [&completion[..], &chat] {
            let answer = watched(events).unwrap().unwrap();
            assert_eq!((answer.output_tokens, answer.gaps.len(), answer.counted), (2, 1, Counted::Chunks));
            let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;
            let answer = watched(&[events, &[usage, "[DONE]"]].concat()).unwrap().unwrap();
            assert_eq!((answer.output_tokens, answer.input_tokens), (5, Some(3)));
        }
        // Token ids only: texts are empty, yet tokens came.
        let silent = r#"{"choices":[{"text":"","finish_reason":null}]}"#;
        assert_eq!(watched(&[silent, silent, completion[2]]).unwrap().unwrap().output_tokens, 2);
    }

    #[test]
    fn faults_in_the_stream_are_faults() {
        let token = r#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        assert_eq!(watched(&[token]).unwrap(), None, "cut before its end");
        let error =
            watched(&[token, r#"{"error":{"message":"the engine has failed","code":500}}"#]).unwrap_err();
        assert_eq!(error, Failure::Stream("the engine has failed".to_owned()));
        assert!(matches!(watched(&["<html>"]), Err(Failure::Malformed(_))));
    }

    #[test]
    fn long_messages_are_shortened() {
        assert_eq!(shorten("a\n  b"), "a b");
        assert_eq!(shorten(&"ü".repeat(300)).chars().count(), 203);
    }
}
