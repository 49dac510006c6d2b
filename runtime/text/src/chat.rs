//! A conversation to the text that the model was trained on.

use crate::mark::{Marker, take_marks, unused_mark};
use crate::template::Templates;
use crate::{ChatError, LoadError, TokenizerConfig};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A conversation as the API has it.
#[derive(Debug, Clone)]
pub struct ChatInput<'a> {
    /// OpenAI's messages. A content is a text, null, or a list of `{"type": "text", "text": ..}`.
    pub messages: &'a [Value],
    /// OpenAI's tools, for templates that know them.
    pub tools: Option<&'a Value>,
    /// Documents, for templates that know them.
    pub documents: Option<&'a Value>,
    /// Ends the prompt where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The answer continues the last message: the prompt ends with its content.
    pub continue_final_message: bool,
    /// `chat_template_kwargs`: further variables.
    pub kwargs: Option<&'a Map<String, Value>>,
    /// A template by name; else `tool_use` where there are tools and it exists, else `default`.
    pub template: Option<&'a str>,
    /// Seconds since 1970 in the zone that templates shall show.
    pub now: i64,
}

/// What a conversation became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    /// The rendered text.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
}

/// What a template can do with a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    Text,
    Parts,
    Both,
}

/// Templates and what must be known to fill them.
#[derive(Debug)]
pub(crate) struct Chat {
    templates: Templates,
    forms: BTreeMap<String, ContentForm>,
    special_tokens: BTreeMap<String, String>,
    marker: Marker,
}

/// Stands behind the last message's content while its end is looked for; the same words as in transformers, so
/// that templates which trim behave the same.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl Chat {
    pub fn new(config: &TokenizerConfig, special: impl Iterator<Item = String>) -> Result<Self, LoadError> {
        let templates = Templates::new(&config.chat_templates)?;
        let mut chat = Self {
            templates,
            forms: BTreeMap::new(),
            special_tokens: config.special_tokens.clone(),
            marker: Marker::new(special),
        };
        chat.forms =
            config.chat_templates.keys().map(|name| (name.clone(), chat.content_form(name))).collect();
        Ok(chat)
    }

    pub fn has_template(&self) -> bool {
        self.templates.choose(None, false).is_ok()
    }

    /// The text, and the places in it that lie inside of what only looks like a control token.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<(String, Vec<usize>), ChatError> {
        let name = self.templates.choose(input.template, input.tools.is_some())?;
        let form = self.forms.get(name).copied().unwrap_or(ContentForm::Text);
        let mut messages = Vec::with_capacity(input.messages.len());
        for (index, message) in input.messages.iter().enumerate() {
            messages.push(with_content(message, form, index)?);
        }
        if input.continue_final_message {
            append_tag(&mut messages)?;
        }
        let mut fill = Fill {
            messages,
            tools: input.tools.cloned().unwrap_or_default(),
            documents: input.documents.cloned().unwrap_or_default(),
            kwargs: Value::Object(input.kwargs.cloned().unwrap_or_default()),
        };
        let text = self.run(name, input, &fill)?;
        let source = self.templates.source(name);
        let Some(mark) = unused_mark(&[&text, &fill.to_string(), source]) else {
            return Err(ChatError::ControlSpelling);
        };
        let mut marked = false;
        for message in &mut fill.messages {
            marked |= self.marker.message(message, mark);
        }
        for other in [&mut fill.tools, &mut fill.documents, &mut fill.kwargs] {
            marked |= self.marker.other(other, mark);
        }
        if !marked {
            return Ok((text, Vec::new()));
        }
        let (again, places) = take_marks(&self.run(name, input, &fill)?, mark);
        if again == text { Ok((text, places)) } else { Err(ChatError::ControlSpelling) }
    }

    fn run(&self, name: &str, input: &ChatInput<'_>, fill: &Fill) -> Result<String, ChatError> {
        let value = minijinja::Value::from_serialize::<&Value>;
        let mut variables = BTreeMap::new();
        for (token, text) in &self.special_tokens {
            variables.insert(token.clone(), minijinja::Value::from(text.as_str()));
        }
        for (key, argument) in fill.kwargs.as_object().into_iter().flatten() {
            variables.insert(key.clone(), value(argument));
        }
        variables.insert("messages".into(), minijinja::Value::from_serialize(&fill.messages));
        variables.insert("tools".into(), value(&fill.tools));
        variables.insert("documents".into(), value(&fill.documents));
        variables.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let mut text = self.templates.render(name, variables, input.now)?;
        if input.continue_final_message {
            cut_at_tag(&mut text)?;
        }
        Ok(text)
    }

    /// Asks the template itself: does a text come out, and does a text in a part come out bare?
    fn content_form(&self, name: &str) -> ContentForm {
        const PROBE: &str = "probe-content";
        let input = ChatInput {
            messages: &[],
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: None,
            template: None,
            now: 0,
        };
        let prints = |content: Value| {
            let fill =
                Fill { messages: vec![json!({"role": "user", "content": content})], ..Fill::default() };
            let text = self.run(name, &input, &fill).unwrap_or_default();
            text.contains(PROBE) && !text.contains("\"text\"") && !text.contains("'text'")
        };
        match (prints(json!(PROBE)), prints(json!([{"type": "text", "text": PROBE}]))) {
            (true, true) => ContentForm::Both,
            (false, true) => ContentForm::Parts,
            _ => ContentForm::Text,
        }
    }
}

