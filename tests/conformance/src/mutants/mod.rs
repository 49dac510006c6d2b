//! Mutants: kernels of ours with one fault each, and what finds the fault. They test the checks: a fault that neither the
//! checked emulator nor a comparison of results notices would be noticed in no kernel.
//!
//! A mutant is a textual change of a kernel's source, whose place must be found exactly once, or a change of what the
//! host launches. Its [`Case`] is the smallest step that shows the fault and passes with the kernel as it is.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use lathe_device::{Arch, Arg, DriverError, Extent, Symbols};
use lathe_emulator::CheckOptions;
use lathe_kernels::cuda::{HEADERS, Launches, Source};
use lathe_kernels::gather_rows;
use lathe_kernels::tolerance;
use lathe_numerics::DType;

use crate::{Operands, Rig};

mod attention;
mod experts;
mod fused;
mod gemm;
mod list;
mod rms_norm;
mod row_by_row;
mod rows;
mod sampling;

pub use list::MUTANTS;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A `__syncthreads` less.
    Barrier,
    /// A wait for asynchronous copies that covers too few of them, or a copy that no group covers.
    CopyWait,
    /// A commit less.
    Commit,
    /// Another stage of a ring than the one that was filled.
    Stage,
    /// Device memory outside of every operand, or of the operand meant.
    Bounds,
    /// Shared memory past the block's.
    SharedBounds,
    /// A lane takes elements of another lane.
    Fragment,
    /// A tail that is not masked.
    Predicate,
    /// Another slot or block of the cache.
    Slot,
    /// A padding row that writes keys and values.
    Padding,
    /// Another head.
    Head,
    /// An accumulator that keeps what was before.
    Zeroing,
    /// Sums in another order: only bits differ.
    Order,
    /// A row sees a position more or less.
    Mask,
    /// Parts that are not added.
    Fold,
    /// Another function of a sum, or before its bias.
    Epilogue,
    /// Another function of a dot product.
    Score,
    /// Another number of slices of K.
    Slices,
    /// Memory of the launch before, touched before the wait for it.
    Dependent,
    /// Two threads update a word without an atomic operation.
    Update,
    /// Data that nobody wrote.
    Undefined,
    /// A vector access of an address that is no multiple of its size.
    Misaligned,
    /// A grid, workspace or list of arguments that does not belong to the kernel.
    Launch,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 23] = [
        Class::Barrier,
        Class::CopyWait,
        Class::Commit,
        Class::Stage,
        Class::Bounds,
        Class::SharedBounds,
        Class::Fragment,
        Class::Predicate,
        Class::Slot,
        Class::Padding,
        Class::Head,
        Class::Zeroing,
        Class::Order,
        Class::Mask,
        Class::Fold,
        Class::Epilogue,
        Class::Score,
        Class::Slices,
        Class::Dependent,
        Class::Update,
        Class::Undefined,
        Class::Misaligned,
        Class::Launch,
    ];

    /// True if no luck with values may be needed: the checked emulator itself reports such a fault.
    pub const fn must_fault(self) -> bool {
        matches!(
            self,
            Class::Barrier
                | Class::CopyWait
                | Class::Commit
                | Class::Bounds
                | Class::SharedBounds
                | Class::Dependent
                | Class::Update
                | Class::Undefined
                | Class::Misaligned
        )
    }
}

/// What is changed.
pub enum Change {
    /// In the text of all of a case's kernels, with headers in place: from, to. Every `from` stands there exactly once.
    Text(&'static [(&'static str, &'static str)]),
    /// What the host does.
    Host(fn(&mut Launches)),
}

/// A step of one family: runs it with launches that have passed through the edit, and compares.
pub struct Case {
    /// Family and what of it.
    pub name: &'static str,
    /// The step. Fails with [`Wrong`] for results, with the driver's error for faults.
    pub run: fn(&mut Rig, &Edit) -> Result<()>,
}

/// A kernel with a fault.
pub struct Mutant {
    /// What is wrong with it.
    pub name: &'static str,
    /// Kind of the fault.
    pub class: Class,
    /// Smallest step that shows it.
    pub case: &'static Case,
    /// The fault.
    pub change: Change,
}

/// What is done to a case's launches before they run.
pub struct Edit<'a>(Option<&'a Change>);

