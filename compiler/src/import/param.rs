//! Parameters of a model: tensors of the checkpoint, and what is made of them where it stores them in another form.

use lathe_ir::weight::RowPick;

use super::TensorSpec;

/// A parameter as a graph wants it.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// A tensor of the checkpoint, in the plan's type.
    Stored(TensorSpec),
    /// Some rows of a fused parameter.
    Part {
        /// The fused parameter.
        of: Box<Param>,
        /// Which rows.
        rows: RowPick,
        /// What they are, for the name.
        name: String,
    },
    /// A matrix that is stored with rows and columns exchanged.
    Transposed(Box<Param>),
    /// Vectors one after the other.
    Joined(Vec<Param>),
    /// A norm's scale that is stored as its difference from 1.
    OnePlus(Box<Param>),
}

impl Param {
    /// The stored `[rows, cols]`.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        Param::Stored(TensorSpec::matrix(name, rows, cols))
    }

    /// The stored `[n]`.
    pub fn vector(name: impl Into<String>, n: usize) -> Self {
        Param::Stored(TensorSpec::vector(name, n))
    }

    /// Some rows of this parameter.
    #[must_use]
    pub fn part(&self, name: impl Into<String>, rows: RowPick) -> Self {
        Param::Part { of: Box::new(self.clone()), rows, name: name.into() }
    }

    /// Calls `visit` with every stored tensor that this is made of.
    pub fn stored<'a>(&'a self, visit: &mut dyn FnMut(&'a TensorSpec)) {
        match self {
            Param::Stored(spec) => visit(spec),
            Param::Part { of, .. } | Param::Transposed(of) | Param::OnePlus(of) => of.stored(visit),
            Param::Joined(of) => of.iter().for_each(|p| p.stored(visit)),
        }
    }
}

/// A linear layer: `[n, k]`, and its bias `[n]` if it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// The matrix.
    pub weight: Param,
    /// What is added.
    pub bias: Option<Param>,
}

impl Projection {
    /// `PREFIX.weight` of `[rows, cols]`, and `PREFIX.bias` if `bias`.
    pub fn new(prefix: &str, rows: usize, cols: usize, bias: bool) -> Self {
        Projection {
            weight: Param::matrix(format!("{prefix}.weight"), rows, cols),
            bias: bias.then(|| Param::vector(format!("{prefix}.bias"), rows)),
        }
    }

    /// The same of a weight that is stored as `[cols, rows]` (GPT-2's `Conv1D`).
    pub fn transposed(prefix: &str, rows: usize, cols: usize, bias: bool) -> Self {
        let stored = Projection::new(prefix, rows, cols, bias);
        let weight = Param::Transposed(Box::new(Param::matrix(format!("{prefix}.weight"), cols, rows)));
        Projection { weight, ..stored }
    }

    /// Some rows of a fused projection.
    #[must_use]
    pub fn part(&self, name: &'static str, rows: RowPick) -> Self {
        Projection {
            weight: self.weight.part(name, rows),
            bias: self.bias.as_ref().map(|b| b.part(name, rows)),
        }
    }

    /// Calls `visit` with every stored tensor.
    pub fn stored<'a>(&'a self, visit: &mut dyn FnMut(&'a TensorSpec)) {
        self.weight.stored(visit);
        self.bias.iter().for_each(|b| b.stored(visit));
    }
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Division by the root mean square (arXiv 1910.07467).
    Rms,
    /// Mean taken away, division by the standard deviation (arXiv 1607.06450).
    Layer,
}

/// A norm of rows, or of equal parts of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// What it computes.
    pub kind: NormKind,
    /// Scale.
    pub weight: Param,
    /// What is added, in layer norms that have it.
    pub bias: Option<Param>,
    /// Added to the mean square.
    pub eps: f32,
    /// Equal parts of a row that are normalised apart.
    pub groups: usize,
}

impl Norm {
    /// `PREFIX.weight` of `[n]`.
    pub fn rms(prefix: &str, n: usize, eps: f32) -> Self {
        let weight = Param::Stored(TensorSpec::norm(format!("{prefix}.weight"), n));
        Norm { kind: NormKind::Rms, weight, bias: None, eps, groups: 1 }
    }

    /// The same, where the scale is stored as its difference from 1 (Gemma).
    pub fn rms_one_plus(prefix: &str, n: usize, eps: f32) -> Self {
        let norm = Norm::rms(prefix, n, eps);
        Norm { weight: Param::OnePlus(Box::new(norm.weight)), ..norm }
    }

    /// `PREFIX.weight` of `[n]`, and `PREFIX.bias` if `bias`.
    pub fn layer(prefix: &str, n: usize, eps: f32, bias: bool) -> Self {
        let bias = bias.then(|| Param::vector(format!("{prefix}.bias"), n));
        Norm { kind: NormKind::Layer, bias, ..Norm::rms(prefix, n, eps) }
    }

    /// The same norm of `groups` parts of a row.
    #[must_use]
    pub fn by_groups(self, groups: usize) -> Self {
        Norm { groups, ..self }
    }

    /// Calls `visit` with every stored tensor.
    pub fn stored<'a>(&'a self, visit: &mut dyn FnMut(&'a TensorSpec)) {
        self.weight.stored(visit);
        self.bias.iter().for_each(|b| b.stored(visit));
    }
}
