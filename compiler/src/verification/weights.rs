//! The plan's weights against what the checkpoint gives, byte for byte.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use lathe_plan::Plan;

use crate::checkpoint::TensorSource;
use crate::emit::weights::StoredWeight;
use crate::error::{CompileError, Result};

/// A stored weight that is not what the checkpoint gives.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WeightFault {
    /// The IR weight's name.
    pub name: String,
    /// Order of its elements in the plan.
    pub layout: &'static str,
    /// What is wrong.
    pub why: String,
    /// The checkpoint's tensors whose rows differ, by name.
    pub tensors: Vec<String>,
}

impl fmt::Display for WeightFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.layout, self.why)?;
        if let Some(from) = self.from() {
            write!(f, ": {from}")?;
        }
        Ok(())
    }
}

impl WeightFault {
    /// The checkpoint's tensors whose rows differ, the first few of them; `None` where nothing can be said.
    pub fn from(&self) -> Option<String> {
        let shown = self.tensors.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        match self.tensors.len() {
            0 => None,
            1..=SHOWN => Some(shown),
            n => Some(format!("{shown} and {} more", n - SHOWN)),
        }
    }
}

/// Tensors of one weight that a sentence names.
const SHOWN: usize = 3;

/// Lays every weight out anew and compares. A worker holds one block of one weight.
///
/// # Errors
/// A tensor that cannot be read.
pub fn compare(
    plan: &Plan,
    expected: &[StoredWeight],
    source: &dyn TensorSource,
    threads: usize,
) -> Result<Vec<WeightFault>> {
    let stored = plan.weights();
    let fault = |name: &str, layout, why: &str| WeightFault {
        name: name.into(),
        layout,
        why: why.into(),
        tensors: Vec::new(),
    };
    let one = |index: usize| -> Result<Option<WeightFault>> {
        let weight = &expected[index];
        let same = |w: &&lathe_plan::schema::Weight| {
            w.name == weight.name && w.layout == weight.layout && w.dtype == weight.dtype()
        };
        let layout = weight.layout.name();
        let Some(at) = stored.iter().position(|w| same(&w)) else {
            return Ok(Some(fault(&weight.name, layout, "is not in the plan")));
        };
        let bytes = plan.weight_bytes(at);
        let ((rows, group), mut offset) = (weight.group(), 0);
        let (mut differs, mut tensors) = (false, BTreeSet::new());
        weight.stream(source, &mut |block| {
            let stored = bytes.get(offset..offset + block.len()).unwrap_or_default();
            if stored != block {
                differs = true;
                let pairs = block.chunks(group).zip(stored.chunks(group)).enumerate();
                for (n, _) in pairs.filter(|(_, (want, have))| want != have) {
                    let row = (offset / group + n) * rows;
                    weight.rows.tensors(row..(row + rows).min(weight.rows.rows), &mut tensors);
                }
            }
            offset += block.len();
            Ok(())
        })?;
        if !differs && offset == bytes.len() {
            return Ok(None);
        }
        let why = "its bytes are not those that the checkpoint gives";
        Ok(Some(WeightFault { tensors: tensors.into_iter().collect(), ..fault(&weight.name, layout, why) }))
    };
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(usize, Result<WeightFault>)>> = Mutex::new(Vec::new());
    let work = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && index < expected.len()
        {
            if let Some(fault) = one(index).transpose() {
                found.lock().unwrap_or_else(PoisonError::into_inner).push((index, fault));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, expected.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(index, _)| *index);
    let mut faults = found.into_iter().map(|(_, fault)| fault).collect::<Result<Vec<_>>>()?;
    for weight in stored {
        if !expected.iter().any(|e| e.name == weight.name && e.layout == weight.layout) {
            faults.push(fault(
                &weight.name,
                weight.layout.name(),
                "no launch that this compiler makes reads it",
            ));
        }
    }
    if expected.is_empty() {
        return Err(CompileError::Bug("a program without weights".into()));
    }
    Ok(faults)
}
