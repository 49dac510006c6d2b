//! What every operation answers: its facts, its attributes, its meaning, and the properties that passes ask for.

use std::collections::BTreeMap;
use std::fmt::Debug;

use lathe_numerics::{Activation, DType, Gating};

use crate::facts::{Bindings, Cache, Dim, Facts, INTEGER_LIMIT};
use crate::interp::EvalCx;
use crate::tensor::Value;

/// An operation with its attributes. One file in `ops/` holds all of one operation.
///
/// `Default` exists to be filled by [`Operation::attrs`]; it need not be a valid operation.
pub trait Operation: Clone + PartialEq + Debug + Default {
    /// The word used in text, kernels, tests and plans.
    const NAME: &'static str;

    /// Visits every attribute in turn, to print or to parse it.
    fn attrs(&mut self, attrs: &mut Attrs);

    /// Facts of the results from facts of the operands. All checks of operands and attributes live here.
    ///
    /// # Errors
    /// The reason why the operands or attributes do not fit.
    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String>;

    /// Reference evaluation: f32, obvious, slow. Operands fit [`Operation::infer`].
    ///
    /// # Errors
    /// The reason why the data does not fit, e.g. a token id outside the table.
    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String>;

    /// True if row `i` of every result depends on operand `input` only through its row `i`, and on no hidden
    /// per-row context: rows may be gathered before instead of after. What is elementwise is.
    fn is_rowwise(&self, _input: usize) -> bool {
        self.is_elementwise()
    }

    /// True if an element of the result depends only on the same element of each operand.
    fn is_elementwise(&self) -> bool {
        false
    }

    /// True if the op writes the KV cache, so that it must run even if its results are unused.
    fn has_effects(&self) -> bool {
        false
    }

    /// True if operand `input` must be a weight.
    fn is_weight(&self, _input: usize) -> bool {
        false
    }

    /// The cache layer that the op reads or writes.
    fn cache_layer(&self) -> Option<usize> {
        None
    }

    /// Work at the given symbol values; the default counts one operation per result element.
    fn cost(&self, inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Cost {
        Cost::streaming(inputs, outputs, at)
    }
}

/// Work of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes of operands and results, each counted once.
    pub bytes: f64,
}

/// Elements of a tensor at the given symbol values.
pub fn elements(facts: &Facts, at: &Bindings) -> f64 {
    facts.shape_at(at).map_or(0.0, |s| s.iter().map(|&d| d as f64).product())
}

impl Cost {
    /// Every operand and result moved once, one operation per result element.
    pub fn streaming(inputs: &[&Facts], outputs: &[&Facts], at: &Bindings) -> Self {
        let bytes = |f: &&Facts| f.dtype().map_or(0.0, |d| d.size() as f64 * elements(f, at));
        Cost {
            flops: outputs.iter().map(|f| elements(f, at)).sum(),
            bytes: inputs.iter().chain(outputs).map(bytes).sum(),
        }
    }
}

/// Facts of a node's operands, with checks that name what they found.
pub struct Args<'a> {
    facts: &'a [&'a Facts],
    /// The graph's cache, if declared.
    pub cache: Option<&'a Cache>,
}

