//! What is asked: prompts of random tokens, with or without a prefix that all share, or those of a file.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::random::{Random, Use};

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Token ids.
    Ids(Vec<u32>),
    /// Text.
    Text(String),
    /// A conversation.
    Messages(Vec<Value>),
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What the model is given.
    pub prompt: Prompt,
    /// Longest answer, in tokens.
    pub max_tokens: u32,
}

/// More than any context holds.
const MAX_TOKENS: u32 = 100_000_000;

/// Lengths in tokens, all alike or spread evenly: `512`, `256..768`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths(RangeInclusive<u32>);

impl std::str::FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(n) if (1..=MAX_TOKENS).contains(&n) => Ok(n),
            _ => Err(format!("{text:?} is not a number of tokens in 1..={MAX_TOKENS}")),
        };
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let (low, high) = (number(low)?, number(high)?);
        if low > high {
            return Err(format!("{text:?}: the first is the smaller one"));
        }
        Ok(Lengths(low..=high))
    }
}

impl std::fmt::Display for Lengths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (low, high) = (self.0.start(), self.0.end());
        if low == high { write!(f, "{low}") } else { write!(f, "{low}..{high}") }
    }
}

impl Lengths {
    /// The longest.
    pub fn max(&self) -> u32 {
        *self.0.end()
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let (low, high) = (*self.0.start(), *self.0.end());
        low + random.below(high - low + 1)
    }
}

/// What random prompts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alphabet {
    /// Token ids below a vocabulary's size: lengths are exact.
    Ids(u32),
    /// Short English words, each of which most tokenizers make one token of: lengths are near, servers count them.
    Words,
}

/// Common words that begin with a space in a text and are one token in most vocabularies.
const WORDS: &str = "the of and to in is that it was for on are with as his they be at one have this from or had by hot but \
some what there we can out other were all your when up use word how said an each she which do their time if will way \
about many then them would write like so these her long make thing see him two has look more day could go come did my \
sound no most number who over know water than call first people may down side been now find";

impl Alphabet {
    fn prompt(&self, parts: &mut [(Random, u32)]) -> Prompt {
        match self {
            Alphabet::Ids(below) => Prompt::Ids(
                parts
                    .iter_mut()
                    .flat_map(|(random, n)| (0..*n).map(|_| random.below(*below)).collect::<Vec<_>>())
                    .collect(),
            ),
            Alphabet::Words => {
                let words: Vec<&str> = WORDS.split(' ').collect();
                let mut text = String::new();
                for (random, n) in parts {
                    for _ in 0..*n {
                        if !text.is_empty() {
                            text.push(' ');
                        }
                        text.push_str(words[random.below(words.len() as u32) as usize]);
                    }
                }
                Prompt::Text(text)
            }
        }
    }
}

/// Where requests come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Dataset {
    /// Random tokens.
    Random {
        /// Tokens of a prompt after the shared ones.
        input: Lengths,
        /// Tokens of an answer.
        output: Lengths,
        /// Tokens that all prompts begin with.
        shared_prefix: u32,
        /// What prompts are made of.
        alphabet: Alphabet,
    },
    /// Those of a file, over and over.
    File(Vec<Ask>),
}

impl Dataset {
    /// Request number `index`: a function of the seed and the number.
    pub fn ask(&self, seed: u64, index: u64) -> Ask {
        match self {
            Dataset::File(asks) => asks[(index % asks.len().max(1) as u64) as usize].clone(),
            Dataset::Random { input, output, shared_prefix, alphabet } => {
                let mut random = Random::new(seed, Use::Request, index);
                let (n_input, max_tokens) = (input.draw(&mut random), output.draw(&mut random));
                let prefix = (Random::new(seed, Use::Prefix, 0), *shared_prefix);
                Ask { prompt: alphabet.prompt(&mut [prefix, (random, n_input)]), max_tokens }
            }
        }
    }

