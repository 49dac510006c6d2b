//! Faults that are put into our own kernels are noticed: by the checked emulator, or by a comparison of results.
//!
//! `--no-capture` prints who notices which, and whether results alone would have shown it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lathe_conformance::mutants::{Change, Class, MUTANTS, Mutant, Verdict, run};
use lathe_kernels::cuda::HEADERS;

/// Orders of chance that a mutant may survive until the last.
const SEEDS: [u64; 2] = [1, 2];

fn short(verdict: &Verdict) -> String {
    let (kind, what) = match verdict {
        Verdict::Passes => return "passes".into(),
        Verdict::Faults(what) => ("fault", what),
        Verdict::Differs(what) => ("result", what),
    };
    let line: String = what.lines().next().unwrap_or_default().chars().take(110).collect();
    format!("{kind}: {line}")
}

/// What finds the mutant, and under which seed; nothing if it survives.
fn hunt(mutant: &Mutant) -> Result<Option<(u64, Verdict)>> {
    for seed in SEEDS {
        let verdict = run(mutant.case, Some(&mutant.change), true, Some(seed))?;
        if verdict != Verdict::Passes {
            return Ok(Some((seed, verdict)));
        }
    }
    Ok(None)
}

fn all_die(mutants: &[Mutant]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for case in mutants.iter().map(|m| m.case) {
        if seen.insert(case.name) {
            for (check, seed) in [(true, Some(1)), (true, Some(2)), (false, None)] {
                let verdict = run(case, None, check, seed).with_context(|| case.name)?;
                ensure!(verdict == Verdict::Passes, "{} as it is, seed {seed:?}: {verdict:?}", case.name);
            }
        }
    }
    let mut wrong = Vec::new();
    for mutant in mutants {
        let name = format!("{}: {}", mutant.case.name, mutant.name);
        let found = hunt(mutant).with_context(|| name.clone())?;
        let unchecked = run(mutant.case, Some(&mutant.change), false, None).with_context(|| name.clone())?;
        let without = match &unchecked {
            Verdict::Passes => "passes",
            Verdict::Faults(_) => "fault",
            Verdict::Differs(_) => "result",
        };
        let by = found.as_ref().map_or("survives".into(), |(seed, v)| format!("seed {seed}, {}", short(v)));
        println!("{:?} | {name} | {by} | unchecked: {without}", mutant.class);
        match found {
            None => wrong.push(format!("{name} survives")),
            Some((_, Verdict::Differs(what))) if mutant.class.must_fault() => {
                wrong.push(format!("{name} is no fault to the checker, only {what}"));
            }
            Some(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn of_gemm() -> Result<()> {
    all_die(MUTANTS[0])
}

#[test]
fn of_gemm_in_f32() -> Result<()> {
    all_die(MUTANTS[1])
}

#[test]
fn of_experts() -> Result<()> {
    all_die(MUTANTS[2])
}

#[test]
fn of_attention() -> Result<()> {
    all_die(MUTANTS[3])
}

#[test]
fn of_attention_in_f32() -> Result<()> {
    all_die(MUTANTS[4])
}

#[test]
fn of_rms_norm() -> Result<()> {
    all_die(MUTANTS[5])
}

#[test]
fn of_kernels_that_move_rows() -> Result<()> {
    all_die(MUTANTS[6])
}

#[test]
fn of_sampling() -> Result<()> {
    all_die(MUTANTS[7])
}

#[test]
fn of_kernels_that_work_row_by_row() -> Result<()> {
    all_die(MUTANTS[9])
}

#[test]
fn of_what_stands_beside_projections() -> Result<()> {
    all_die(MUTANTS[8])
}

#[test]
fn there_is_one_of_every_class() {
    assert_eq!(MUTANTS.len(), 10, "a family has a test above");
    let classes: BTreeSet<Class> = MUTANTS.iter().copied().flatten().map(|m| m.class).collect();
    assert_eq!(classes, BTreeSet::from(Class::ALL));
    let names: BTreeSet<_> = MUTANTS.iter().copied().flatten().map(|m| (m.case.name, m.name)).collect();
    assert_eq!(names.len(), MUTANTS.iter().map(|m| m.len()).sum::<usize>());
}

/// Lanes of a warp count as ordered from instruction to instruction, so no mutant can lack a `__syncwarp`.
#[test]
fn no_kernel_needs_a_barrier_of_warps() {
    let kernels = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/src");
    let mut texts: Vec<String> = HEADERS.iter().map(|h| h.1.to_owned()).collect();
    for family in std::fs::read_dir(kernels).unwrap() {
        let Ok(files) = std::fs::read_dir(family.unwrap().path().join("cuda")) else { continue };
        let files = files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "cu"));
        texts.extend(files.map(|p| std::fs::read_to_string(p).unwrap()));
    }
    assert!(texts.len() > 10);
    assert!(texts.iter().all(|t| !t.contains("__syncwarp")));
}

#[test]
fn stale_changes_are_refused() {
    let case = MUTANTS[4][0].case;
    let refused = |change: Change| run(case, Some(&change), false, None).unwrap_err().to_string();
    let none = refused(Change::Text(&[("there is no such line", "")]));
    assert!(none.contains("stale") && none.contains("0 places like `there is no such line`"), "{none}");
    assert!(refused(Change::Text(&[("float", "")])).contains("stale"));
    assert!(refused(Change::Host(|_| {})).contains("stale"));
}
