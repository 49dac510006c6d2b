//! Puts the commit into `--version`, where the tree is a checkout.

use std::process::Command;

/// What git prints, trimmed; `None` outside a checkout.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok().map(|s| s.trim().to_owned())
}

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=LATHE_COMMIT={commit}");
    // Grows with every commit and checkout.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(path) => println!("cargo:rerun-if-changed={path}"),
        None => println!("cargo:rerun-if-changed=build.rs"),
    }
}
