//! A kernel launch as a plan stores it: which code, how large a grid, which arguments, when.

use crate::StepTable;

/// A size that the host knows when a step is made; the index of the plan's symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub enum Symbol {
    /// `t`: tokens in the step, padding included.
    Tokens,
    /// `s`: sequences in the step, padding included.
    Sequences,
    /// `r`: rows to sample, padding included.
    Rows,
}

/// Values of the symbols in one step, and what the device brings to grid arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbols {
    /// `t`.
    pub tokens: u32,
    /// `s`.
    pub sequences: u32,
    /// `r`.
    pub rows: u32,
    /// True if every sequence of the step has one row (padding has none).
    pub decode: bool,
    /// Multiprocessors of the device; never changes a bit of any result.
    pub sm_count: u32,
}

impl Symbols {
    /// The value of a symbol.
    pub const fn get(&self, symbol: Symbol) -> u32 {
        match symbol {
            Symbol::Tokens => self.tokens,
            Symbol::Sequences => self.sequences,
            Symbol::Rows => self.rows,
        }
    }
}

/// `times * ceil(symbol / per)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub struct Term {
    /// What is counted.
    pub symbol: Symbol,
    /// Divisor, not zero.
    pub per: u32,
    /// Factor.
    pub times: u32,
}

/// Blocks in one dimension of a grid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub enum Extent {
    /// The sum of a constant and of terms.
    Sum {
        /// Blocks whatever the step.
        constant: u32,
        /// Blocks that follow the step.
        terms: Vec<Term>,
    },
    /// As many as give the device `per_sm` blocks per multiprocessor together with the other dimensions, at least one
    /// and at most `most`. The kernel strides over its work by this extent.
    Fill {
        /// Blocks per multiprocessor.
        per_sm: u32,
        /// Bound, not zero.
        most: u32,
    },
}

impl Extent {
    /// An extent that no step changes.
    pub const fn fixed(constant: u32) -> Self {
        Extent::Sum { constant, terms: Vec::new() }
    }

    /// `times * ceil(symbol / per)`.
    pub fn per(symbol: Symbol, per: u32, times: u32) -> Self {
        Extent::Sum { constant: 0, terms: vec![Term { symbol, per, times }] }
    }

    fn sum(&self, symbols: &Symbols) -> Option<u32> {
        let Extent::Sum { constant, terms } = self else { return Some(1) };
        terms.iter().try_fold(*constant, |sum, t| {
            let blocks = symbols.get(t.symbol).checked_add(t.per.checked_sub(1)?)? / t.per;
            sum.checked_add(blocks.checked_mul(t.times)?)
        })
    }
}

/// When a launch runs. Launches that share a node and split its cases are each other's alternatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub enum When {
    /// In every step.
    Always,
    /// While a symbol lies in a range, both ends inclusive.
    Range {
        /// What is looked at.
        symbol: Symbol,
        /// Smallest value.
        min: u32,
        /// Largest value.
        max: u32,
    },
    /// Only in steps in which some sequence has more than one row.
    Mixed,
}

impl When {
    /// True if the launch belongs to the step.
    pub const fn holds(&self, symbols: &Symbols) -> bool {
        match *self {
            When::Always => true,
            When::Range { symbol, min, max } => {
                let value = symbols.get(symbol);
                min <= value && value <= max
            }
            When::Mixed => !symbols.decode,
        }
    }
}

/// A kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub enum Arg {
    /// Address of the node's input operand of this index. For a cache layer: that layer in block 0.
    Input(u32),
    /// Address of the node's output operand of this index; operands past the node's own results are workspace.
    Output(u32),
    /// Address of a table that the step brings.
    Table(StepTable),
    /// A symbol's value, `u32`.
    Symbol(Symbol),
    /// A constant.
    U32(u32),
    /// A constant.
    U64(u64),
    /// A constant.
    F32(f32),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "plan", derive(bincode::Encode, bincode::Decode, serde::Serialize))]
