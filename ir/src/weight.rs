//! Weights: named tensors that a graph refers to, and the recipes that make new ones. Data never lives here.

use std::borrow::Cow;
use std::ops::Range;

use lathe_numerics::DType;

use crate::entity::{ValueId, WeightId};
use crate::error::IrError;
use crate::facts::{Dim, Facts};
use crate::op::Attrs;
use crate::rope_table::RopeTable;
use crate::tensor::{Data, Tensor, Value};

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
    /// Some rows of an operand, which counts as a matrix of [product of the leading extents, last extent]: what fused
    /// projections and stacked experts are taken apart with.
    Rows {
        /// The operand.
        of: WeightId,
        /// Which rows.
        pick: RowPick,
    },
    /// The operand, a matrix, with rows and columns exchanged.
    Transpose(WeightId),
    /// `w + addend` in f32, one rounding, to f32: norms whose weight is stored as the difference from 1.
    Plus {
        /// The operand.
        of: WeightId,
        /// What is added to every element.
        addend: f32,
    },
    /// A rotary table.
    RopeTable(RopeTable),
}

/// Rows `start + i * stride .. + len` for `i < count`, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RowPick {
    /// First row.
    pub start: usize,
    /// Rows in a run.
    pub len: usize,
    /// Rows from the start of a run to the start of the next.
    pub stride: usize,
    /// Runs.
    pub count: usize,
}

impl RowPick {
    /// Rows `start..start + len`.
    pub fn run(start: usize, len: usize) -> Self {
        RowPick { start, len, stride: len, count: 1 }
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.len * self.count
    }

    /// The operand's row that stands at `row` of the pick.
    pub fn at(&self, row: usize) -> usize {
        self.start + row / self.len * self.stride + row % self.len
    }

    /// The operand's rows from the first that is picked to the last. Of a pick that passed [`WeightExpr::infer`].
    pub fn span(&self) -> Range<usize> {
        self.start..self.start + (self.count - 1) * self.stride + self.len
    }

    /// Visits the attributes, as [`crate::op::Operation::attrs`].
    pub fn attrs(&mut self, a: &mut Attrs) {
        a.required("start", &mut self.start);
        a.required("len", &mut self.len);
        a.optional("stride", &mut self.stride, 0);
        a.optional("count", &mut self.count, 1);
    }

