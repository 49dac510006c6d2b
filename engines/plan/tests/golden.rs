//! A plan of every format version stays readable, or is refused with the sentence that is tested here.

use std::fs;
use std::path::Path;

use lathe_plan::testing::small_plan;
use lathe_plan::{Plan, PlanError};

fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.plan")
}

#[test]
fn version_1_0_loads() {
    if std::env::var_os("BLESS").is_some() && !golden().exists() {
        fs::write(golden(), small_plan().unwrap()).unwrap();
    }
    let plan = Plan::open(&golden()).unwrap();
    plan.verify_weights(|_| ()).unwrap();
    assert_eq!(plan.header().version, (1, 0));
    assert_eq!((plan.card().name.as_str(), plan.weights().len()), ("small", 9));
    assert_eq!(plan.program("decoder").unwrap().launches.len(), 13);
    assert_eq!(plan.self_test().unwrap().logits.len(), 6);
}

/// Version 1.0 is frozen: a build that writes it writes these bytes. A change of format is a new version and file.
#[test]
fn version_1_0_is_still_written_so() {
    assert!(fs::read(golden()).unwrap() == small_plan().unwrap(), "format 1.0 changed under its number");
}

#[test]
fn later_versions_are_refused_with_the_way_out() {
    let mut bytes = fs::read(golden()).unwrap();
    for (major, minor) in [(1u16, 1u16), (2, 0), (0, 9)] {
        bytes[8..10].copy_from_slice(&major.to_le_bytes());
        bytes[10..12].copy_from_slice(&minor.to_le_bytes());
        let e = Plan::from_bytes(bytes.clone()).unwrap_err();
        assert!(matches!(e, PlanError::Version { found, .. } if found == (major, minor)));
        assert_eq!(
            e.to_string(),
            format!(
                "plan in memory: plan format {major}.{minor} (written by lathe 0.1.0) cannot be read by this build, \
                 which reads 1.0; recompile with `compile --model DIR --max-batch 4 --max-num-tokens 8 \
                 --max-seq-len 64 -o 'plan in memory'`"
            )
        );
    }
}
