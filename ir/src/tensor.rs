//! Concrete values of the interpreter.

use std::ops::Range;

use lathe_numerics::DType;

/// Elements of a [`Tensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Float elements, each representable in the tensor's dtype.
    Float(Vec<f32>),
    /// Integer elements.
    Int(Vec<i32>),
}

/// A dense row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements; as many as the product of `shape`.
    pub data: Data,
}

impl Tensor {
    /// A float tensor; each element is rounded to `dtype`.
    pub fn float(dtype: DType, shape: Vec<usize>, mut data: Vec<f32>) -> Self {
        if dtype != DType::F32 {
            data.iter_mut().for_each(|x| *x = dtype.round(*x));
        }
        Self { dtype, shape, data: Data::Float(data) }
    }

    /// An i32 tensor.
    pub fn int(shape: Vec<usize>, data: Vec<i32>) -> Self {
        Self { dtype: DType::I32, shape, data: Data::Int(data) }
    }

    /// Number of elements held.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Float(d) => d.len(),
            Data::Int(d) => d.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The float elements.
    ///
    /// # Errors
    /// If the tensor holds integers.
    pub fn floats(&self) -> Result<&[f32], String> {
        match &self.data {
            Data::Float(d) => Ok(d),
            Data::Int(_) => Err(format!("a float tensor was expected, found {}", self.dtype)),
        }
    }

    /// The integer elements.
    ///
    /// # Errors
    /// If the tensor holds floats.
    pub fn ints(&self) -> Result<&[i32], String> {
        match &self.data {
            Data::Int(d) => Ok(d),
            Data::Float(_) => Err(format!("an i32 tensor was expected, found {}", self.dtype)),
        }
    }

    /// Product of all extents but the first: elements per row.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Rows of it as a matrix of [product of the leading extents, last extent], or elements of a vector.
    ///
    /// # Errors
    /// Rows beyond it.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor, String> {
        let width = if self.shape.len() > 1 { self.shape[self.shape.len() - 1] } else { 1 };
        let range = rows.start * width..rows.end * width;
        let beyond = || format!("rows {rows:?} of shape {:?} are wanted", self.shape);
        let data = match &self.data {
            Data::Float(d) => Data::Float(d.get(range).ok_or_else(beyond)?.to_vec()),
            Data::Int(d) => Data::Int(d.get(range).ok_or_else(beyond)?.to_vec()),
        };
        let shape = if self.shape.len() > 1 { vec![rows.len(), width] } else { vec![rows.len()] };
        Ok(Tensor { dtype: self.dtype, shape, data })
    }

    /// True if type, shape and every bit agree.
    pub fn same_bits(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && match (&self.data, &other.data) {
                (Data::Float(a), Data::Float(b)) => {
                    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
                }
                (a, b) => a == b,
            }
    }
}

/// A value at run time.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// The cache order token; the data is in the interpreter's `KvState`.
    State,
}

impl Value {
    /// The tensor.
    ///
    /// # Errors
    /// If the value is a state.
    pub fn tensor(&self) -> Result<&Tensor, String> {
        match self {
            Value::Tensor(t) => Ok(t),
            Value::State => Err("a tensor was expected, found a state".into()),
        }
    }

    /// The float elements.
    ///
    /// # Errors
    /// If the value is not a float tensor.
    pub fn floats(&self) -> Result<&[f32], String> {
        self.tensor()?.floats()
    }

    /// The integer elements.
    ///
    /// # Errors
    /// If the value is not an i32 tensor.
    pub fn ints(&self) -> Result<&[i32], String> {
        self.tensor()?.ints()
    }
}
