//! Weights that launches read, each stored once per layout and type.

use lathe_ir::Graph;
use lathe_ir::entity::WeightId;
use lathe_numerics::DType;
use lathe_plan::schema::{Layout, Operand, Weight};

use crate::error::{CompileError, Result};

/// A weight that some launch reads.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightUse {
    /// The graph's weight.
    pub weight: WeightId,
    /// The plan's entry; offset and hash come with the bytes.
    pub entry: Weight,
}

/// Weights of all programs of a plan. One that two programs read the same way is stored once.
#[derive(Clone, Debug, Default)]
pub struct WeightTable {
    uses: Vec<WeightUse>,
}

impl WeightTable {
    /// In the order in which they were first read.
    pub fn uses(&self) -> &[WeightUse] {
        &self.uses
    }

    /// Bytes of weights that are stored again in a second layout or type.
    pub fn duplicated_bytes(&self) -> u64 {
        let again = |i: usize| self.uses[..i].iter().any(|u| u.entry.name == self.uses[i].entry.name);
        (0..self.uses.len()).filter(|&i| again(i)).map(|i| self.uses[i].entry.bytes).sum()
    }

    /// The weight as an operand, entered into the table if it is new.
    pub(super) fn operand(
        &mut self,
        graph: &Graph,
        weight: WeightId,
        layout: Layout,
        dtype: DType,
    ) -> Result<Operand> {
        let name = graph.weight_name(weight);
        let same = |u: &WeightUse| u.entry.name == name && (u.entry.layout, u.entry.dtype) == (layout, dtype);
        let index = match self.uses.iter().position(same) {
            Some(index) => index,
            None => {
                let shape = graph.weight_facts(weight).fixed_shape().unwrap_or_default();
                let shape: Vec<u64> = shape.into_iter().map(|d| d as u64).collect();
                let bytes = layout.bytes(dtype, &shape).ok_or_else(|| {
                    CompileError::Bug(format!("weight @{name}: {} does not hold {shape:?}", layout.name()))
                })?;
                let entry =
                    Weight { name: name.into(), dtype, shape, layout, offset: 0, bytes, hash: [0; 32] };
                self.uses.push(WeightUse { weight, entry });
                self.uses.len() - 1
            }
        };
        Ok(Operand::weight(index as u32, &self.uses[index].entry))
    }
}
