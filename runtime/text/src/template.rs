//! Chat templates, run as transformers runs them.

use crate::python::{Dumps, strftime};
use crate::{ChatError, LoadError};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use std::collections::BTreeMap;

/// The parsed templates of a model.
#[derive(Debug)]
pub(crate) struct Templates {
    environment: Environment<'static>,
    sources: BTreeMap<String, String>,
}

/// `raise_exception`'s message, carried through the engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl Templates {
    pub fn new(sources: &BTreeMap<String, String>) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
        });
        environment.add_filter("tojson", tojson);
        for (name, source) in sources {
            let added = environment.add_template_owned(name.clone(), plain_blocks(source));
            added.map_err(|error| LoadError::Template {
                name: name.clone(),
                line: error.line().unwrap_or(0),
                reason: reason(&error),
            })?;
        }
        Ok(Self { environment, sources: sources.clone() })
    }

    pub fn source(&self, name: &str) -> &str {
        self.sources.get(name).map_or("", String::as_str)
    }

    /// The template to use: the one named, else `tool_use` where there are tools and it exists, else `default`.
    pub fn choose<'a>(&self, name: Option<&'a str>, has_tools: bool) -> Result<&'a str, ChatError> {
        let chosen = match name {
            Some(name) => name,
            None if has_tools && self.sources.contains_key("tool_use") => "tool_use",
            None => "default",
        };
        if self.sources.contains_key(chosen) {
            return Ok(chosen);
        }
        if self.sources.is_empty() {
            return Err(ChatError::NoTemplate);
        }
        let known = self.sources.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(ChatError::UnknownTemplate { name: chosen.to_owned(), known })
    }

    /// `now` as in `ChatInput::now`.
    pub fn render(
        &self,
        name: &str,
        mut variables: BTreeMap<String, Value>,
        now: i64,
    ) -> Result<String, ChatError> {
        let clock = Value::from_function(move |format: String| strftime(now, &format));
        variables.insert("strftime_now".into(), clock);
        let rendered = self.environment.get_template(name).and_then(|template| template.render(variables));
        rendered.map_err(|error| match raised(&error) {
            Some(message) => ChatError::Raised(message),
            None => ChatError::Template {
                name: name.to_owned(),
                line: error.line().unwrap_or(0),
                reason: reason(&error),
            },
        })
    }
}

fn raised(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return Some(message.clone());
        }
        source = inner.source();
    }
    None
}

fn reason(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// transformers' `tojson`: `json.dumps` with `ensure_ascii=False`, and no HTML escapes.
fn tojson(_: &State, value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let (item, key) = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ => (item.to_owned(), key.to_owned()),
    };
    let dumps = Dumps {
        indent,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        item_separator,
        key_separator,
    };
    options.assert_all_used()?;
    let plain = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(dumps.text(&plain))
}

/// `{% generation %}` blocks mark trained text and print their body; an `if true` does the same here.
fn plain_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let inside = &rest[open + 2..open + len];
        let name = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let plain = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out.push_str(&rest[..open + 2]);
        if plain == name {
            out.push_str(inside);
        } else {
            out.push_str(&inside.replace(name, plain));
        }
        out.push_str("%}");
        rest = &rest[open + len + 2..];
    }
    out.push_str(rest);
    out
}
