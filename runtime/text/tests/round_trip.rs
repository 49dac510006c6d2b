//! Ids and text, whole and in pieces, held against the tokenizers crate.

mod small_tokenizers;

use lathe_text::{LoadError, StopMatcher, TextError, TextModel, TokenizerConfig};
use proptest::prelude::*;
use small_tokenizers::{byte_fallback, byte_level, metaspace, model};
use tokenizers::Tokenizer;

/// Words, controls, characters of one to four bytes, joined and combining forms.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[a-z ]{0,6}",
        2 => any::<char>().prop_map(String::from),
        1 => "\\PC{0,4}",
        2 => prop::sample::select(vec![
            "hello", " world", "  ", "\n\n", "🙂", "👩‍👩‍👧", "你好", "é", "e\u{301}", "\u{fffd}", "▁", "<0x41>",
            "<|end|>", "<|end|>more", "<|begin|>", "<|en", "d|>", "<think>", "<s>", "</s>", "<unk>",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn streamed(model: &TextModel, ids: &[u32], skip_special: bool) -> String {
    let mut stream = model.detokenizer(skip_special, false);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.flush());
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn deltas_sum_to_the_whole(text in text(), skip_special: bool) {
        for file in [byte_level(), byte_fallback(), metaspace()] {
            let (model, reference) = (model(&file), Tokenizer::from_bytes(&file).unwrap());
            let ids = model.encode(&text, true).unwrap();
            let expected = reference.encode(text.as_str(), true).unwrap();
            prop_assert_eq!(&ids[..], expected.get_ids());
            let whole = reference.decode(&ids, skip_special).unwrap();
            prop_assert_eq!(&streamed(&model, &ids, skip_special), &whole);
            prop_assert_eq!(model.decode(&ids, skip_special), whole);
        }
    }

    /// Ids that no text gives: broken characters come out as in a lossy conversion of all bytes.
    #[test]
    fn random_ids_never_split_a_character(ids in prop::collection::vec(0u32..275, 0..24), skip_special: bool) {
        let file = byte_level();
        let (bytes, reference) = (model(&file), Tokenizer::from_bytes(&file).unwrap());
        prop_assert_eq!(streamed(&bytes, &ids, skip_special), reference.decode(&ids, skip_special).unwrap());
        let fallback = model(&byte_fallback());
        let all: Vec<u8> = ids.iter().flat_map(|id| fallback.token_bytes(*id).unwrap().to_vec()).collect();
        let lossy = String::from_utf8_lossy(&all).into_owned();
        let lossy = lossy.strip_prefix(' ').map(String::from).unwrap_or(lossy);
        prop_assert_eq!(streamed(&fallback, &ids, false), lossy);
    }

    /// No part untrusted: the split done here equals the crate's.
    #[test]
    fn untrusted_text_has_no_special_id_and_is_not_lost(text in text()) {
        for file in [byte_level(), byte_fallback(), metaspace()] {
            let model = model(&file);
            let mut reference = Tokenizer::from_bytes(&file).unwrap();
            let plain = model.encode_untrusted(&text, false).unwrap();
            prop_assert!(plain.iter().all(|id| !model.is_special(*id) || *id == 0), "a control id from {text:?}");
            reference.set_encode_special_tokens(true);
            let expected = reference.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(&plain[..], expected.get_ids());
            let with_begin = model.encode_untrusted(&text, true).unwrap();
            prop_assert_eq!(&with_begin[1..], &plain[..]);
        }
    }

    #[test]
    fn stop_matcher_equals_a_search_of_the_whole(
        text in "[abc é]{0,24}",
        stops in prop::collection::vec("[abc é]{1,4}", 0..4),
        cuts in prop::collection::vec(0usize..24, 0..8),
        include: bool,
    ) {
        let mut matcher = StopMatcher::new(stops.clone(), include).unwrap();
        let mut ends: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
        ends.push(text.len());
        ends.sort_unstable();
        let (mut out, mut stopped, mut begin) = (String::new(), None, 0);
        for end in ends.into_iter().filter(|end| *end <= text.len()) {
            let emitted = matcher.push(&text[begin..end]);
            out.push_str(&emitted.text);
            stopped = stopped.or(emitted.stop);
            begin = end;
        }
        out.push_str(&matcher.flush());
        // The naive way: grow the text by characters, look at its end.
        let boundaries = (0..=text.len()).filter(|end| text.is_char_boundary(*end));
        let first = boundaries.clone().find_map(|end| {
            let ending = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(*stop));
            let (index, stop) = ending.max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index)))?;
            Some((index, if include { end } else { end - stop.len() }))
        });
        prop_assert_eq!(stopped, first.map(|(index, _)| index));
        prop_assert_eq!(&out[..], &text[..first.map_or(text.len(), |(_, end)| end)]);
    }
}

