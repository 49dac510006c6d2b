//! The shape of the tree: who may depend on whom, how long a file may be, which names are not names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Allowed arrows inside the workspace. A new arrow is a decision: write its reason into ARCHITECTURE.md, then here.
const ARROWS: &[(&str, &[&str])] = &[
    ("lathe-numerics", &[]),
    ("lathe-diagnostics", &[]),
    ("lathe-ir", &["lathe-numerics"]),
    ("lathe-device", &[]),
    ("lathe-nvrtc", &[]),
    ("lathe-kernels", &["lathe-numerics", "lathe-device"]),
    ("lathe-plan", &["lathe-numerics", "lathe-device"]),
    ("lathe-api", &["lathe-numerics"]),
    ("lathe-cpu", &["lathe-numerics", "lathe-kernels", "lathe-plan", "lathe-api"]),
    ("lathe-emulator", &["lathe-device"]),
    ("lathe-cuda", &["lathe-numerics", "lathe-device", "lathe-plan", "lathe-api"]),
    (
        "lathe-compiler",
        &[
            "lathe-numerics",
            "lathe-diagnostics",
            "lathe-ir",
            "lathe-kernels",
            "lathe-plan",
            "lathe-device",
            "lathe-nvrtc",
            "lathe-api",
            "lathe-cpu",
            "lathe-text",
        ],
    ),
    ("lathe-scheduler", &["lathe-numerics"]),
    ("lathe-text", &[]),
    (
        "lathe-runtime",
        &[
            "lathe-numerics",
            "lathe-diagnostics",
            "lathe-plan",
            "lathe-api",
            "lathe-cpu",
            "lathe-cuda",
            "lathe-device",
            "lathe-emulator",
            "lathe-scheduler",
            "lathe-text",
        ],
    ),
];

fn manifests() -> BTreeMap<String, toml::Table> {
    let workspace: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let path = root().join(m.as_str().unwrap()).join("Cargo.toml");
            let manifest: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
            (manifest["package"]["name"].as_str().unwrap().to_owned(), manifest)
        })
        .collect()
}

#[test]
fn no_new_arrow_between_crates() {
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let mut wrong = Vec::new();
    for (name, manifest) in &manifests() {
        // Tests and benchmarks may see everything.
        if ["lathe-tests", "lathe-conformance", "lathe-benches"].contains(&name.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} is not in the list of arrows"));
            continue;
        };
        let Some(dependencies) = manifest.get("dependencies").and_then(|d| d.as_table()) else { continue };
        for to in dependencies.keys().filter(|k| k.starts_with("lathe-")) {
            if !allowed.contains(to.as_str()) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "new arrows: {wrong:#?}");
}

#[test]
fn every_crate_says_what_it_is_and_inherits_the_lints() {
    for (name, manifest) in manifests() {
        assert!(manifest["package"].get("description").is_some(), "{name} has no description");
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{name} does not inherit the lints");
    }
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') || ["target", "__pycache__", "node_modules"].contains(&&*name) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() { files(&path, out) } else { out.push(path) }
    }
}

#[test]
fn files_hold_one_idea() {
    let mut all = Vec::new();
    files(&root(), &mut all);
    let mut wrong = Vec::new();
    for path in all.iter().filter(|p| p.extension().is_some_and(|e| e == "rs" || e == "py" || e == "cu")) {
        let text = fs::read_to_string(path).unwrap();
        // A module's name is that of its folder where its file is called mod.rs.
        let named = if path.ends_with("mod.rs") { path.parent().unwrap() } else { path };
        let stem = named.file_stem().unwrap().to_string_lossy();
        let shown = path.strip_prefix(root()).unwrap().display();
        if text.lines().count() > 1000 {
            wrong.push(format!("{shown}: more than 1,000 lines"));
        }
        if ["utils", "util", "helpers", "helper", "common", "misc", "v2"].contains(&&*stem) {
            wrong.push(format!("{shown}: the name says nothing"));
        }
        if path.extension().is_some_and(|e| e == "rs") {
            if !text.starts_with("//!") {
                wrong.push(format!("{shown}: does not begin with what it is (//!)"));
            }
            // Put together here, so that a search for them in the tree finds none.
            let stubs = [["to", "do!("], ["unimpl", "emented!("], ["#[", "ignore"], ["should", "_panic"]];
            for stub in stubs.map(|s| s.concat()) {
                if text.contains(&stub) {
                    wrong.push(format!("{shown}: {stub}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn serving_code_does_not_unwrap() {
    for (dir, files) in [
        ("runtime/src", &["lib.rs", "main.rs"][..]),
        ("engines/cpu/src", &["lib.rs"]),
        ("engines/cuda/src", &["lib.rs"]),
        ("engines/device/src", &["lib.rs"]),
        ("engines/plan/src", &["lib.rs"]),
    ] {
        for file in files {
            let path = root().join(dir).join(file);
            let text = fs::read_to_string(&path).unwrap();
            assert!(
                text.contains("clippy::unwrap_used") && text.contains("clippy::expect_used"),
                "{} does not deny unwrap and expect",
                path.display()
            );
        }
    }
}