    /// The longest prompt with its answer, where it is known before tokenisation.
    pub fn longest(&self) -> Option<u64> {
        match self {
            Dataset::Random { input, output, shared_prefix, .. } => {
                Some(u64::from(input.max()) + u64::from(output.max()) + u64::from(*shared_prefix))
            }
            Dataset::File(_) => None,
        }
    }
}

/// Reads a file: JSON objects, one a line, or one JSON array of them. Each has `prompt` (text or token ids), or
/// `messages`, or ShareGPT's `conversations` (its first turn is asked), or is a line of OpenAI's batch form with a `body`.
/// `max_tokens` and its other common spellings limit the answer, else `default_max_tokens` does.
///
/// # Errors
/// The line, or the place in the array, and what is wrong with it.
pub fn read(text: &str, default_max_tokens: u32) -> Result<Vec<Ask>, String> {
    let entries: Vec<(String, Value)> = if text.trim_start().starts_with('[') {
        let list: Vec<Value> = serde_json::from_str(text).map_err(|e| format!("is no JSON array: {e}"))?;
        list.into_iter().enumerate().map(|(i, v)| (format!("entry {}", i + 1), v)).collect()
    } else {
        text.lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| {
                let place = format!("line {}", i + 1);
                let value = serde_json::from_str(line).map_err(|e| format!("{place}: no JSON: {e}"))?;
                Ok((place, value))
            })
            .collect::<Result<_, String>>()?
    };
    let asks: Vec<Ask> = entries
        .into_iter()
        .map(|(place, value)| ask(value, default_max_tokens).map_err(|why| format!("{place}: {why}")))
        .collect::<Result<_, _>>()?;
    if asks.is_empty() {
        return Err("holds no request".to_owned());
    }
    Ok(asks)
}

/// Fields that limit an answer, in the order in which they count.
const LIMITS: [&str; 5] =
    ["max_tokens", "max_completion_tokens", "output_tokens", "output_len", "expected_output_len"];

fn ask(value: Value, default_max_tokens: u32) -> Result<Ask, String> {
    let Value::Object(mut map) = value else { return Err("is no object".to_owned()) };
    if let Some(Value::Object(body)) = map.remove("body") {
        map = body;
    }
    let max_tokens =
        match LIMITS.iter().find_map(|name| map.get(*name).filter(|v| !v.is_null()).map(|v| (name, v))) {
            None => default_max_tokens,
            Some((name, value)) => value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n > 0)
                .ok_or_else(|| format!("{name}: {value} is not a number of tokens above 0"))?,
        };
    Ok(Ask { prompt: prompt(map)?, max_tokens })
}