impl<'a> Args<'a> {
    /// Wraps operand facts.
    pub fn new(facts: &'a [&'a Facts], cache: Option<&'a Cache>) -> Self {
        Self { facts, cache }
    }

    /// All operands' facts.
    pub fn facts(&self) -> &'a [&'a Facts] {
        self.facts
    }

    /// Number of operands.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// True without operands.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Checks the number of operands.
    ///
    /// # Errors
    /// Both numbers.
    pub fn expect(&self, least: usize, most: usize) -> Result<(), String> {
        if (least..=most).contains(&self.len()) {
            return Ok(());
        }
        let want = if least == most { least.to_string() } else { format!("{least} to {most}") };
        Err(format!("{} operands, expected {want}", self.len()))
    }

    fn tensor(&self, at: usize, name: &str, rank: usize) -> Result<(DType, &'a [Dim]), String> {
        match self.facts.get(at) {
            Some(Facts::Tensor { dtype, shape }) if shape.len() == rank => Ok((*dtype, shape)),
            Some(Facts::Tensor { shape, .. }) => {
                Err(format!("{name} has rank {}, expected {rank}", shape.len()))
            }
            Some(Facts::State) => Err(format!("{name} is a state, expected a tensor")),
            None => Err(format!("{name} is missing")),
        }
    }

    /// A float tensor of the given rank: its dtype and shape.
    ///
    /// # Errors
    /// What the operand is instead.
    pub fn float(&self, at: usize, name: &str, rank: usize) -> Result<(DType, &'a [Dim]), String> {
        let (dtype, shape) = self.tensor(at, name, rank)?;
        if dtype.is_float() {
            Ok((dtype, shape))
        } else {
            Err(format!("{name} is {dtype}, expected a float type"))
        }
    }

    /// A one-dimensional i32 tensor: its length.
    ///
    /// # Errors
    /// What the operand is instead.
    pub fn ints(&self, at: usize, name: &str) -> Result<&'a Dim, String> {
        match self.tensor(at, name, 1)? {
            (DType::I32, [length]) => Ok(length),
            (dtype, _) => Err(format!("{name} is {dtype}, expected i32")),
        }
    }

    /// A tensor of any type and shape.
    ///
    /// # Errors
    /// What the operand is instead.
    pub fn any(&self, at: usize, name: &str) -> Result<(DType, &'a [Dim]), String> {
        match self.facts.get(at) {
            Some(Facts::Tensor { dtype, shape }) => Ok((*dtype, shape)),
            Some(Facts::State) => Err(format!("{name} is a state, expected a tensor")),
            None => Err(format!("{name} is missing")),
        }
    }

    /// The cache order token, and the cache after checking `layer`.
    ///
    /// # Errors
    /// If the operand is no state, the graph declares no cache or the layer is outside.
    pub fn state(&self, at: usize, layer: usize) -> Result<&'a Cache, String> {
        match self.facts.get(at) {
            Some(Facts::State) => {}
            Some(_) => return Err(format!("operand {at} is a tensor, expected a state")),
            None => return Err("state is missing".into()),
        }
        let cache = self.cache.ok_or("the graph declares no cache")?;
        if layer < cache.layers {
            Ok(cache)
        } else {
            Err(format!("layer {layer} is outside the cache's {} layers", cache.layers))
        }
    }
}

/// Checks that two extents are the same for all symbol values.
///
/// # Errors
/// Names both sides.
pub fn same_dim(a: &Dim, a_name: &str, b: &Dim, b_name: &str) -> Result<(), String> {
    if a == b {
        return Ok(());
    }
    let show = |d: &Dim| d.as_const().map_or("symbolic".to_string(), |c| c.to_string());
    Err(format!("{a_name} ({}) differs from {b_name} ({})", show(a), show(b)))
}

/// Checks an extent against a number from the attributes.
///
/// # Errors
/// Names both sides.
pub fn dim_is(dim: &Dim, name: &str, want: usize) -> Result<(), String> {
    same_dim(dim, name, &Dim::from(want), "the attributes")
}

/// Checks that a result type is a float.
///
/// # Errors
/// Names the type.
pub fn float_out(out: DType) -> Result<(), String> {
    if out.is_float() { Ok(()) } else { Err(format!("out is {out}, expected a float type")) }
}

/// The result of an elementwise op on operands `names`, of any float types and of one shape `[t, n]`.
///
/// # Errors
/// Another number of operands, other types, shapes that differ; names what it found.
pub fn elementwise<const N: usize>(
    args: &Args<'_>,
    names: [&str; N],
    out: DType,
) -> Result<Vec<Facts>, String> {
    args.expect(N, N)?;
    let (_, shape) = args.float(0, names[0], 2)?;
    for (at, name) in names.into_iter().enumerate().skip(1) {
        let (_, other) = args.float(at, name, 2)?;
        for (dim, side) in ["rows", "columns"].into_iter().enumerate() {
            let (a, b) = (format!("{side} of {}", names[0]), format!("{side} of {name}"));
            same_dim(&shape[dim], &a, &other[dim], &b)?;
        }
    }
    float_out(out)?;
    Ok(vec![Facts::tensor(out, shape.iter().cloned())])
}

/// An attribute's type: how it prints and parses.
pub trait AttrValue: Sized + PartialEq {
    /// Canonical text: one word or number.
    fn text(&self) -> String;
    /// Reads [`AttrValue::text`] back.
    ///
    /// # Errors
    /// What was expected.
    fn parse(text: &str) -> Result<Self, String>;
}

