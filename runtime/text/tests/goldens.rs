//! Rendered text and ids equal transformers' `apply_chat_template` (tools/goldens/chat.json) on the fixtures.

use lathe_text::{ChatInput, TextModel, TokenizerConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn checkpoint(name: &str) -> PathBuf {
    if name == "demo" {
        return root().join("tools/demo-model");
    }
    let made =
        std::env::var_os("LATHE_FIXTURES").map_or_else(|| root().join("target/fixtures"), PathBuf::from);
    made.join(name)
}

fn load(name: &str) -> TextModel {
    let path = checkpoint(name);
    let read = |file: &str| std::fs::read(path.join(file));
    let Ok(tokenizer) = read("tokenizer.json") else {
        panic!("{} is missing: run ./tools/test, which makes fixtures", path.display())
    };
    let template = read("chat_template.jinja").ok().map(|bytes| String::from_utf8(bytes).unwrap());
    let config =
        TokenizerConfig::from_json(&read("tokenizer_config.json").unwrap(), template.as_deref()).unwrap();
    TextModel::load(&tokenizer, &config).unwrap()
}

fn input(case: &Value) -> ChatInput<'_> {
    let kwargs = &case["kwargs"];
    let flag = |name: &str| kwargs[name].as_bool().unwrap_or(false);
    ChatInput {
        messages: case["messages"].as_array().unwrap(),
        tools: kwargs.get("tools"),
        documents: None,
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        kwargs: kwargs.as_object(),
        template: None,
        now: 0,
    }
}

/// Per model: the cases of `list` in chat.json.
fn cases(list: &str) -> BTreeMap<String, Vec<Value>> {
    let file = std::fs::read(root().join("tools/goldens/chat.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let mut by_model: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for case in file[list].as_array().unwrap() {
        by_model.entry(case["model"].as_str().unwrap().to_owned()).or_default().push(case.clone());
    }
    by_model
}

#[test]
fn chat_equals_transformers() {
    let mut n_cases = 0;
    for (name, cases) in cases("cases") {
        let model = load(&name);
        for case in cases {
            let prompt = model.chat(&input(&case)).unwrap();
            assert_eq!(prompt.text, case["text"].as_str().unwrap(), "{name} {}", case["messages"]);
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(prompt.ids, ids, "{name} {}", case["messages"]);
            n_cases += 1;
        }
    }
    assert!(n_cases >= 30, "{n_cases} cases");
}

#[test]
fn spelled_control_tokens_give_none() {
    let mut n_cases = 0;
    for (name, cases) in cases("spelled_special") {
        let model = load(&name);
        let count = |ids: &[u32]| ids.iter().filter(|id| model.is_special(**id)).count();
        for case in cases {
            let mut harmless = case["messages"].as_array().unwrap().clone();
            harmless.iter_mut().for_each(|message| message["content"] = "harmless".into());
            let own = model.chat(&ChatInput { messages: &harmless, ..input(&case) }).unwrap();
            let prompt = model.chat(&input(&case)).unwrap();
            assert_eq!(count(&prompt.ids), count(&own.ids), "{name} {}", case["messages"]);
            assert!(
                count(&model.encode(&prompt.text, false).unwrap()) > count(&own.ids),
                "the case spells nothing"
            );
            n_cases += 1;
        }
    }
    assert!(n_cases >= 5, "{n_cases} cases");
}
