//! Weight recipes as streams of rows: any block of rows of any recipe, without holding a tensor.

use std::collections::BTreeSet;
use std::ops::Range;

use half::{bf16, f16};
use lathe_ir::Graph;
use lathe_ir::entity::WeightId;
use lathe_ir::rope_table::RopeTable;
use lathe_ir::weight::{RowPick, WeightExpr};
use lathe_kernels::Element;
use lathe_numerics::DType;

use super::transposed::Transposed;
use crate::checkpoint::{TensorInfo, TensorSource};
use crate::error::{CompileError, Result};

/// A matrix `dtype[rows, row_len]` that can be read by rows. A vector `[n]` has `n` rows of one element.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Element type of what is read.
    pub dtype: DType,
    /// Rows, padding of the recipe included.
    pub rows: usize,
    /// Elements in a row.
    pub row_len: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Tensor(String),
    Concat(Vec<Rows>),
    Interleave { of: Vec<Rows>, group: usize },
    Cast(Box<Rows>),
    Pick { of: Box<Rows>, pick: RowPick },
    Transpose(Box<Transposed>),
    Plus { of: Box<Rows>, addend: f32 },
    RopeTable { table: RopeTable, frequencies: Vec<f32> },
}

impl Rows {
    /// A tensor of the source as it is stored.
    ///
    /// # Errors
    /// A tensor that the source does not have.
    pub fn tensor(source: &dyn TensorSource, name: &str) -> Result<Rows> {
        let info =
            source.info(name).ok_or_else(|| CompileError::input(format!("tensor {name}"), "it is absent"))?;
        Ok(Rows {
            dtype: info.dtype,
            rows: info.rows(),
            row_len: info.row_len(),
            kind: Kind::Tensor(name.into()),
        })
    }

    /// All rows of the first part, then all of the second, and so on.
    pub fn concat(of: Vec<Rows>) -> Result<Rows> {
        let (dtype, row_len) = common(&of, "concat")?;
        Ok(Rows { dtype, rows: of.iter().map(|r| r.rows).sum(), row_len, kind: Kind::Concat(of) })
    }

    /// `group` rows of each part in turn; parts end on a whole group, with zero rows where theirs run out.
    pub fn interleave(of: Vec<Rows>, group: usize) -> Result<Rows> {
        let (dtype, row_len) = common(&of, "interleave")?;
        let longest = of.iter().map(|r| r.rows).max().unwrap_or(0);
        let rows = longest.next_multiple_of(group.max(1)) * of.len();
        Ok(Rows { dtype, rows, row_len, kind: Kind::Interleave { of, group: group.max(1) } })
    }

    /// The same rows, each element rounded to `dtype`.
    pub fn cast(self, dtype: DType) -> Rows {
        if self.dtype == dtype {
            return self;
        }
        Rows { dtype, rows: self.rows, row_len: self.row_len, kind: Kind::Cast(Box::new(self)) }
    }

    /// Runs of rows of `of`.
    pub fn pick(of: Rows, pick: RowPick) -> Rows {
        Rows {
            dtype: of.dtype,
            rows: pick.rows(),
            row_len: of.row_len,
            kind: Kind::Pick { of: of.into(), pick },
        }
    }

    /// Rows and columns exchanged. The whole operand is in memory from the first row that is read to the last.
    pub fn transpose(of: Rows) -> Rows {
        let (dtype, rows, row_len) = (of.dtype, of.row_len, of.rows);
        Rows { dtype, rows, row_len, kind: Kind::Transpose(Box::new(Transposed::new(of))) }
    }

    /// `addend` added to every element, in f32.
    pub fn plus(of: Rows, addend: f32) -> Rows {
        let of = Box::new(of.cast(DType::F32));
        Rows { dtype: DType::F32, rows: of.rows, row_len: of.row_len, kind: Kind::Plus { of, addend } }
    }

    /// A rotary table, computed as it is read.
    pub fn rope_table(table: RopeTable) -> Rows {
        let frequencies = table.frequencies();
        let (rows, row_len) = (table.positions, table.dim);
        Rows { dtype: DType::F32, rows, row_len, kind: Kind::RopeTable { table, frequencies } }
    }