    fn check(&self, rows: usize) -> Result<(), String> {
        if self.len == 0 || self.count == 0 {
            return Err("len and count must not be 0".into());
        }
        if self.count > 1 && self.stride < self.len {
            return Err(format!("stride {} is below len {}", self.stride, self.len));
        }
        let end = self.span().end;
        if end > rows { Err(format!("rows up to {end} are wanted, the operand has {rows}")) } else { Ok(()) }
    }
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
            WeightExpr::Cast(of, _)
            | WeightExpr::Rows { of, .. }
            | WeightExpr::Transpose(of)
            | WeightExpr::Plus { of, .. } => std::slice::from_ref(of),
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
            WeightExpr::Plus { .. } => {
                Ok(operands.first().map(|f| Facts::tensor(DType::F32, f.shape().iter().cloned())))
            }
            WeightExpr::Transpose(_) => {
                let shapes = shapes().collect::<Result<Vec<_>, _>>()?;
                let (dtype, _) = common(operands, &shapes)?;
                match shapes[0][..] {
                    [rows, cols] => Ok(Some(Facts::fixed(dtype, &[cols, rows]))),
                    _ => Err(format!("the operand has rank {}, expected a matrix", shapes[0].len())),
                }
            }
            WeightExpr::Rows { pick, .. } => {
                let shapes = shapes().collect::<Result<Vec<_>, _>>()?;
                let (dtype, _) = common(operands, &shapes)?;
                let (rows, tail) = as_matrix(&shapes[0]);
                pick.check(rows)?;
                Ok(Some(with_rows(dtype, pick.rows(), tail)))
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

    /// Data from the operands' data, of which no more than one is held at a time. `None` for a checkpoint tensor. Operands
    /// fit [`WeightExpr::infer`].
    ///
    /// # Errors
    /// Those of `operands`; [`IrError::Bug`] if there are too few or one holds no floats.
    pub fn eval<'v>(
        &self,
        mut operands: impl Iterator<Item = Result<Cow<'v, Value>, IrError>>,
        shape: &[usize],
    ) -> Result<Option<Tensor>, IrError> {
        let len = shape.iter().product();
        let (dtype, data) = match self {
            WeightExpr::Tensor(_) => return Ok(None),
            WeightExpr::RopeTable(table) => (DType::F32, table.eval()),
            WeightExpr::Concat(_) => {
                let (mut dtype, mut out) = (DType::F32, Vec::with_capacity(len));
                for operand in operands {
                    let (from, data) = floats(operand?)?;
                    out.extend_from_slice(&data);
                    dtype = from;
                }
                (dtype, out)
            }
            WeightExpr::Interleave { of, group } => {
                let turn = (group * shape.iter().skip(1).product::<usize>()).max(1);
                let (mut dtype, mut out) = (DType::F32, vec![0.0; len]);
                for (at, operand) in operands.enumerate() {
                    let (from, data) = floats(operand?)?;
                    let turns = out.chunks_exact_mut(turn).skip(at).step_by(of.len());
                    turns
                        .zip(data.chunks(turn))
                        .for_each(|(to, rows)| to[..rows.len()].copy_from_slice(rows));
                    dtype = from;
                }
                (dtype, out)
            }
            WeightExpr::Cast(_, dtype) => (*dtype, one(operands.next())?.1.into_owned()),
            WeightExpr::Plus { addend, .. } => {
                let mut data = one(operands.next())?.1.into_owned();
                data.iter_mut().for_each(|v| *v += addend);
                (DType::F32, data)
            }
            WeightExpr::Transpose(_) => {
                let ((dtype, data), rows, cols) = (one(operands.next())?, shape[0], shape[1]);
                (dtype, (0..rows * cols).map(|i| data[i % cols * rows + i / cols]).collect())
            }
            WeightExpr::Rows { pick, .. } => {
                let ((dtype, data), width) = (one(operands.next())?, shape[1..].iter().product::<usize>());
                let row = |r: usize| &data[pick.at(r) * width..][..width];
                (dtype, (0..pick.rows()).flat_map(row).copied().collect())
            }
        };
        let shape = shape.to_vec();
        Ok(Some(match self {
            WeightExpr::Cast(..) => Tensor::float(dtype, shape, data),
            // Elements of operands are numbers of their type already.
            _ => Tensor { dtype, shape, data: Data::Float(data) },
        }))
    }
}

/// The only operand.
fn one(operand: Option<Result<Cow<'_, Value>, IrError>>) -> Result<(DType, Cow<'_, [f32]>), IrError> {
    floats(operand.ok_or_else(|| IrError::Bug("a recipe without operand".into()))??)
}

/// Type and elements of an operand, without a copy of what is owned.
fn floats(value: Cow<'_, Value>) -> Result<(DType, Cow<'_, [f32]>), IrError> {
    let bug = |found: &str| IrError::Bug(format!("an operand of a recipe is {found}"));
    match value {
        Cow::Owned(Value::Tensor(Tensor { dtype, data: Data::Float(data), .. })) => {
            Ok((dtype, Cow::Owned(data)))
        }
        Cow::Borrowed(Value::Tensor(Tensor { dtype, data: Data::Float(data), .. })) => {
            Ok((*dtype, Cow::Borrowed(data)))
        }
        Cow::Owned(Value::Tensor(_)) | Cow::Borrowed(Value::Tensor(_)) => Err(bug("of integers")),
        Cow::Owned(Value::State) | Cow::Borrowed(Value::State) => Err(bug("a state")),
    }
}

