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