impl Edit<'_> {
    /// The launches with the change.
    ///
    /// # Errors
    /// A change that does not fit the kernels as they are now.
    pub fn apply(&self, mut launches: Launches) -> Result<Launches> {
        match self.0 {
            None => {}
            Some(Change::Host(change)) => {
                let before = launches.clone();
                change(&mut launches);
                ensure!(launches != before, "stale: the change of launches changes nothing");
            }
            Some(Change::Text(edits)) => {
                let mut made: Vec<(Source, Source)> = Vec::new();
                for stage in &mut launches.stages {
                    let known = made.iter().find(|(from, _)| *from == stage.source).map(|m| m.1.clone());
                    let new = match known {
                        Some(new) => new,
                        None => {
                            let new = edited(&stage.source, edits)?;
                            made.push((stage.source.clone(), new.clone()));
                            new
                        }
                    };
                    stage.source = new;
                }
            }
        }
        Ok(launches)
    }
}

fn edited(source: &Source, edits: &[(&str, &str)]) -> Result<Source> {
    let mut text = String::new();
    inline(source.text, &mut Vec::new(), &mut text);
    for (from, to) in edits {
        let n = text.matches(from).count();
        ensure!(n == 1, "stale: {} has {n} places like `{from}`, want 1", source.name);
        text = text.replacen(from, to, 1);
    }
    // Sources are constants of the program elsewhere; a test makes a few dozen more.
    Ok(Source { text: Box::leak(text.into_boxed_str()), ..source.clone() })
}

/// A text with the headers in place of their `#include`s, each once.
fn inline(text: &'static str, seen: &mut Vec<&'static str>, out: &mut String) {
    for line in text.lines() {
        let included = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match included.and_then(|name| HEADERS.iter().find(|(header, _)| *header == name)) {
            Some((name, header)) => {
                if !seen.contains(name) {
                    seen.push(name);
                    inline(header, seen, out);
                }
            }
            None if line == "#pragma once" => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

/// Results that are not what they should be.
#[derive(Debug)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As if nothing were wrong.
    Passes,
    /// The emulator reports a fault.
    Faults(String),
    /// Results are wrong.
    Differs(String),
}

/// Runs a case on a new emulated sm_90 device, checked or not, in an order of chance if there is a seed.
///
/// # Errors
/// What is neither a fault nor a wrong result: a change that is stale or does not compile.
pub fn run(case: &Case, change: Option<&Change>, check: bool, seed: Option<u64>) -> Result<Verdict> {
    let arch = Arch { major: 9, minor: 0 };
    let mut rig = Rig::emulated(arch, check.then(CheckOptions::default), seed)?;
    let Err(error) = (case.run)(&mut rig, &Edit(change)) else { return Ok(Verdict::Passes) };
    if let Some(Wrong(what)) = error.downcast_ref() {
        return Ok(Verdict::Differs(what.clone()));
    }
    match error.downcast_ref() {
        Some(DriverError::Fault { report, .. }) => Ok(Verdict::Faults(report.clone())),
        _ => Err(error),
    }
}

fn near(what: &str, dtype: DType, want: &[f32], got: &[f32]) -> Result<()> {
    tolerance::check(dtype, want, got).map_err(|e| Wrong(format!("{what}: {e}")))?;
    Ok(())
}

fn same<T: PartialEq + fmt::Debug>(what: &str, want: &[T], got: &[T]) -> Result<()> {
    if want.len() != got.len() {
        bail!("{what}: {} values, want {}", got.len(), want.len());
    }
    if let Some(i) = want.iter().zip(got).position(|(w, g)| w != g) {
        bail!(Wrong(format!("{what}: element {i} is {:?}, want {:?}", got[i], want[i])));
    }
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn step(tokens: usize, sequences: usize, rows: usize) -> Symbols {
    let [tokens, sequences, rows] = [tokens, sequences, rows].map(|n| n as u32);
    Symbols { tokens, sequences, rows, decode: false, sm_count: 4 }
}

/// Has a launch before all others write `bytes` to `to`, so that those must wait for it.
fn feed(
    rig: &mut Rig,
    launches: &mut Launches,
    operands: &mut Operands,
    to: Arg,
    bytes: &[u8],
) -> Result<()> {
    let (cols, dtype) = match bytes.len() % 4 {
        0 => (bytes.len() / 4, DType::F32),
        _ => (bytes.len() / 2, DType::BF16),
    };
    let mut copy = gather_rows::cuda::launches(&gather_rows::cuda::Problem { cols, dtype })?;
    let mut stage = copy.stages.pop().context("gather_rows launches nothing")?;
    let from = operands.inputs.len() as u32;
    operands.inputs.push(rig.buffer("source of the launch before", bytes)?);
    operands.inputs.push(rig.i32s("row 0", &[0])?);
    stage.args = vec![Arg::Input(from), Arg::Input(from + 1), to];
    stage.grid[0] = Extent::fixed(1);
    launches.stages.insert(0, stage);
    Ok(())
}