fn prompt(mut map: Map<String, Value>) -> Result<Prompt, String> {
    if let Some(messages) = map.remove("messages") {
        return match messages {
            Value::Array(list) if !list.is_empty() => Ok(Prompt::Messages(list)),
            _ => Err("messages: must be a list with at least one message".to_owned()),
        };
    }
    if let Some(turns) = map.remove("conversations").or_else(|| map.remove("conversation")) {
        let text = turns.get(0).and_then(|turn| turn.get("value").or_else(|| turn.get("content")));
        return match text {
            Some(Value::String(text)) if !text.is_empty() => Ok(Prompt::Text(text.clone())),
            _ => Err("conversations: its first turn has no text".to_owned()),
        };
    }
    match map.remove("prompt") {
        Some(Value::String(text)) if !text.is_empty() => Ok(Prompt::Text(text)),
        Some(Value::Array(list)) if !list.is_empty() => list
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .map(Prompt::Ids)
            .ok_or_else(|| "prompt: must be text or token ids".to_owned()),
        Some(_) => Err("prompt: must be text or token ids, and not empty".to_owned()),
        None => Err("has none of prompt, messages, conversations".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(input: &str, shared_prefix: u32, alphabet: Alphabet) -> Dataset {
        let (input, output) = (input.parse().unwrap(), "3..5".parse().unwrap());
        Dataset::Random { input, output, shared_prefix, alphabet }
    }

    fn ids(ask: Ask) -> Vec<u32> {
        match ask.prompt {
            Prompt::Ids(ids) => ids,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lengths_are_as_asked_and_spread() {
        let data = random("20..30", 0, Alphabet::Ids(100));
        let all: Vec<Ask> = (0..500).map(|i| data.ask(1, i)).collect();
        let mut lengths: Vec<usize> = all.iter().map(|a| ids(a.clone()).len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        assert_eq!(lengths, (20..=30).collect::<Vec<_>>());
        assert!(all.iter().all(|a| (3..=5).contains(&a.max_tokens)));
        assert!(all.iter().flat_map(|a| ids(a.clone())).all(|id| id < 100));
        assert_eq!(data.longest(), Some(35));
        assert_eq!(ids(random("64", 0, Alphabet::Ids(9)).ask(1, 0)).len(), 64);
        for text in ["", "0", "5..4", "-1", "a", "1..b"] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_shared_prefix_is_shared_and_nothing_else_is() {
        let data = random("40", 60, Alphabet::Ids(50_000));
        let (a, b) = (ids(data.ask(1, 0)), ids(data.ask(1, 1)));
        assert_eq!((a.len(), b.len()), (100, 100));
        assert_eq!(a[..60], b[..60]);
        assert_ne!(a[60..], b[60..]);
        assert_ne!(a[..60], ids(data.ask(2, 0))[..60]);
        assert_eq!(a, ids(data.ask(1, 0)));
    }

    #[test]
    fn words_are_as_many_as_tokens_were_asked_for() {
        let Prompt::Text(text) = random("40", 5, Alphabet::Words).ask(1, 0).prompt else { panic!("no text") };
        assert_eq!(text.split(' ').count(), 45);
        assert!(text.split(' ').all(|w| !w.is_empty()));
    }

    #[test]
    fn common_forms_of_files_are_read() {
        let text = |t: &str| Prompt::Text(t.to_owned());
        for (line, want, max_tokens) in [
            (r#"{"prompt":"a b","max_tokens":9}"#, text("a b"), 9),
            (r#"{"prompt":[1,2,3]}"#, Prompt::Ids(vec![1, 2, 3]), 7),
            (r#"{"prompt":"a","output_tokens":3}"#, text("a"), 3),
            (
                r#"{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"ho"}]}"#,
                text("hi"),
                7,
            ),
            (
                r#"{"custom_id":"1","method":"POST","url":"/v1/completions","body":{"prompt":"x","max_tokens":2}}"#,
                text("x"),
                2,
            ),
            (
                r#"{"messages":[{"role":"user","content":"q"}],"max_completion_tokens":4}"#,
                Prompt::Messages(vec![serde_json::json!({"role": "user", "content": "q"})]),
                4,
            ),
        ] {
            let want = vec![Ask { prompt: want, max_tokens }];
            assert_eq!(read(line, 7).unwrap(), want, "{line}");
            assert_eq!(read(&format!("\n[{line}]\n"), 7).unwrap(), want, "as an array: {line}");
        }
        let two = read("{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\"}\n", 7).unwrap();
        let data = Dataset::File(two);
        assert_eq!(data.ask(0, 3).prompt, text("b"), "over and over");
    }

    #[test]
    fn a_bad_line_is_named() {
        for (file, want) in [
            ("", "holds no request"),
            ("{\"prompt\":\"a\"}\nnot json", "line 2: no JSON"),
            ("{\"text\":\"a\"}", "line 1: has none of prompt, messages, conversations"),
            ("{\"prompt\":\"\"}", "line 1: prompt"),
            ("{\"prompt\":[1,-2]}", "line 1: prompt"),
            ("{\"messages\":[]}", "line 1: messages"),
            ("{\"prompt\":\"a\",\"max_tokens\":0}", "line 1: max_tokens: 0"),
            ("{\"conversations\":[]}", "line 1: conversations"),
            ("[{\"prompt\":\"a\"},3]", "entry 2: is no object"),
            ("[{\"prompt\":", "is no JSON array"),
        ] {
            let error = read(file, 7).unwrap_err();
            assert!(error.starts_with(want), "{file}: {error}");
        }
    }
}
