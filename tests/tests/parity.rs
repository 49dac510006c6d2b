//! Compiled plans against what torch and transformers say, on every ISA path of this machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use lathe_api::Engine;
use lathe_cpu::Isa;
use lathe_tests::golden::Golden;
use lathe_tests::{drive, fixture, root};

/// A checkpoint directory with a tokenizer: parity cases have none of their own, and need none.
fn checkpoint(name: &str, dir: &Path) -> PathBuf {
    let source = fixture(name);
    if source.join("tokenizer.json").exists() {
        return source;
    }
    let out = dir.join(name.replace('/', "-"));
    fs::create_dir(&out).unwrap();
    for entry in fs::read_dir(&source).unwrap().map(Result::unwrap) {
        symlink(entry.path(), out.join(entry.file_name())).unwrap();
    }
    symlink(fixture("llama32-sharded").join("tokenizer.json"), out.join("tokenizer.json")).unwrap();
    out
}

/// Logits of every position by the real engine, `f32[ids, vocab]`, and the columns.
fn logits(plan: &Path, isa: Isa, ids: &[u32]) -> (Vec<f32>, usize) {
    let mut engine = drive::load(plan, 2, Some(isa)).unwrap();
    let vocab = engine.info().vocab_size as usize;
    (drive::logits(&mut engine, ids), vocab)
}

#[test]
fn compiled_plans_match_torch() {
    let dir = tempfile::tempdir().unwrap();
    let mut goldens: Vec<PathBuf> =
        fs::read_dir(root().join("tools/goldens/logits")).unwrap().map(|e| e.unwrap().path()).collect();
    goldens.sort();
    assert!(goldens.len() >= 11, "goldens are missing");
    let mut wrong = Vec::new();
    for path in goldens {
        let case = path.file_stem().unwrap().to_string_lossy().into_owned();
        let model = match case.strip_prefix("parity-") {
            Some(name) => checkpoint(&format!("parity/{name}"), dir.path()),
            None if case.starts_with("demo") => root().join("tools/demo-model"),
            None => checkpoint(&case, dir.path()),
        };
        let exact = case.ends_with("-f32");
        let plan = dir.path().join(format!("{case}.plan"));
        let model = model.to_str().unwrap();
        let golden = Golden::read(&path).unwrap();
        let max_seq_len = golden.max_seq_len.to_string();
        let flags = ["--model", model, "--max-batch", "2", "--max-seq-len", &max_seq_len];
        drive::compile(&flags, &plan).unwrap();
        for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
            let (got, vocab) = logits(&plan, isa, &golden.ids);
            match golden.check(&got, vocab, exact) {
                Ok(d) => println!("{case} {isa}: {d:?}"),
                Err(e) => wrong.push(format!("{case} {isa}: {e}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
