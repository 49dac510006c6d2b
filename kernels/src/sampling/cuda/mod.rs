//! Drawing on a device: `draw` chooses the ids of all rows, `report` counts them and gives their log probabilities.
//!
//! The meaning is this family's; so are the bits of every weight. Sums differ: the CPU adds f64, the device integers of
//! 2^-45, the largest weight being 1. A draw can differ where the random share lies within `vocab * 2^-46` of a border
//! between ids, or `top_p` of one between what it keeps and drops. Log probabilities are within 1e-5.

use lathe_device::{Arg, Extent, MAX_LOGIT_BIAS, MAX_STOP_IDS, StepTable, Symbol, When};

use crate::cuda::{Cost, Launches, Source, Stage};
use crate::error::{KernelError, at_least};

const NAME: &str = "sampling";
const TEXT: &str = include_str!("kernel.cu");
const THREADS: u32 = 1024;
/// Ids have 18 bits where logits and ids stand in one order, and sums of this many weights fit 64 bits.
const MAX_VOCAB: usize = 1 << 18;
/// Entries of `Answer::top_ids`.
const MAX_TOP: usize = 20;

/// Rows of logits to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Columns of the logits.
    pub vocab: usize,
    /// Slots of `StepTable::{Counts, Bias, Stops}`.
    pub max_batch: usize,
    /// Most rows of a step.
    pub max_rows: usize,
}

/// A program's `sampling` launches. Input: logits `f32[r, vocab]`. Reads `DrawParams` and what they name; writes
/// `Answers`, `Drawn`, `Scores`, and adds what was drawn to `Counts`, after all rows saw the counts before the step.
///
/// # Errors
/// `Unsupported` for more than 262,144 ids, `Shape` for sizes of zero.
pub fn launches(p: &Problem) -> Result<Launches, KernelError> {
    at_least(NAME, "vocab", 1, p.vocab)?;
    at_least(NAME, "slots", 1, p.max_batch)?;
    at_least(NAME, "rows", 1, p.max_rows)?;
    if p.vocab > MAX_VOCAB {
        return Err(KernelError::Unsupported {
            kernel: NAME,
            what: format!("a vocabulary of {}; devices draw from up to {MAX_VOCAB} ids", p.vocab),
        });
    }
    let source = Source::new(
        format!("{NAME}-{}", p.vocab),
        TEXT,
        vec![
            ("VOCAB", p.vocab.to_string()),
            ("MAX_BIAS", MAX_LOGIT_BIAS.to_string()),
            ("MAX_STOPS", MAX_STOP_IDS.to_string()),
            ("MAX_TOP", MAX_TOP.to_string()),
        ],
    );
    let stage = |entry, tables: &[StepTable], row_bytes, row_flops| Stage {
        source: source.clone(),
        entry,
        when: When::Always,
        grid: [Extent::per(Symbol::Rows, 1, 1), Extent::fixed(1), Extent::fixed(1)],
        block: THREADS,
        shared_bytes: 0,
        dependent: true,
        args: std::iter::once(Arg::Input(0)).chain(tables.iter().copied().map(Arg::Table)).collect(),
        cost: Cost { fixed_bytes: 0, row_bytes, row_flops },
    };
    // Of a greedy row without log probabilities, as most are.
    let row = 4 * p.vocab as u64;
    let parameters = size_of::<lathe_device::DrawParams>() as u64;
    let draw = [
        StepTable::DrawParams,
        StepTable::Masks,
        StepTable::Counts,
        StepTable::Bias,
        StepTable::Stops,
        StepTable::Scores,
        StepTable::Answers,
        StepTable::Drawn,
    ];
    let report = [StepTable::DrawParams, StepTable::Counts, StepTable::Answers];
    let stages = vec![
        stage("draw", &draw, row + parameters + 8, p.vocab as u64),
        stage("report", &report, parameters + 24, 0),
    ];
    Ok(Launches { stages, workspaces: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_launches_share_a_module() {
        let p = Problem { vocab: 128_256, max_batch: 32, max_rows: 64 };
        let l = launches(&p).unwrap();
        assert_eq!(l.stages.len(), 2);
        assert_eq!(l.stages[0].source, l.stages[1].source);
        assert_eq!(l.stages[0].args.len(), 9);
        assert!(l.workspaces.is_empty());
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let p = Problem { vocab: 262_144, max_batch: 1, max_rows: 1 };
        assert!(launches(&p).is_ok());
        let e = launches(&Problem { vocab: 262_145, ..p }).unwrap_err().to_string();
        assert_eq!(e, "sampling: unsupported: a vocabulary of 262145; devices draw from up to 262144 ids");
        assert!(launches(&Problem { vocab: 0, ..p }).is_err());
        assert!(launches(&Problem { max_batch: 0, ..p }).is_err());
        assert!(launches(&Problem { max_rows: 0, ..p }).is_err());
    }
}
