//! Runs `filetests`: `pass NAME` on a graph, and `select TARGETS` on a fused graph.

use std::path::Path;

use lathe_compiler::memory;
use lathe_compiler::passes::{PASSES, RULES, run_named};
use lathe_compiler::select::{WeightTable, select};
use lathe_compiler::targets;
use lathe_ir::filetest::run_folder;

#[test]
fn filetests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let ran = run_folder(&folder, &|words, graph| match words {
        ["pass", name] => run_named(name, graph),
        ["select", target] => {
            let targets = targets::parse(target, || Err("no device".into())).map_err(|e| e.to_string())?;
            for target in &targets {
                let selected = select(graph, "decoder", target, 64, &mut WeightTable::default());
                let mut program = selected.map_err(|e| e.to_string())?.program;
                memory::plan_arena(&mut program).map_err(|e| e.to_string())?;
            }
            Ok(())
        }
        _ => Err(format!("unknown command {}", words.join(" "))),
    });
    assert!(ran.unwrap_or_else(|failures| panic!("{failures}")) >= RULES.len() + PASSES.len());
}

#[test]
fn every_pass_has_its_filetest() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests/passes");
    for name in RULES.iter().map(|r| r.name).chain(PASSES.iter().map(|p| p.name)) {
        let file = folder.join(format!("{}.ir", name.replace('-', "_")));
        assert!(file.is_file(), "{} is missing", file.display());
    }
}
