//! `runtime eval` beside transformers on the same text, and as a user meets it.

use std::path::Path;
use std::process::{Command, Output};

use lathe_tests::drive::compile;
use lathe_tests::{fixture, program, root};
use serde_json::Value;

fn eval(plan: &Path, text: &Path, more: &str) -> Output {
    let mut command = Command::new(program("runtime"));
    command.arg("eval").arg(plan).arg("--text").arg(text).args(more.split_whitespace());
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn perplexity_is_that_of_transformers() {
    let goldens = root().join("tools/goldens");
    let text = goldens.join("perplexity.txt");
    let golden: Value =
        serde_json::from_slice(&std::fs::read(goldens.join("perplexity.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut n_cases = 0;
    for (name, model) in
        [("demo", root().join("tools/demo-model")), ("llama32-sharded", fixture("llama32-sharded"))]
    {
        for (dtype, allowed) in [("f32", 1e-3), ("bf16", 0.05)] {
            let plan = dir.path().join(format!("{name}-{dtype}.plan"));
            compile(&["--model", model.to_str().unwrap(), "--dtype", dtype, "--max-seq-len", "512"], &plan)
                .unwrap();
            for case in golden["cases"].as_array().unwrap().iter().filter(|c| c["model"] == name) {
                let flags = format!("--context {} --stride {} --json", case["context"], case["stride"]);
                let got = json(&eval(&plan, &text, &flags));
                assert_eq!((&got["tokens"], &got["scored_tokens"]), (&case["tokens"], &case["scored"]));
                for what in ["perplexity", "bits_per_byte"] {
                    let (got, want) = (got[what].as_f64().unwrap(), case[what].as_f64().unwrap());
                    assert!(
                        (got / want - 1.0).abs() <= allowed,
                        "{name} {dtype} {flags}: {what} {got}, not {want}"
                    );
                }
                n_cases += 1;
            }
        }
    }
    assert_eq!(n_cases, 12);
}

#[test]
fn what_cannot_be_scored_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let model = root().join("tools/demo-model");
    let (plan, mute) = (path("demo.plan"), path("mute.plan"));
    let flags = ["--model", model.to_str().unwrap(), "--max-seq-len", "256"];
    compile(&flags, &plan).unwrap();
    compile(&[&flags[..], &["--tokenizer", "none"]].concat(), &mute).unwrap();
    for (name, bytes) in [("text", &b"Anna has a red bicycle."[..]), ("empty", b""), ("binary", b"\xff\xfe")]
    {
        std::fs::write(path(name), bytes).unwrap();
    }
    for (plan, text, more, code, words) in [
        (&plan, "absent", "", 5, "absent"),
        (&plan, "binary", "", 3, "is not UTF-8"),
        (&plan, "empty", "", 3, "at least two are needed"),
        (&plan, "text", "--context 257", 2, "2..=256"),
        (&plan, "text", "--context 64 --stride 65", 2, "leaves out tokens"),
        (&mute, "text", "", 3, "tokenizer: the plan has none"),
    ] {
        let output = eval(plan, &path(text), more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text} {more}: {error}");
        assert!(error.contains(words), "{text} {more}: {words} missing in {error}");
    }
    let output = eval(&plan, &path("text"), "");
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["perplexity ", "bits per byte ", "1 of up to 256 tokens, 128 apart", "tok/s"] {
        assert!(text.contains(words), "{words} missing in {text}");
    }
}