    /// The stream of a graph's weight.
    ///
    /// # Errors
    /// A tensor that the source does not have, or that differs from its declaration.
    pub fn of_weight(graph: &Graph, weight: WeightId, source: &dyn TensorSource) -> Result<Rows> {
        let all =
            |ids: &[WeightId]| ids.iter().map(|&w| Rows::of_weight(graph, w, source)).collect::<Result<_>>();
        let rows = match &graph.weight_data(weight).expr {
            WeightExpr::Tensor(name) => Rows::tensor(source, name)?,
            WeightExpr::Concat(of) => Rows::concat(all(of)?)?,
            WeightExpr::Interleave { of, group } => Rows::interleave(all(of)?, *group)?,
            WeightExpr::Cast(of, dtype) => Rows::of_weight(graph, *of, source)?.cast(*dtype),
            WeightExpr::RopeTable(table) => Rows::rope_table(table.clone()),
            WeightExpr::Rows { of, pick } => Rows::pick(Rows::of_weight(graph, *of, source)?, *pick),
            WeightExpr::Transpose(of) => Rows::transpose(Rows::of_weight(graph, *of, source)?),
            WeightExpr::Plus { of, addend } => Rows::plus(Rows::of_weight(graph, *of, source)?, *addend),
        };
        let facts = graph.weight_facts(weight);
        let declared = facts.fixed_shape().unwrap_or_default();
        let dtype = facts.dtype().unwrap_or(rows.dtype);
        let matrix = TensorInfo { dtype, shape: declared };
        if facts.dtype() != Some(rows.dtype) || (matrix.rows(), matrix.row_len()) != (rows.rows, rows.row_len)
        {
            let (have, name) = ((rows.dtype, rows.rows, rows.row_len), graph.weight_name(weight));
            let why = format!(
                "it holds {}[{}, {}], declared {}",
                have.0,
                have.1,
                have.2,
                graph.facts_text(graph.weight_data(weight).value)
            );
            return Err(CompileError::input(format!("weight @{name}"), why));
        }
        Ok(rows)
    }

    /// Adds the names of the source's tensors that `range` is read from.
    pub fn tensors(&self, range: Range<usize>, names: &mut BTreeSet<String>) {
        if range.is_empty() {
            return;
        }
        match &self.kind {
            Kind::Tensor(name) => drop(names.insert(name.clone())),
            Kind::RopeTable { .. } => {}
            Kind::Cast(of) | Kind::Plus { of, .. } => of.tensors(range, names),
            Kind::Transpose(of) => of.of().tensors(0..of.of().rows, names),
            Kind::Pick { of, pick } => {
                range.for_each(|row| of.tensors(pick.at(row)..pick.at(row) + 1, names));
            }
            Kind::Concat(of) => {
                let mut start = 0;
                for part in of {
                    let within = |row: usize| row.clamp(start, start + part.rows) - start;
                    part.tensors(within(range.start)..within(range.end), names);
                    start += part.rows;
                }
            }
            Kind::Interleave { of, group } => {
                for row in range {
                    let (part, from) =
                        (&of[row / group % of.len()], row / (group * of.len()) * group + row % group);
                    part.tensors(from..(from + 1).min(part.rows), names);
                }
            }
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_len * self.dtype.size()
    }

    /// Reads `range` into `out`, which is exactly as long.
    ///
    /// # Errors
    /// What the source says.
    pub fn read(&self, source: &dyn TensorSource, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        debug_assert_eq!(out.len(), range.len() * self.row_bytes());
        match &self.kind {
            Kind::Tensor(name) => source.read_rows(name, range, out),
            Kind::Concat(of) => {
                let (mut start, mut out) = (0, out);
                for part in of {
                    let from = range.start.clamp(start, start + part.rows);
                    let to = range.end.clamp(start, start + part.rows);
                    let (mine, rest) = out.split_at_mut((to - from) * part.row_bytes());
                    if from < to {
                        part.read(source, from - start..to - start, mine)?;
                    }
                    (start, out) = (start + part.rows, rest);
                }
                Ok(())
            }
            Kind::Interleave { of, group } => {
                let (mut row, mut out) = (range.start, out);
                while row < range.end {
                    let (block, within) = (row / (group * of.len()), row % (group * of.len()));
                    let part = &of[within / group];
                    let run = (group - within % group).min(range.end - row);
                    let from = block * group + within % group;
                    let stored = part.rows.saturating_sub(from).min(run);
                    let (mine, rest) = out.split_at_mut(run * self.row_bytes());
                    let (data, padding) = mine.split_at_mut(stored * self.row_bytes());
                    if stored > 0 {
                        part.read(source, from..from + stored, data)?;
                    }
                    padding.fill(0);
                    (row, out) = (row + run, rest);
                }
                Ok(())
            }
            Kind::Cast(of) => {
                let mut stored = vec![0; range.len() * of.row_bytes()];
                of.read(source, range, &mut stored)?;
                convert(&stored, of.dtype, self.dtype, out)
            }
            Kind::Pick { of, pick } => {
                let (mut row, mut out) = (range.start, out);
                while row < range.end {
                    let run = (pick.len - row % pick.len).min(range.end - row);
                    let (mine, rest) = out.split_at_mut(run * self.row_bytes());
                    of.read(source, pick.at(row)..pick.at(row) + run, mine)?;
                    (row, out) = (row + run, rest);
                }
                Ok(())
            }
            Kind::Transpose(of) => of.read(source, range, out),
            Kind::Plus { of, addend } => {
                of.read(source, range, out)?;
                for bytes in out.as_chunks_mut::<4>().0 {
                    *bytes = (f32::from_le_bytes(*bytes) + addend).to_le_bytes();
                }
                Ok(())
            }
            Kind::RopeTable { table, frequencies } => {
                let mut values = vec![0.0; self.row_len];
                for (position, bytes) in range.zip(out.chunks_exact_mut(self.row_bytes().max(1))) {
                    table.row(frequencies, position, &mut values);
                    bytes
                        .chunks_exact_mut(4)
                        .zip(&values)
                        .for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes()));
                }
                Ok(())
            }
        }
    }
}

