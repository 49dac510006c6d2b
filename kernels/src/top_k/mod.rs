//! Routing: the `k` largest logits of a row with their softmax weights, then the choices of all rows grouped by expert.
//!
//! Ids stand by descending logit, of equal ones the lower first, NaN after all numbers. Weights are those of the IR op
//! `top_k`, bit for bit, on every ISA. A *choice* is a row and a place among its `k`, counted `row * k + place`. The
//! grouping is a counting sort: choices of expert 0 in ascending order, then those of expert 1, and so on.

use std::ops::Range;

use lathe_numerics::DType;
use lathe_numerics::contract::{TREE_LANES, tree16};

use crate::error::{KernelError, at_least, at_most, product, span};
use crate::view::same;
use crate::{Dst, IsaPath, Kernel, Src, lanes};

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

const NAME: &str = "top_k";

/// What the weights are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Every logit: 16 lanes and the contract's tree.
    All,
    /// The chosen logits, left to right.
    Chosen,
}

impl Over {
    /// The word for it in plans and device sources.
    pub const fn name(self) -> &'static str {
        match self {
            Over::All => "all",
            Over::Chosen => "chosen",
        }
    }

    /// Reads [`Over::name`] back.
    pub fn from_name(name: &str) -> Option<Self> {
        [Over::All, Over::Chosen].into_iter().find(|o| o.name() == name)
    }
}

/// Operands of a [`TopK`].
pub struct TopKArgs<'a> {
    /// Instruction set.
    pub path: IsaPath,
    /// `f32[rows, n]`, dense.
    pub logits: Src<'a>,
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub n: usize,
    /// Choices of a row.
    pub k: usize,
    /// See there.
    pub over: Over,
    /// `i32[rows, k]`.
    pub ids: Dst<'a>,
    /// `f32[rows, k]`.
    pub weights: Dst<'a>,
}

/// A checked choice of experts; a unit is a row.
pub struct TopK<'a>(TopKArgs<'a>);

impl<'a> TopK<'a> {
    /// Checks operands against shapes.
    ///
    /// # Errors
    /// `Shape` for short buffers and a `k` outside of `1..=n`; `Unsupported` for dtypes.
    pub fn new(a: TopKArgs<'a>) -> Result<Self, KernelError> {
        same(NAME, "logits dtype", DType::F32, a.logits.dtype())?;
        same(NAME, "ids dtype", DType::I32, a.ids.dtype())?;
        same(NAME, "weights dtype", DType::F32, a.weights.dtype())?;
        at_least(NAME, "k", 1, a.k)?;
        at_most(NAME, "k", a.n, a.k)?;
        at_most(NAME, "n", i32::MAX as usize, a.n)?;
        at_least(NAME, "logits elements", span(NAME, "n", a.rows, a.n, a.n)?, a.logits.len())?;
        at_least(NAME, "ids elements", product(NAME, "ids", &[a.rows, a.k])?, a.ids.len())?;
        at_least(NAME, "weights elements", product(NAME, "weights", &[a.rows, a.k])?, a.weights.len())?;
        Ok(TopK(a))
    }
}

/// A key that is larger for logits that come first: by value, then by lower id. NaN is below all numbers.
#[inline(always)]
fn key(logit: f32, id: usize) -> u64 {
    // Adding zero makes -0 and 0 one value; then the bits of a float order as integers once negative ones are flipped.
    let bits = (logit + 0.0).to_bits();
    let ordered = bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000);
    let ordered = if logit.is_nan() { 0 } else { ordered };
    u64::from(ordered) << 32 | u64::from(u32::MAX - id as u32)
}

fn id_of(key: u64) -> usize {
    (u32::MAX - key as u32) as usize
}

