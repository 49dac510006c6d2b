//! A plan of every format version stays readable, or is refused with the sentence that is tested here.

use std::fs;
use std::path::{Path, PathBuf};

use lathe_plan::header::PROG;
use lathe_plan::testing::{small_cuda_plan, small_plan};
use lathe_plan::{Plan, PlanError};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn open(name: &str) -> Plan {
    let plan = Plan::open(&golden(name)).unwrap();
    plan.verify_weights(|_| ()).unwrap();
    plan
}

/// Written by builds of format 1.0, which this build follows by one minor version.
#[test]
fn version_1_0_loads_as_what_it_means_now() {
    let plan = open("v1.plan");
    assert_eq!(plan.header().version, (1, 0));
    let program = plan.header().sections.iter().find(|s| s.tag == PROG).unwrap();
    assert_eq!(program.version, 1);
    let now = Plan::from_bytes(small_plan().unwrap()).unwrap();
    assert_eq!(plan.programs(), now.programs());
    assert_eq!((plan.card(), plan.weights(), plan.text()), (now.card(), now.weights(), now.text()));
    assert_eq!((plan.self_test(), plan.tokenizer_json()), (now.self_test(), now.tokenizer_json()));
}

/// Version 1.1 is frozen: a build that writes it writes these bytes. A change of format is a new version and file.
#[test]
fn version_1_1_is_still_written_so() {
    for (name, written) in [("v1.1.plan", small_plan()), ("v1.1-cuda.plan", small_cuda_plan())] {
        let written = written.unwrap();
        if std::env::var_os("BLESS").is_some() && !golden(name).exists() {
            fs::write(golden(name), &written).unwrap();
        }
        assert!(fs::read(golden(name)).unwrap() == written, "{name}: format 1.1 changed under its number");
        assert_eq!(open(name).header().version, (1, 1));
    }
}

#[test]
fn other_versions_are_refused_with_the_way_out() {
    let mut bytes = fs::read(golden("v1.plan")).unwrap();
    for (major, minor) in [(1u16, 2u16), (2, 0), (0, 9)] {
        bytes[8..10].copy_from_slice(&major.to_le_bytes());
        bytes[10..12].copy_from_slice(&minor.to_le_bytes());
        let e = Plan::from_bytes(bytes.clone()).unwrap_err();
        assert!(matches!(e, PlanError::Version { found, .. } if found == (major, minor)));
        assert_eq!(
            e.to_string(),
            format!(
                "plan in memory: plan format {major}.{minor} (written by lathe 0.1.0) cannot be read by this build, \
                 which reads 1.0 and 1.1; recompile with `compile --model DIR --max-batch 4 --max-num-tokens 8 \
                 --max-seq-len 64 -o 'plan in memory'`"
            )
        );
    }
}
