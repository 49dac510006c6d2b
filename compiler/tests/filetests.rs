//! Runs `filetests`: `pass NAME` on a graph, and `select` on a fused graph.

use std::path::Path;

use lathe_compiler::memory;
use lathe_compiler::passes::{PASSES, RULES, run_named};
use lathe_compiler::select::{WeightTable, select};
use lathe_ir::filetest::run_folder;

#[test]
fn filetests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let ran = run_folder(&folder, &|words, graph| match words {
        ["pass", name] => run_named(name, graph),
        ["select"] => {
            let mut program =
                select(graph, "decoder", &mut WeightTable::default()).map_err(|e| e.to_string())?;
            memory::plan_arena(&mut program).map(drop).map_err(|e| e.to_string())
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