impl AttrValue for usize {
    fn text(&self) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<usize>() {
            Ok(n) if n <= INTEGER_LIMIT && n.to_string() == text => Ok(n),
            _ => Err(format!("expected an integer in 0..={INTEGER_LIMIT}")),
        }
    }
}

macro_rules! float_attr {
    ($($t:ty),*) => {$(
        impl AttrValue for $t {
            fn text(&self) -> String {
                format!("{self:?}")
            }
            fn parse(text: &str) -> Result<Self, String> {
                let digits = text.strip_prefix('-').unwrap_or(text).starts_with(|c: char| c.is_ascii_digit());
                match text.parse::<$t>() {
                    Ok(x) if x.is_finite() && digits => Ok(x),
                    _ => Err("expected a finite number".into()),
                }
            }
        }
    )*};
}
float_attr!(f32, f64);

impl AttrValue for bool {
    fn text(&self) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "expected true or false".into())
    }
}

/// Numbers with colons between them, `none` for no number.
impl AttrValue for Vec<f64> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "none".into();
        }
        self.iter().map(AttrValue::text).collect::<Vec<_>>().join(":")
    }
    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Vec::new());
        }
        text.split(':').map(f64::parse).collect()
    }
}

impl AttrValue for Activation {
    fn text(&self) -> String {
        self.name().into()
    }
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl AttrValue for Gating {
    fn text(&self) -> String {
        self.name().into()
    }
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl AttrValue for Option<Activation> {
    fn text(&self) -> String {
        self.map_or("none", Activation::name).into()
    }
    fn parse(text: &str) -> Result<Self, String> {
        if text == "none" { Ok(None) } else { text.parse().map(Some) }
    }
}

impl AttrValue for DType {
    fn text(&self) -> String {
        self.name().into()
    }
    fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<DType>() {
            Ok(d) if d.name() == text => Ok(d),
            _ => Err("expected one of f32, f16, bf16".into()),
        }
    }
}

/// Attributes on their way to or from text: an [`Operation`] visits each of its fields once.
pub struct Attrs {
    mode: Mode,
    errors: Vec<String>,
}

enum Mode {
    Write(BTreeMap<&'static str, String>),
    Read(BTreeMap<String, String>),
}

impl Attrs {
    /// Collects the attributes that `visit` shows; sorted by name.
    pub fn write(visit: impl FnOnce(&mut Attrs)) -> BTreeMap<&'static str, String> {
        let mut attrs = Attrs { mode: Mode::Write(BTreeMap::new()), errors: Vec::new() };
        visit(&mut attrs);
        match attrs.mode {
            Mode::Write(map) => map,
            Mode::Read(_) => BTreeMap::new(),
        }
    }

    /// Fills the fields that `visit` shows from `map`.
    ///
    /// # Errors
    /// A missing, malformed or unknown attribute.
    pub fn read(map: BTreeMap<String, String>, visit: impl FnOnce(&mut Attrs)) -> Result<(), String> {
        let mut attrs = Attrs { mode: Mode::Read(map), errors: Vec::new() };
        visit(&mut attrs);
        if let Mode::Read(rest) = &attrs.mode {
            attrs.errors.extend(rest.keys().map(|k| format!("unknown attribute {k}")));
        }
        if attrs.errors.is_empty() { Ok(()) } else { Err(attrs.errors.join(", ")) }
    }

    fn visit<T: AttrValue>(&mut self, name: &'static str, field: &mut T, default: Option<T>) {
        match &mut self.mode {
            Mode::Write(map) => {
                if default.as_ref() != Some(field) {
                    map.insert(name, field.text());
                }
            }
            Mode::Read(map) => match (map.remove(name), default) {
                (Some(text), _) => match T::parse(&text) {
                    Ok(value) => *field = value,
                    Err(why) => self.errors.push(format!("{name} is {text}, {why}")),
                },
                (None, Some(default)) => *field = default,
                (None, None) => self.errors.push(format!("{name} missing")),
            },
        }
    }

    /// An attribute that always stands in the text.
    pub fn required<T: AttrValue>(&mut self, name: &'static str, field: &mut T) {
        self.visit(name, field, None);
    }

    /// An attribute that is left out when it has its default.
    pub fn optional<T: AttrValue>(&mut self, name: &'static str, field: &mut T, default: T) {
        self.visit(name, field, Some(default));
    }

    /// The result type `out`: f32 unless stated.
    pub fn out(&mut self, field: &mut DType) {
        self.optional("out", field, DType::F32);
    }
}
