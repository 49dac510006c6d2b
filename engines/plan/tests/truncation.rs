//! A plan that is cut while it is mapped, in a process of its own: this test runs itself again as that process.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use lathe_plan::testing::write_small;
use lathe_plan::{Plan, PlanError, truncation};

const CHILD: &str = "LATHE_TEST_TRUNCATED_PLAN";

#[test]
fn a_cut_plan_ends_the_process_with_its_name() {
    if let Some(path) = std::env::var_os(CHILD) {
        child(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    write_small(&path).unwrap();
    let me = std::env::current_exe().unwrap();
    let out = Command::new(me)
        .args(["--exact", "a_cut_plan_ends_the_process_with_its_name", "--nocapture"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(truncation::EXIT_STATUS), "{stderr}");
    assert!(
        stderr.contains(&format!("engine plan {} was truncated while in use\n", path.display())),
        "{stderr}"
    );
}

fn child(path: &Path) -> ! {
    let plan = Plan::open(path).unwrap();
    truncation::watch(&plan).unwrap();
    truncation::watch(&plan).unwrap();
    plan.still_whole().unwrap();
    OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
    let last = plan.weights().len() - 1;
    let byte = plan.weight_bytes(last).last().copied();
    println!("read {byte:?} past the end of the file");
    std::process::exit(99);
}

#[test]
fn a_cut_plan_is_seen_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.plan");
    write_small(&path).unwrap();
    let plan = Plan::open(&path).unwrap();
    plan.still_whole().unwrap();

    // A new plan under the old name leaves the mapped one alone.
    write_small(&path).unwrap();
    plan.still_whole().unwrap();

    let plan = Plan::open(&path).unwrap();
    let had = plan.file_bytes();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(5000).unwrap();
    match plan.still_whole() {
        Err(PlanError::Truncated { had: h, has, .. }) => assert_eq!((h, has), (had, 5000)),
        other => panic!("{other:?}"),
    }
    file.set_len(had + 1).unwrap();
    assert!(matches!(plan.still_whole(), Err(PlanError::Modified { .. })));
}
