//! Weights: named tensors that a graph refers to, and the recipes that make new ones. Data never lives here.

use lathe_numerics::DType;

use crate::entity::{ValueId, WeightId};
use crate::facts::{Dim, Facts};
use crate::rope_table::RopeTable;
use crate::tensor::Tensor;

/// Where a weight's data comes from. References are to weights declared earlier in the same graph.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightExpr {
    /// A tensor of the checkpoint, by its name there.
    Tensor(String),
    /// Operands stacked along the outermost axis.
    Concat(Vec<WeightId>),
    /// Rows of equally shaped operands in turns of `group`: group 0 of each operand, then group 1 of each. Operands
    /// are padded with zero rows to whole groups.
    Interleave {
        /// The operands.
        of: Vec<WeightId>,
        /// Rows per turn.
        group: usize,
    },
    /// One rounding to another type.
    Cast(WeightId, DType),
    /// A rotary table.
    RopeTable(RopeTable),
}

/// A weight declaration. Name and facts are those of its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The value that nodes take as operand.
    pub value: ValueId,
    /// How to make it.
    pub expr: WeightExpr,
    pub(crate) line: Option<u32>,
}

impl WeightExpr {
    /// The weights it is made of.
    pub fn operands(&self) -> &[WeightId] {
        match self {
            WeightExpr::Tensor(_) | WeightExpr::RopeTable(_) => &[],
            WeightExpr::Concat(of) | WeightExpr::Interleave { of, .. } => of,
            WeightExpr::Cast(of, _) => std::slice::from_ref(of),
        }
    }

    /// Facts from the operands' facts; `None` for a checkpoint tensor, whose declared facts are the truth.
    ///
    /// # Errors
    /// The reason why the operands do not fit.
    pub fn infer(&self, operands: &[&Facts]) -> Result<Option<Facts>, String> {
        if let Some(bad) = operands.iter().find(|f| !f.dtype().is_some_and(DType::is_float)) {
            return Err(format!("an operand is {:?}, expected a float type", bad.dtype()));
        }
        let shapes = || operands.iter().map(|f| f.fixed_shape().ok_or("an operand's shape is symbolic"));
        match self {
            WeightExpr::Tensor(_) => Ok(None),
            WeightExpr::RopeTable(table) => table.infer().map(Some),
            WeightExpr::Cast(_, dtype) if !dtype.is_float() => {
                Err(format!("cast to {dtype}, expected a float type"))
            }
            WeightExpr::Cast(_, dtype) => {
                Ok(operands.first().map(|f| Facts::tensor(*dtype, f.shape().iter().cloned())))
            }
            WeightExpr::Concat(_) => {
                let shapes = shapes().collect::<Result<Vec<_>, _>>()?;
                let (dtype, tail) = common(operands, &shapes)?;
                let rows = shapes.iter().map(|s| s[0]).sum();
                Ok(Some(with_rows(dtype, rows, &tail)))
            }
            WeightExpr::Interleave { group, .. } => {
                let shapes = shapes().collect::<Result<Vec<_>, _>>()?;
                let (dtype, tail) = common(operands, &shapes)?;
                if *group == 0 {
                    return Err("group is 0".into());
                }
                if shapes.iter().any(|s| s[0] != shapes[0][0]) {
                    return Err("interleaved operands differ in rows".into());
                }
                let rows = shapes[0][0].div_ceil(*group) * group * shapes.len();
                Ok(Some(with_rows(dtype, rows, &tail)))
            }
        }
    }

    /// Data from the operands' data. `None` for a checkpoint tensor. Operands fit [`WeightExpr::infer`].
    ///
    /// # Errors
    /// If an operand holds no floats.
    pub fn eval(&self, operands: &[&Tensor], shape: &[usize]) -> Result<Option<Tensor>, String> {
        let floats = operands.iter().map(|t| t.floats()).collect::<Result<Vec<_>, _>>()?;
        let (dtype, data) = match self {
            WeightExpr::Tensor(_) => return Ok(None),
            WeightExpr::RopeTable(table) => (DType::F32, table.eval()),
            WeightExpr::Cast(_, dtype) => (*dtype, floats.concat()),
            WeightExpr::Concat(_) => (operands[0].dtype, floats.concat()),
            WeightExpr::Interleave { group, .. } => {
                let width = operands[0].row_len();
                let turn = group * width;
                let mut out = vec![0.0; shape.iter().product()];
                for (chunk, to) in out.chunks_exact_mut(turn).enumerate() {
                    let from = floats[chunk % floats.len()];
                    let start = (chunk / floats.len() * turn).min(from.len());
                    let end = (start + turn).min(from.len());
                    to[..end - start].copy_from_slice(&from[start..end]);
                }
                (operands[0].dtype, out)
            }
        };
        Ok(Some(Tensor::float(dtype, shape.to_vec(), data)))
    }
}

fn common(operands: &[&Facts], shapes: &[Vec<usize>]) -> Result<(DType, Vec<usize>), String> {
    let (Some(first), Some(dtype)) = (shapes.first(), operands.first().and_then(|f| f.dtype())) else {
        return Err("no operands".into());
    };
    if shapes.iter().any(|s| s.is_empty() || s[1..] != first[1..]) {
        return Err("operands differ in row shape".into());
    }
    if operands.iter().any(|f| f.dtype() != Some(dtype)) {
        return Err("operands differ in type".into());
    }
    Ok((dtype, first[1..].to_vec()))
}

fn with_rows(dtype: DType, rows: usize, tail: &[usize]) -> Facts {
    Facts::tensor(dtype, std::iter::once(rows).chain(tail.iter().copied()).map(Dim::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entity::Id;

    #[test]
    fn interleave_takes_turns_and_pads() {
        let ids = vec![WeightId::from_index(0), WeightId::from_index(1)];
        let expr = WeightExpr::Interleave { of: ids, group: 2 };
        let facts = Facts::fixed(DType::F32, &[3, 1]);
        assert_eq!(expr.infer(&[&facts, &facts]), Ok(Some(Facts::fixed(DType::F32, &[8, 1]))));
        let a = Tensor::float(DType::F32, vec![3, 1], vec![1.0, 2.0, 3.0]);
        let b = Tensor::float(DType::F32, vec![3, 1], vec![-1.0, -2.0, -3.0]);
        let got = expr.eval(&[&a, &b], &[8, 1]).unwrap().unwrap();
        assert_eq!(got.floats().unwrap(), [1.0, 2.0, -1.0, -2.0, 3.0, 0.0, -3.0, 0.0]);
    }

    #[test]
    fn recipes_refuse_what_does_not_fit() {
        let id = WeightId::from_index(0);
        let (a, b) = (Facts::fixed(DType::F32, &[3, 2]), Facts::fixed(DType::F32, &[3, 1]));
        let h = Facts::fixed(DType::BF16, &[3, 2]);
        let concat = WeightExpr::Concat(vec![id, id]);
        assert!(concat.infer(&[&a, &b]).unwrap_err().contains("row shape"));
        assert!(concat.infer(&[&a, &h]).unwrap_err().contains("type"));
        assert!(WeightExpr::Concat(vec![]).infer(&[]).is_err());
        assert!(WeightExpr::Cast(id, DType::I32).infer(&[&a]).is_err());
        assert_eq!(WeightExpr::Cast(id, DType::BF16).infer(&[&a]), Ok(Some(h)));
    }
}
