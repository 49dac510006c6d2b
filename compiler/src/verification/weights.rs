//! The plan's weights against what the checkpoint gives, byte for byte by hash.

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
}

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
    let fault = |name: &str, layout, why: &str| WeightFault { name: name.into(), layout, why: why.into() };
    let one = |index: usize| -> Result<Option<WeightFault>> {
        let weight = &expected[index];
        let same = |w: &&lathe_plan::schema::Weight| {
            w.name == weight.name && w.layout == weight.layout && w.dtype == weight.dtype()
        };
        let layout = weight.layout.name();
        let Some(at) = stored.iter().position(|w| same(&w)) else {
            return Ok(Some(fault(&weight.name, layout, "is not in the plan")));
        };
        let mut hasher = blake3::Hasher::new();
        weight.stream(source, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        // The bytes themselves: the table's hash is what `runtime check` compares them with.
        let differs = hasher.finalize() != blake3::hash(plan.weight_bytes(at));
        Ok(differs.then(|| fault(&weight.name, layout, "its bytes are not those that the checkpoint gives")))
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