fn common(of: &[Rows], what: &str) -> Result<(DType, usize)> {
    let Some(first) = of.first() else { return Err(CompileError::Bug(format!("{what} of no weights"))) };
    if of.iter().any(|r| (r.dtype, r.row_len) != (first.dtype, first.row_len)) {
        return Err(CompileError::Bug(format!("{what} of weights with different dtypes or columns")));
    }
    Ok((first.dtype, first.row_len))
}

/// Rounds every element of `from` once, to nearest even.
///
/// # Errors
/// A type that holds no floats: a bug of whoever made the recipe.
pub fn convert(from: &[u8], from_dtype: DType, to_dtype: DType, to: &mut [u8]) -> Result<()> {
    use DType::{BF16, F16, F32};
    match (from_dtype, to_dtype) {
        (a, b) if a == b => to.copy_from_slice(from),
        (F32, BF16) => map(from, to, f32::from_le_bytes, bf16::to_le_bytes),
        (F32, F16) => map(from, to, f32::from_le_bytes, f16::to_le_bytes),
        (BF16, F32) => map(from, to, bf16::from_le_bytes, f32::to_le_bytes),
        (BF16, F16) => map(from, to, bf16::from_le_bytes, f16::to_le_bytes),
        (F16, F32) => map(from, to, f16::from_le_bytes, f32::to_le_bytes),
        (F16, BF16) => map(from, to, f16::from_le_bytes, bf16::to_le_bytes),
        (a, b) => return Err(CompileError::Bug(format!("no conversion from {a} to {b}"))),
    }
    Ok(())
}

/// Every element as f32, which holds all of them.
pub fn widen(from: &[u8], dtype: DType, to: &mut [f32]) {
    match dtype {
        DType::BF16 => widen_all(from, to, bf16::from_le_bytes),
        DType::F16 => widen_all(from, to, f16::from_le_bytes),
        DType::F32 | DType::I32 | DType::U32 => widen_all(from, to, f32::from_le_bytes),
    }
}

fn widen_all<S: Element, const A: usize>(from: &[u8], to: &mut [f32], read: impl Fn([u8; A]) -> S) {
    for (from, to) in from.as_chunks::<A>().0.iter().zip(to) {
        *to = read(*from).to_f32();
    }
}

