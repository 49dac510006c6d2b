//! The text side of a checkpoint: tokenizer, chat templates, special tokens.

use std::collections::HashMap;
use std::path::Path;

use lathe_plan::schema::TextConfig;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{parse_object, read_optional};
use crate::error::{CompileError, Result};

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Spellings that transformers hands to a template.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokenizer bytes and what templates need.
#[derive(Clone, Debug, PartialEq)]
pub struct TextSide {
    /// Goes into the plan's `TEXT`.
    pub config: TextConfig,
    /// tokenizer.json as it is.
    pub tokenizer_json: Vec<u8>,
}

impl TextSide {
    /// Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and the template files of `dir`. All but
    /// the first may be absent.
    ///
    /// # Errors
    /// No tokenizer.json, with the remedy; a file that is not what its name says.
    pub fn read(dir: &Path) -> Result<Self> {
        let tokenizer_json = tokenizer(dir)?;
        let object = |file: &str| -> Result<Map<String, Value>> {
            read_optional(&dir.join(file))?.map_or(Ok(Map::new()), |bytes| parse_object(file, &bytes))
        };
        let config = object(TOKENIZER_CONFIG)?;
        let map = object("special_tokens_map.json")?;
        let special_tokens = SPECIAL
            .iter()
            .filter_map(|&name| {
                let spelling =
                    config.get(name).and_then(spelling).or_else(|| map.get(name).and_then(spelling))?;
                Some((name.to_owned(), spelling.to_owned()))
            })
            .collect();
        Ok(TextSide {
            config: TextConfig {
                chat_templates: templates(dir, &config)?,
                special_tokens,
                clean_up_spaces: config
                    .get("clean_up_tokenization_spaces")
                    .and_then(Value::as_bool)
                    .unwrap_or(false),
            },
            tokenizer_json,
        })
    }
}

/// A token is a string or an AddedToken object.
fn spelling(value: &Value) -> Option<&str> {
    match value {
        Value::String(s) => Some(s),
        Value::Object(token) => token.get("content").and_then(Value::as_str),
        _ => None,
    }
}

fn tokenizer(dir: &Path) -> Result<Vec<u8>> {
    let what = "tokenizer.json";
    if let Some(bytes) = read_optional(&dir.join(what))? {
        return match serde_json::from_slice::<HashMap<String, IgnoredAny>>(&bytes) {
            Ok(fields) if fields.contains_key("model") => Ok(bytes),
            Ok(_) => Err(CompileError::input(
                what,
                "has no field model: it is not a tokenizer of the tokenizers library",
            )),
            Err(e) => Err(CompileError::input(what, format!("is not JSON: {e}"))),
        };
    }
    let error = |why: &str| CompileError::input(what, format!("is missing in {}{why}", dir.display()));
    let slow = ["tokenizer.model", "vocab.json", "spiece.model", "tekken.json"];
    Err(match slow.iter().find(|file| dir.join(file).exists()) {
        Some(file) => error(&format!(", and {file} alone is not read")).remedy(format!(
            "convert it once with transformers: python -c \"from transformers import AutoTokenizer; \
             AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}')\"",
            dir.display()
        )),
        None => error("").remedy("pass --tokenizer DIR with the tokenizer.json of the model that this checkpoint was made from, or --tokenizer none"),
    })
}

