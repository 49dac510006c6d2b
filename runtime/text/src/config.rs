//! The part of tokenizer_config.json that matters here.

use crate::LoadError;
use serde_json::Value;
use std::collections::BTreeMap;

/// Chat templates and the names of special tokens. Everything else in the file either is in tokenizer.json too or
/// belongs to Python.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Template source by name; a single template is named `default`.
    pub chat_templates: BTreeMap<String, String>,
    /// `bos_token`, `eos_token`, ... as templates see them.
    pub special_tokens: BTreeMap<String, String>,
}

/// Variables that transformers passes to templates when they are set.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerConfig {
    /// Reads tokenizer_config.json; `chat_template_jinja` is the file of that name, which takes precedence.
    ///
    /// # Errors
    /// Not JSON, or a field of a shape that transformers does not write.
    pub fn from_json(json: &[u8], chat_template_jinja: Option<&str>) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::Config(reason);
        let file: Value = serde_json::from_slice(json).map_err(|error| wrong(error.to_string()))?;
        let mut config = Self::default();
        match &file["chat_template"] {
            Value::Null => {}
            Value::String(source) => {
                config.chat_templates.insert("default".into(), source.clone());
            }
            Value::Array(list) => {
                for entry in list {
                    let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str())
                    else {
                        return Err(wrong("chat_template: list entry without name and template".into()));
                    };
                    config.chat_templates.insert(name.into(), source.into());
                }
            }
            _ => return Err(wrong("chat_template: neither text nor list".into())),
        }
        if let Some(source) = chat_template_jinja {
            config.chat_templates.insert("default".into(), source.into());
        }
        for name in SPECIAL_TOKENS {
            let token = match &file[name] {
                Value::Null => continue,
                Value::String(text) => Some(text.as_str()),
                object => object["content"].as_str(),
            };
            let token = token.ok_or_else(|| wrong(format!("{name}: neither text nor a token")))?;
            config.special_tokens.insert(name.into(), token.into());
        }
        Ok(config)
    }
}