fn map<S: Element, T: Element, const A: usize, const B: usize>(
    from: &[u8],
    to: &mut [u8],
    read: impl Fn([u8; A]) -> S,
    write: impl Fn(T) -> [u8; B],
) {
    for (from, to) in from.as_chunks::<A>().0.iter().zip(to.as_chunks_mut::<B>().0) {
        *to = write(T::from_f32(read(*from).to_f32()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Tensors held in memory.
    struct Held(BTreeMap<String, (TensorInfo, Vec<u8>)>);

    impl TensorSource for Held {
        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.get(name).map(|(info, _)| info.clone())
        }
        fn names(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }
        fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
            let (info, bytes) = &self.0[name];
            out.copy_from_slice(&bytes[rows.start * info.row_bytes()..rows.end * info.row_bytes()]);
            Ok(())
        }
    }

    fn held(tensors: &[(&str, usize, usize)]) -> Held {
        let mut next = 0.0f32;
        let tensors = tensors.iter().map(|&(name, rows, row_len)| {
            let bytes = (0..rows * row_len)
                .flat_map(|_| {
                    next += 1.0;
                    next.to_le_bytes()
                })
                .collect();
            (name.into(), (TensorInfo { dtype: DType::F32, shape: vec![rows, row_len] }, bytes))
        });
        Held(tensors.collect())
    }

    fn floats(rows: &Rows, source: &Held, range: Range<usize>) -> Vec<f32> {
        let rows = rows.clone().cast(DType::F32);
        let mut out = vec![0xff; range.len() * rows.row_bytes()];
        rows.read(source, range, &mut out).unwrap();
        out.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn every_range_of_a_recipe_is_a_part_of_the_whole() {
        let source = held(&[("a", 5, 2), ("b", 3, 2), ("c", 5, 2)]);
        let tensor = |name| Rows::tensor(&source, name).unwrap();
        let concat = Rows::concat(vec![tensor("a"), tensor("b"), tensor("c")]).unwrap();
        let interleave = Rows::interleave(vec![tensor("a"), tensor("c")], 4).unwrap();
        let computed = Rows::rope_table(RopeTable::plain(6, 2, 100.0));
        let pick = Rows::pick(concat.clone(), RowPick { start: 1, len: 2, stride: 3, count: 4 });
        let plus = Rows::plus(pick.clone(), 0.5);
        let turned = Rows::transpose(Rows::transpose(concat.clone()));
        assert_eq!(floats(&turned, &source, 0..13), floats(&concat, &source, 0..13));
        let recipes =
            [concat, interleave.clone(), interleave.cast(DType::BF16), computed, pick, plus, turned];
        for recipe in recipes {
            let whole = floats(&recipe, &source, 0..recipe.rows);
            for start in 0..=recipe.rows {
                for end in start..=recipe.rows {
                    assert_eq!(floats(&recipe, &source, start..end), whole[start * 2..end * 2]);
                }
            }
        }
    }

    #[test]
    fn interleave_alternates_groups_and_pads_with_zeros() {
        let source = held(&[("a", 3, 1), ("b", 3, 1)]);
        let parts = vec![Rows::tensor(&source, "a").unwrap(), Rows::tensor(&source, "b").unwrap()];
        let rows = Rows::interleave(parts, 2).unwrap();
        assert_eq!(floats(&rows, &source, 0..rows.rows), [1.0, 2.0, 4.0, 5.0, 3.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        // 1 + 2^-8 is a tie in bf16 and exact in f16; 70000 overflows f16.
        let tie = 257.0 / 256.0;
        let cases = [(tie, DType::BF16, 1.0), (tie, DType::F16, tie)];
        for (x, dtype, want) in cases.into_iter().chain([(70_000.0, DType::F16, f32::INFINITY)]) {
            let mut narrow = [0; 2];
            convert(&f32::to_le_bytes(x), DType::F32, dtype, &mut narrow).unwrap();
            let mut wide = [0; 4];
            convert(&narrow, dtype, DType::F32, &mut wide).unwrap();
            assert_eq!(f32::from_le_bytes(wide), want, "{x} as {dtype}");
        }
    }
}