/// Templates by name: those of tokenizer_config.json, then template files, which win.
fn templates(dir: &Path, config: &Map<String, Value>) -> Result<Vec<(String, String)>> {
    let key = format!("{TOKENIZER_CONFIG}: chat_template");
    let mut templates: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, text: &str| match templates.iter_mut().find(|(n, _)| n == name) {
        Some(entry) => entry.1 = text.to_owned(),
        None => templates.push((name.to_owned(), text.to_owned())),
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => put("default", text),
        Some(Value::Array(list)) => {
            for entry in list {
                let field = |f: &str| entry.get(f).and_then(Value::as_str);
                match (field("name"), field("template")) {
                    (Some(name), Some(text)) => put(name, text),
                    _ => {
                        return Err(CompileError::input(
                            key,
                            "is a list, and an entry lacks name or template",
                        ));
                    }
                }
            }
        }
        Some(Value::Object(map)) => {
            for (name, text) in map {
                match text.as_str() {
                    Some(text) => put(name, text),
                    None => return Err(CompileError::input(key, format!("entry {name} is no string"))),
                }
            }
        }
        Some(_) => return Err(CompileError::input(key, "is neither a string nor named templates")),
    }
    if let Some(bytes) = read_optional(&dir.join("chat_template.json"))? {
        let fields = parse_object("chat_template.json", &bytes)?;
        match fields.get("chat_template").and_then(Value::as_str) {
            Some(text) => put("default", text),
            None => return Err(CompileError::input("chat_template.json", "has no string chat_template")),
        }
    }
    if let Some(bytes) = read_optional(&dir.join("chat_template.jinja"))? {
        put("default", &utf8("chat_template.jinja", bytes)?);
    }
    let more = dir.join("additional_chat_templates");
    if more.is_dir() {
        let entries = std::fs::read_dir(&more).map_err(|e| CompileError::io(&more, e))?;
        let mut files = Vec::new();
        for entry in entries {
            files.push(entry.map_err(|e| CompileError::io(&more, e))?.path());
        }
        files.sort();
        for path in files.iter().filter(|p| p.extension().is_some_and(|e| e == "jinja")) {
            let Some(name) = path.file_stem().and_then(|s| s.to_str()) else { continue };
            let bytes = std::fs::read(path).map_err(|e| CompileError::io(path, e))?;
            put(name, &utf8(name, bytes)?);
        }
    }
    Ok(templates)
}

fn utf8(what: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| CompileError::input(what, "is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const TOKENIZER: (&str, &str) = ("tokenizer.json", r#"{"model": {"type": "BPE"}}"#);

    #[test]
    fn a_template_comes_from_wherever_it_was_published() {
        let named = r#"{"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#;
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);
        let rows: [Row<'_>; 7] = [
            (&[], &[]),
            (&[(TOKENIZER_CONFIG, r#"{"chat_template": "S"}"#)], &[("default", "S")]),
            (&[(TOKENIZER_CONFIG, named)], &[("default", "D"), ("tool_use", "T")]),
            (&[("chat_template.jinja", "J")], &[("default", "J")]),
            (
                &[(TOKENIZER_CONFIG, named), ("chat_template.jinja", "J")],
                &[("default", "J"), ("tool_use", "T")],
            ),
            (&[("chat_template.json", r#"{"chat_template": "L"}"#)], &[("default", "L")]),
            (
                &[("chat_template.jinja", "J"), ("additional_chat_templates/rag.jinja", "R")],
                &[("default", "J"), ("rag", "R")],
            ),
        ];
        for (files, want) in rows {
            let mut all = vec![TOKENIZER];
            all.extend(files);
            let side = TextSide::read(dir(&all).path()).unwrap();
            let got: Vec<(&str, &str)> =
                side.config.chat_templates.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
            assert_eq!(got, want);
            assert_eq!(side.tokenizer_json, TOKENIZER.1.as_bytes());
        }
    }

    #[test]
    fn special_tokens_are_strings_or_objects() {
        let d = dir(&[
            TOKENIZER,
            (
                TOKENIZER_CONFIG,
                r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
                    "clean_up_tokenization_spaces": true}"#,
            ),
            ("special_tokens_map.json", r#"{"pad_token": "<pad>", "eos_token": "other"}"#),
        ]);
        let side = TextSide::read(d.path()).unwrap();
        let want = [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>")];
        assert_eq!(side.config.special_tokens, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(side.config.clean_up_spaces);
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
        let rows: [Row<'_>; 8] = [
            (&[("tokenizer.model", "x")], "and tokenizer.model alone is not read", "AutoTokenizer"),
            (&[], "tokenizer.json: is missing in", "--tokenizer DIR"),
            (&[("tokenizer.json", "{")], "tokenizer.json: is not JSON", ""),
            (&[("tokenizer.json", "{}")], "tokenizer.json: has no field model", ""),
            (&[TOKENIZER, (TOKENIZER_CONFIG, "[]")], "tokenizer_config.json: is JSON but no object", ""),
            (&[TOKENIZER, (TOKENIZER_CONFIG, r#"{"chat_template": 3}"#)], "neither a string nor", ""),
            (
                &[TOKENIZER, (TOKENIZER_CONFIG, r#"{"chat_template": [{"name": "x"}]}"#)],
                "lacks name or template",
                "",
            ),
            (&[TOKENIZER, ("chat_template.json", "{}")], "has no string chat_template", ""),
        ];
        for (files, why, advice) in rows {
            let error = TextSide::read(dir(files).path()).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
            let CompileError::Input { remedy, .. } = error else { panic!("{error}") };
            assert!(remedy.unwrap_or_default().contains(advice));
        }
    }
}