#[test]
fn text_is_held_only_while_it_could_be_a_stop() {
    let mut matcher = StopMatcher::new(vec!["</end>".into()], false).unwrap();
    let texts: Vec<_> =
        ["ab<", "/en", "x", "</end", ">tail"].iter().map(|delta| matcher.push(delta).text).collect();
    assert_eq!(texts, ["ab", "", "</enx", "", ""]);
    assert_eq!(matcher.flush(), "");
    assert_eq!(
        StopMatcher::new(vec!["a".into(), String::new()], false).unwrap_err(),
        TextError::EmptyStop(1)
    );
}

#[test]
fn a_character_comes_whole() {
    let model = model(&byte_level());
    let ids = model.encode_untrusted("🙂!", false).unwrap();
    assert!(ids.len() > 2, "the test needs a character of several tokens");
    let mut stream = model.detokenizer(true, false);
    let deltas: Vec<_> = ids.iter().map(|id| stream.push(*id)).collect();
    let last = ids.len() - 2;
    assert!(deltas[..last].iter().all(Option::is_none));
    assert_eq!((deltas[last].as_deref(), deltas[last + 1].as_deref()), (Some("🙂"), Some("!")));
    stream.push(ids[0]);
    assert_eq!((stream.flush().as_deref(), stream.flush()), (Some("\u{fffd}"), None));
}

#[test]
fn a_continued_text_keeps_its_first_space() {
    let model = model(&byte_fallback());
    let ids = model.encode("world", false).unwrap();
    assert_eq!(model.detokenizer(true, true).push(ids[0]).as_deref(), Some(" w"));
    assert_eq!(model.detokenizer(true, false).push(ids[0]).as_deref(), Some("w"));
}

#[test]
fn tokens_have_bytes() {
    let level = model(&byte_level());
    let bytes =
        |model: &TextModel, token: &str| model.token_bytes(model.token_id(token).unwrap()).unwrap().to_vec();
    assert_eq!(bytes(&level, "Ġw"), b" w");
    assert_eq!(bytes(&level, "ðŁ"), [0xf0, 0x9f]);
    assert_eq!(bytes(&level, "<|end|>"), b"<|end|>");
    let fallback = model(&byte_fallback());
    assert_eq!(bytes(&fallback, "<0xE4>"), [0xe4]);
    assert_eq!(bytes(&fallback, "▁hell"), b" hell");
    assert_eq!(fallback.token_text(fallback.token_id("<0xE4>").unwrap()).unwrap(), "\u{fffd}");
    assert_eq!(fallback.token_bytes(fallback.n_tokens()), None);
}

#[test]
fn broken_files_are_typed() {
    let load = |file: &[u8]| TextModel::load(file, &TokenizerConfig::default()).unwrap_err();
    assert!(matches!(load(b"{}"), LoadError::Tokenizer(_)));
    let mut file: serde_json::Value = serde_json::from_slice(&byte_level()).unwrap();
    file["decoder"] = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let error = load(&serde_json::to_vec(&file).unwrap());
    assert!(matches!(error, LoadError::UnsupportedDecoder { what } if what == "WordPiece"));
}
