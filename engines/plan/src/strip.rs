//! Writes a plan again without the PTX that its own device does not need.

use std::path::Path;

use crate::code::CodeWriter;
use crate::error::{Damage, PlanError};
use crate::reader::Plan;
use crate::writer::{PlanWriter, Tables, WeightSpec, Written};

/// Writes `plan` to `path` without the PTX of modules that have machine code; all else stays as it is. The new plan
/// runs on no newer architecture and in no emulator. `path` may be the plan's own.
///
/// # Errors
/// A weight that does not match its hash, or a failed write.
pub fn strip_ptx(plan: &Plan, path: &Path) -> Result<Written, PlanError> {
    let specs = plan.weights().iter().map(|w| WeightSpec {
        name: w.name.clone(),
        dtype: w.dtype,
        shape: w.shape.clone(),
        layout: w.layout,
    });
    let rest = plan.file_bytes().saturating_sub(plan.data_bytes());
    let writer = PlanWriter::create(path, specs.collect(), rest)?;
    for (i, weight) in plan.weights().iter().enumerate() {
        let bytes = plan.weight_bytes(i);
        // The writer would hash damaged bytes as if they were meant.
        if blake3::hash(bytes) != weight.hash {
            let fault = Damage::WeightHash { name: weight.name.clone() };
            return Err(PlanError::Damaged { path: plan.path().to_path_buf(), fault });
        }
        writer.write_weight(i, bytes)?;
    }
    let mut code = CodeWriter::default();
    let mut programs = plan.programs().to_vec();
    for module in programs.iter_mut().flat_map(|p| &mut p.modules) {
        module.ptx = module.ptx.filter(|_| module.cubin.is_none());
        for blob in module.cubin.iter_mut().chain(&mut module.ptx) {
            *blob = code.add(plan.code(blob));
        }
    }
    writer.finish(&Tables {
        card: plan.card().clone(),
        programs,
        code: code.finish(),
        text: plan.text().clone(),
        tokenizer: plan.tokenizer_json().map(<[u8]>::to_vec),
        self_test: plan.self_test().cloned(),
    })
}