#[derive(Default)]
struct Fill {
    messages: Vec<Value>,
    tools: Value,
    documents: Value,
    kwargs: Value,
}

impl std::fmt::Display for Fill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.messages.iter().try_for_each(|message| write!(f, "{message}"))?;
        write!(f, "{}{}{}", self.tools, self.documents, self.kwargs)
    }
}

/// The message with its content in the form that the template takes.
fn with_content(message: &Value, form: ContentForm, index: usize) -> Result<Value, ChatError> {
    let wrong = |reason: &str| ChatError::Message { message: index, reason: reason.to_owned() };
    if !message.is_object() {
        return Err(wrong("is not an object"));
    }
    if !message["role"].is_string() {
        return Err(wrong("role is missing"));
    }
    let mut message = message.clone();
    let content = match &message["content"] {
        Value::Array(parts) => {
            let mut texts = Vec::with_capacity(parts.len());
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(text)) => texts.push(text),
                    (Some("text"), None) => return Err(wrong("content has a text part without text")),
                    (Some(kind), _) => {
                        return Err(wrong(&format!("content part {kind} is not supported; only text is")));
                    }
                    (None, _) => return Err(wrong("content has a part without type")),
                }
            }
            if form != ContentForm::Text {
                return Ok(message);
            }
            Value::from(texts.join("\n"))
        }
        Value::String(text) if form == ContentForm::Parts => json!([{"type": "text", "text": text}]),
        Value::String(_) | Value::Null => return Ok(message),
        _ => return Err(wrong("content is neither text nor a list of parts")),
    };
    message["content"] = content;
    Ok(message)
}

fn append_tag(messages: &mut [Value]) -> Result<(), ChatError> {
    let index = messages.len().saturating_sub(1);
    let content = messages.last_mut().map(|message| &mut message["content"]);
    let text = match content {
        Some(Value::Array(parts)) => parts.last_mut().map(|part| &mut part["text"]),
        other => other,
    };
    match text {
        Some(Value::String(text)) => {
            text.push_str(CONTINUE_TAG);
            Ok(())
        }
        _ => Err(ChatError::Message { message: index, reason: "no text to continue".into() }),
    }
}

fn cut_at_tag(text: &mut String) -> Result<(), ChatError> {
    let Some(at) = text.rfind(CONTINUE_TAG.trim_end()) else {
        return Err(ChatError::Raised(
            "the template does not print the message that shall be continued".into(),
        ));
    };
    let is_whole = text[at..].starts_with(CONTINUE_TAG);
    text.truncate(at);
    if !is_whole {
        // The template trims contents, so it would have trimmed this end too.
        text.truncate(text.trim_end().len());
    }
    Ok(())
}
