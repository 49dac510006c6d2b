//! Tests across crates: parity with outside goldens, one answer, clients, tidy. The tests are in `tests/`; here is
//! what they share: where the built programs and the made fixtures are.

pub mod answers;
pub mod drive;
pub mod golden;
pub mod server;

use std::path::{Path, PathBuf};

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// A program that `tools/test` has built, beside this test's own executable.
///
/// # Panics
/// When it is not there, with the command that builds it.
pub fn program(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap_or_default();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --release --bins` or ./tools/test",
        path.display()
    );
    path
}

/// Hub-form checkpoints made by tests/fixtures/make.py.
///
/// # Panics
/// When they were not made.
pub fn fixture(name: &str) -> PathBuf {
    let base =
        std::env::var_os("LATHE_FIXTURES").map_or_else(|| root().join("target/fixtures"), PathBuf::from);
    let path = base.join(name);
    assert!(path.is_dir(), "{} is missing: run ./tools/test, which makes fixtures", path.display());
    path
}

/// Names of the checkpoints of every architecture but Llama, and of rotary scalings, sorted.
///
/// # Panics
/// When they were not made.
pub fn architectures() -> Vec<String> {
    let vocab = |name: &str| {
        let config = std::fs::read_to_string(fixture(name).join("config.json")).unwrap_or_default();
        config.contains(ARCHITECTURES_VOCAB)
    };
    let entries = std::fs::read_dir(fixture("parity")).into_iter().flatten().flatten();
    let names = entries.map(|e| format!("parity/{}", e.file_name().to_string_lossy()));
    let mut names: Vec<String> = names.filter(|n| vocab(n)).collect();
    names.sort();
    assert!(names.len() >= 27, "only {} checkpoints of architectures were made", names.len());
    names
}

/// What tests/fixtures/architectures.py gives all of its models.
const ARCHITECTURES_VOCAB: &str = "\"vocab_size\": 101";