pub struct DeviceLaunch {
    /// Index into the program's modules.
    pub module: u32,
    /// Name of the `__global__` function.
    pub entry: String,
    /// When it runs.
    pub when: When,
    /// Blocks in x, y, z. A launch with an extent of zero is skipped.
    pub grid: [Extent; 3],
    /// Threads of a block, a multiple of 32.
    pub block: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// May start before the launch before it has ended (programmatic dependent launch): the kernel waits by itself
    /// before it touches what that one writes. Takes effect from sm_90 on.
    pub dependent: bool,
    /// Arguments in the kernel's order.
    pub args: Vec<Arg>,
}

impl DeviceLaunch {
    /// Blocks in x, y, z for a step; `None` where a number does not fit 32 bits.
    pub fn grid(&self, symbols: &Symbols) -> Option<[u32; 3]> {
        let mut grid = [0; 3];
        for (blocks, extent) in grid.iter_mut().zip(&self.grid) {
            *blocks = extent.sum(symbols)?;
        }
        let others = grid.iter().try_fold(1u32, |product, blocks| product.checked_mul(*blocks))?;
        for (blocks, extent) in grid.iter_mut().zip(&self.grid) {
            if let Extent::Fill { per_sm, most } = extent {
                let wanted = symbols.sm_count.checked_mul(*per_sm)?;
                *blocks = wanted.div_ceil(others.max(1)).clamp(1, (*most).max(1));
            }
        }
        Some(grid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Symbols = Symbols { tokens: 33, sequences: 4, rows: 2, decode: false, sm_count: 132 };

    fn launch(grid: [Extent; 3]) -> DeviceLaunch {
        DeviceLaunch {
            module: 0,
            entry: "k".into(),
            when: When::Always,
            grid,
            block: 128,
            shared_bytes: 0,
            dependent: false,
            args: vec![],
        }
    }

    #[test]
    fn grids_follow_the_step() {
        let tiles = Extent::Sum {
            constant: 1,
            terms: vec![
                Term { symbol: Symbol::Tokens, per: 16, times: 2 },
                Term { symbol: Symbol::Sequences, per: 1, times: 1 },
            ],
        };
        let l = launch([tiles, Extent::fixed(3), Extent::fixed(1)]);
        assert_eq!(l.grid(&STEP), Some([1 + 2 * 3 + 4, 3, 1]));
        let none = Symbols { tokens: 0, ..STEP };
        assert_eq!(
            launch([Extent::per(Symbol::Tokens, 8, 1), Extent::fixed(1), Extent::fixed(1)])
                .grid(&none)
                .unwrap()[0],
            0
        );
    }

    #[test]
    fn filling_takes_the_other_dimensions_into_account() {
        let l = |most| {
            launch([Extent::fixed(8), Extent::per(Symbol::Sequences, 1, 1), Extent::Fill { per_sm: 2, most }])
        };
        assert_eq!(l(64).grid(&STEP), Some([8, 4, 9])); // ceil(264 / 32)
        assert_eq!(l(5).grid(&STEP), Some([8, 4, 5]));
        assert_eq!(l(64).grid(&Symbols { sm_count: 1, ..STEP }), Some([8, 4, 1]));
    }

    #[test]
    fn what_does_not_fit_is_no_grid() {
        let huge = Extent::per(Symbol::Tokens, 1, u32::MAX);
        assert_eq!(launch([huge, Extent::fixed(1), Extent::fixed(1)]).grid(&STEP), None);
        let none = Extent::per(Symbol::Tokens, 0, 1);
        assert_eq!(launch([none, Extent::fixed(1), Extent::fixed(1)]).grid(&STEP), None);
    }

    #[test]
    fn conditions_hold_at_their_ends() {
        let range = When::Range { symbol: Symbol::Tokens, min: 33, max: 33 };
        assert!(range.holds(&STEP) && When::Always.holds(&STEP) && When::Mixed.holds(&STEP));
        assert!(!When::Range { symbol: Symbol::Rows, min: 3, max: 9 }.holds(&STEP));
        assert!(!When::Mixed.holds(&Symbols { decode: true, ..STEP }));
    }
}
