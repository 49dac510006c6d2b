//! Tests of the text form on hostile input.

use proptest::prelude::*;

use super::parse;
use crate::arbitrary::Decoder;
use crate::verify::faults;

fn valid() -> String {
    Decoder { attention_bias: true, ..Decoder::plain(0) }.graph().unwrap().to_string()
}

#[test]
fn errors_have_a_place_and_a_reason() {
    for (text, want) in [
        ("", "line 1, column 1: expected \"graph\", found the end"),
        ("graph @g(%x: f32[t]) {", "line 1, column 18: symbol t is not declared after \"where\""),
        ("graph @g() where t in 1..=9, t in 1..=2 {", "line 1, column 30: t: symbol declared twice"),
        ("graph @g() {\n  %a = sin %b : f32[1]", "line 2, column 12: %b is not defined before"),
        ("graph @g(%b: f32[1]) {\n  %a = sin %b : f32[1]", "line 2, column 8: sin %a: unknown op sin"),
        (
            "graph @g(%b: f32[1, 1]) {\n  %a = rms_norm %b : f32[1, 1]",
            "line 2, column 8: rms_norm %a: eps missing",
        ),
        (
            "graph @g(%b: f32[1, 1]) {\n  %a = activation %b {act = silu, eps = 1} : f32[1, 1]",
            "line 2, column 8: activation %a: unknown attribute eps",
        ),
        ("graph @g(%b: f32[1], %b: f32[1]) {", "line 1, column 22: %b: defined twice"),
        ("graph @g() {\n  weight @w : f32[1]\n  weight @w : f32[1]", "line 3, column 10: @w: declared twice"),
        (
            "graph @g() {\n  weight @w : f32[9999999999]",
            "line 2, column 19: integer 9999999999 exceeds 1073741824",
        ),
        ("graph @g() {\n  return\n}\nx", "line 4, column 1: expected the end of the text, found \"x\""),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), want, "{text}");
    }
}

#[test]
fn extents_and_comments_read_back() {
    let text = "graph @g(%x: i32[2*t + 1, t - 3*s, 0]) where t in 1..=8, s in 0..=1 {\n  return %x\n}\n";
    assert_eq!(parse(text).unwrap().to_string(), text);
    let commented = format!("// head\n{}", text.replace(" {\n", " { // inner\n"));
    assert_eq!(parse(&commented).unwrap().to_string(), text);
}

/// Reads a text; a graph that comes out must print to a fixed point, and its faults must be countable.
fn survives(text: &str) -> Result<(), TestCaseError> {
    if let Ok(g) = parse(text) {
        let printed = g.to_string();
        let again = parse(&printed);
        prop_assert!(again.is_ok(), "{:?} in\n{}", again.err(), printed);
        prop_assert_eq!(again.unwrap().to_string(), printed);
        let _ = faults(&g).len();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_string_is_read_or_refused(text in any::<String>()) {
        survives(&text)?;
        survives(&format!("graph @g({text}) {{ return }}"))?;
    }

    #[test]
    fn mutated_graphs_are_read_or_refused(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0..12_usize, "[ -~\\n]{0,6}"), 1..4),
    ) {
        let mut text = valid();
        for (at, length, with) in &cuts {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.replace_range(start..end, with);
        }
        survives(&text)?;
    }

    #[test]
    fn swapped_words_are_read_or_refused(a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let text = valid();
        let mut words: Vec<&str> = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).collect();
        let (a, b) = (a.index(words.len()), b.index(words.len()));
        words.swap(a, b);
        survives(&words.concat())?;
    }
}