fn choose(logits: &[f32], over: Over, ids: &mut [i32], weights: &mut [f32]) {
    let mut below = u64::MAX;
    for id in ids.iter_mut() {
        let keys = logits.iter().enumerate().map(|(i, l)| key(*l, i));
        below = keys.filter(|k| *k < below).max().unwrap_or(0);
        *id = id_of(below) as i32;
    }
    let max = logits[ids[0] as usize];
    for (weight, id) in weights.iter_mut().zip(&*ids) {
        *weight = lanes::exp(logits[*id as usize] - max);
    }
    let sum = match over {
        Over::Chosen => weights.iter().fold(0.0, |sum, w| sum + w),
        Over::All => {
            let mut sums = [0.0; TREE_LANES];
            for run in logits.chunks(TREE_LANES) {
                sums.iter_mut().zip(run).for_each(|(s, l)| *s += lanes::exp(l - max));
            }
            tree16(&sums)
        }
    };
    weights.iter_mut().for_each(|w| *w /= sum);
}

impl Kernel for TopK<'_> {
    fn units(&self) -> usize {
        self.0.rows
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        let a = &self.0;
        assert!(units.end <= a.rows);
        a.path.run(
            #[inline(always)]
            || {
                for r in units {
                    // SAFETY: rows were checked when built; the unit owns its rows of ids and weights.
                    let (logits, ids, weights) = unsafe {
                        (
                            a.logits.slice::<f32>(r * a.n, a.n),
                            std::slice::from_raw_parts_mut(a.ids.byte_ptr().cast::<i32>().add(r * a.k), a.k),
                            a.weights.slice::<f32>(r * a.k, a.k),
                        )
                    };
                    choose(logits, a.over, ids, weights);
                }
            },
        );
    }
}

/// Operands of a [`GroupChoices`].
pub struct GroupChoicesArgs<'a> {
    /// `i32[choices]`: each choice's expert.
    pub ids: &'a [i32],
    /// Experts.
    pub experts: usize,
    /// `i32[choices]`: choices by expert. What lies past the last expert's end is not written.
    pub order: Dst<'a>,
    /// `i32[experts + 1]`: where each expert's choices begin in `order`, and the end.
    pub starts: Dst<'a>,
}

/// A checked grouping; one unit.
pub struct GroupChoices<'a>(GroupChoicesArgs<'a>);

impl<'a> GroupChoices<'a> {
    /// Checks operands against shapes. Ids outside of the experts belong to no group.
    ///
    /// # Errors
    /// `Shape` for short buffers, `Unsupported` for dtypes.
    pub fn new(a: GroupChoicesArgs<'a>) -> Result<Self, KernelError> {
        same(NAME, "order dtype", DType::I32, a.order.dtype())?;
        same(NAME, "starts dtype", DType::I32, a.starts.dtype())?;
        at_least(NAME, "experts", 1, a.experts)?;
        at_most(NAME, "choices", i32::MAX as usize, a.ids.len())?;
        at_least(NAME, "order elements", a.ids.len(), a.order.len())?;
        at_least(NAME, "starts elements", a.experts.saturating_add(1), a.starts.len())?;
        Ok(GroupChoices(a))
    }
}

impl Kernel for GroupChoices<'_> {
    fn units(&self) -> usize {
        1
    }

    unsafe fn run(&self, units: Range<usize>, _: &mut [f32]) {
        if units.is_empty() {
            return;
        }
        let a = &self.0;
        // SAFETY: lengths were checked when built; the one unit owns both.
        let (order, starts) = unsafe {
            (
                std::slice::from_raw_parts_mut(a.order.byte_ptr().cast::<i32>(), a.ids.len()),
                std::slice::from_raw_parts_mut(a.starts.byte_ptr().cast::<i32>(), a.experts + 1),
            )
        };
        let expert = |id: &i32| usize::try_from(*id).ok().filter(|e| *e < a.experts);
        starts.fill(0);
        a.ids.iter().filter_map(expert).for_each(|e| starts[e + 1] += 1);
        for e in 0..a.experts {
            starts[e + 1] += starts[e];
        }
        // An expert's start is its cursor; when all are placed it is the start of the next one.
        for (choice, id) in a.ids.iter().enumerate() {
            if let Some(e) = expert(id) {
                order[starts[e] as usize] = choice as i32;
                starts[e] += 1;
            }
        }
        starts.copy_within(..a.experts, 1);
        starts[0] = 0;
    }
}