/// Rows and the extents behind them: a vector has rows of one element, more than two extents count as a matrix.
fn as_matrix(shape: &[usize]) -> (usize, &[usize]) {
    match shape {
        [] => (1, &[]),
        [n] => (*n, &[]),
        [leading @ .., _] => (leading.iter().product(), &shape[shape.len() - 1..]),
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

    fn eval(expr: &WeightExpr, operands: &[&Tensor], shape: &[usize]) -> Vec<f32> {
        let value = |t: &&Tensor| Value::Tensor((*t).clone());
        let owned = expr.eval(operands.iter().map(|t| Ok(Cow::Owned(value(t)))), shape).unwrap().unwrap();
        let values: Vec<Value> = operands.iter().map(value).collect();
        let borrowed = expr.eval(values.iter().map(|v| Ok(Cow::Borrowed(v))), shape).unwrap().unwrap();
        assert_eq!((&owned, owned.len()), (&borrowed, shape.iter().product()));
        owned.floats().unwrap().to_vec()
    }

    #[test]
    fn interleave_takes_turns_and_pads() {
        let ids = vec![WeightId::from_index(0), WeightId::from_index(1)];
        let expr = WeightExpr::Interleave { of: ids, group: 2 };
        let facts = Facts::fixed(DType::F32, &[3, 1]);
        assert_eq!(expr.infer(&[&facts, &facts]), Ok(Some(Facts::fixed(DType::F32, &[8, 1]))));
        let a = Tensor::float(DType::F32, vec![3, 1], vec![1.0, 2.0, 3.0]);
        let b = Tensor::float(DType::F32, vec![3, 1], vec![-1.0, -2.0, -3.0]);
        assert_eq!(eval(&expr, &[&a, &b], &[8, 1]), [1.0, 2.0, -1.0, -2.0, 3.0, 0.0, -3.0, 0.0]);
    }

    #[test]
    fn rows_are_picked_by_runs() {
        let of = WeightId::from_index(0);
        let stacked = Tensor::float(DType::F32, vec![2, 3, 2], (0..12).map(|i| i as f32).collect());
        let facts = Facts::fixed(DType::F32, &[2, 3, 2]);
        let expr = WeightExpr::Rows { of, pick: RowPick { start: 1, len: 2, stride: 3, count: 2 } };
        assert_eq!(expr.infer(&[&facts]), Ok(Some(Facts::fixed(DType::F32, &[4, 2]))));
        assert_eq!(eval(&expr, &[&stacked], &[4, 2]), [2.0, 3.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
        let vector = Facts::fixed(DType::BF16, &[6]);
        let every_other = WeightExpr::Rows { of, pick: RowPick { start: 0, len: 1, stride: 2, count: 3 } };
        assert_eq!(every_other.infer(&[&vector]), Ok(Some(Facts::fixed(DType::BF16, &[3]))));
        let beyond = WeightExpr::Rows { of, pick: RowPick::run(5, 2) };
        assert_eq!(beyond.infer(&[&vector]), Err("rows up to 7 are wanted, the operand has 6".into()));
    }

    #[test]
    fn transpose_and_plus() {
        let of = WeightId::from_index(0);
        let a = Tensor::float(DType::BF16, vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let facts = Facts::fixed(DType::BF16, &[2, 3]);
        let transpose = WeightExpr::Transpose(of);
        assert_eq!(transpose.infer(&[&facts]), Ok(Some(Facts::fixed(DType::BF16, &[3, 2]))));
        assert_eq!(eval(&transpose, &[&a], &[3, 2]), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(transpose.infer(&[&Facts::fixed(DType::BF16, &[2])]).unwrap_err().contains("rank 1"));
        let plus = WeightExpr::Plus { of, addend: 0.001 };
        assert_eq!(plus.infer(&[&facts]), Ok(Some(Facts::fixed(DType::F32, &[2, 3]))));
        assert_eq!(eval(&plus, &[&a], &[2, 3])[0], 1.001);
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
