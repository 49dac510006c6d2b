//! Two small tokenizers, written as their models' files are.

use lathe_text::{TextModel, TokenizerConfig};
use serde_json::{Value, json};

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special, "special": special,
    })
}

fn file(
    added: Vec<Value>,
    normalizer: Value,
    pre: Value,
    post: Value,
    decoder: Value,
    model: Value,
) -> Vec<u8> {
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model,
    });
    serde_json::to_vec(&file).unwrap()
}

fn bpe(vocab: serde_json::Map<String, Value>, merges: &[(&str, &str)], byte_fallback: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": if byte_fallback { Value::from("<unk>") } else { Value::Null },
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback, "vocab": vocab, "merges": merges,
    })
}

fn begin(token: &str, id: u32) -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// GPT-2's characters for the 256 bytes.
fn byte_characters() -> Vec<char> {
    let mut spare = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => byte as char,
            _ => {
                spare += 1;
                char::from_u32(spare - 1).unwrap()
            }
        })
        .collect()
}

/// Llama 3's kind: bytes, a few merges (one of them half of a character), control tokens, one added word.
pub fn byte_level() -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    for (id, c) in byte_characters().into_iter().enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    let merges =
        [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("ð", "Ł"), ("ä", "½"), ("Ċ", "Ċ"), ("|", ">")];
    for (a, b) in merges {
        vocab.insert(format!("{a}{b}"), vocab.len().into());
    }
    let first = vocab.len();
    let names = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|end|>more"];
    let mut tokens: Vec<_> =
        names.iter().enumerate().map(|(at, name)| added(first + at, name, true)).collect();
    tokens.push(added(first + names.len(), "<think>", false));
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    file(
        tokens,
        Value::Null,
        level.clone(),
        begin("<|begin|>", first as u32),
        level,
        bpe(vocab, &merges, false),
    )
}

/// Llama 2's kind: a space before the text, rare characters as bytes.
pub fn byte_fallback() -> Vec<u8> {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ('a'..='z').chain('A'..='Z').chain("▁.,é你".chars()).map(String::from);
    for token in ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(bytes).chain(letters) {
        vocab.insert(token, vocab.len().into());
    }
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "w"), ("▁", "▁"), ("▁", "hell")];
    for (a, b) in merges {
        vocab.insert(format!("{a}{b}"), vocab.len().into());
    }
    let tokens =
        ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(id, name)| added(id, name, true)).collect();
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    file(tokens, normalizer, Value::Null, begin("<s>", 1), decoder, bpe(vocab, &merges, true))
}

/// As `byte_fallback`, in the newer form: Metaspace before the first word only, and as decoder.
#[allow(dead_code)] // not every test binary uses it
pub fn metaspace() -> Vec<u8> {
    let mut file: Value = serde_json::from_slice(&byte_fallback()).unwrap();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] = metaspace.clone();
    file["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]});
    serde_json::to_vec(&file).unwrap()
}

#[allow(dead_code)] // not every test binary uses it
pub fn model(file: &[u8]) -> TextModel {
    TextModel::load(file, &TokenizerConfig::default()).unwrap()
}
