//! From a plan's launches to typed calls: every rule of LAUNCHES.md is checked here, once, before the first step.

use lathe_api::EngineError;
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_kernels::gemm::Epilogue;
use lathe_numerics::{Activation, DType};
use lathe_plan::schema::{CacheKind, Expr, Input, Launch, Layout, Operand, Param, Place, Program, Weight};

mod experts;
mod rope;
mod rows;

pub use experts::{CombineCall, ExpertGemmCall, GroupChoicesCall, TopKCall};
pub use rope::QkNorm;
pub use rows::{Norm, View};

/// Rows of an operand in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Tokens in the step.
    Tokens,
    /// Rows of logits in the step.
    Samples,
}

/// A dense activation matrix in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Byte offset in the arena.
    pub offset: usize,
    /// Element type.
    pub dtype: DType,
    /// Rows.
    pub rows: Rows,
    /// Columns.
    pub cols: usize,
}

/// A weight with its logical extents; `[n]` has `k == 1`.
#[derive(Clone, Copy, Debug)]
pub struct WeightRef {
    /// Index in the plan's table.
    pub index: usize,
    /// Element type.
    pub dtype: DType,
    /// First extent.
    pub n: usize,
    /// Second extent.
    pub k: usize,
    /// True if it is packed in panels.
    pub panels: bool,
}

/// Head counts of an attention layer.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Cache group of the layer.
    pub group: usize,
    /// Byte offset of the layer inside a block of its group.
    pub cache_offset: usize,
    pub cache_dtype: DType,
}

/// What attention makes of a dot product, and which positions take part.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Score {
    pub scale: f32,
    /// Positions that a row sees.
    pub window: Option<u32>,
    pub softcap: Option<f32>,
}

/// What a look-up takes for ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Token ids.
    Tokens,
    /// Positions, of learned position embeddings.
    Positions,
}

/// One kernel call with all that is fixed at load.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Call {
    Embedding { ids: Ids, table: WeightRef, out: Region },
    Unary { function: Unary, x: View, out: Region },
    Binary { function: Binary, a: Region, b: Region, out: Region },
    RmsNorm { x: Region, norm: Norm, out: Region },
    LayerNorm { x: Region, norm: Norm, bias: Option<WeightRef>, out: Region },
    AddRmsNorm { delta: Region, residual: Region, weight: WeightRef, sum: Region, out: Region, eps: f32 },
    Gemm { x: Region, weight: WeightRef, bias: Option<WeightRef>, out: Region, epilogue: Epilogue },
    RopeAppend { qkv: Region, table: Option<WeightRef>, norm: Option<QkNorm>, q: Region, heads: Heads },
    Rope { x: Region, table: WeightRef, out: Region, heads: usize, head_dim: usize },
    KvAppend { k: Region, v: Region, heads: Heads },
    Attention { q: Region, out: Region, heads: Heads, score: Score, sinks: Option<WeightRef> },
    GatherRows { x: Region, out: Region },
    TopK(TopKCall),
    GroupChoices(GroupChoicesCall),
    ExpertGemm(ExpertGemmCall),
    Combine(CombineCall),
}

impl Call {
    /// Index of the weight that a GEMM streams.
    fn gemm_weight(&self) -> Option<usize> {
        match self {
            Call::Gemm { weight, .. } => Some(weight.index),
            _ => None,
        }
    }

    /// The kernel's name in a plan.
    pub fn kernel(&self) -> &'static str {
        match self {
            Call::Embedding { .. } => "embedding",
            Call::Unary { .. } => "unary",
            Call::Binary { .. } => "binary",
            Call::RmsNorm { .. } => "rms_norm",
            Call::LayerNorm { .. } => "layer_norm",
            Call::AddRmsNorm { .. } => "add_rms_norm",
            Call::Gemm { .. } => "gemm",
            Call::RopeAppend { .. } => "rope_append",
            Call::Rope { .. } => "rope",
            Call::KvAppend { .. } => "kv_append",
            Call::Attention { .. } => "attention",
            Call::GatherRows { .. } => "gather_rows",
            Call::TopK(_) | Call::GroupChoices(_) => "top_k",
            Call::ExpertGemm(_) => "expert_gemm",
            Call::Combine(_) => "combine",
        }
    }
}

/// A call, where it comes from and what follows.
#[derive(Debug)]
pub struct BoundCall {
    /// The value that its launch computes.
    pub node: String,
    /// Index of the plan's launch.
    pub launch: usize,
    /// What to do.
    pub call: Call,
    /// The weight that the next GEMM after it reads; after the last one, the next step's first.
    pub next_gemm: Option<usize>,
}

/// A program that is ready to run.
#[derive(Debug)]
pub struct Bound {
    /// Kernel calls in order.
    pub calls: Vec<BoundCall>,
    /// `f32[r, vocab]`.
    pub logits: Region,
    /// Positions per block, in every cache group.
    pub block: usize,
    /// Ids below this may be embedded.
    pub n_embeddings: usize,
}

/// Symbols in the order that LAUNCHES.md fixes.
const T: u32 = 0;
const R: u32 = 2;

struct Binder<'a> {
    program: &'a Program,
    weights: &'a [Weight],
    max_seq_len: usize,
    launch: &'a Launch,
    at: usize,
}

type Result<T> = std::result::Result<T, EngineError>;

impl<'a> Binder<'a> {
    fn refuse<X>(&self, why: impl Into<String>) -> Result<X> {
        Err(EngineError::Plan {
            what: format!("launch {} ({} {})", self.at, self.launch.kernel, self.launch.node),
            why: why.into(),
        })
    }

    fn require(&self, holds: bool, why: &str) -> Result<()> {
        if holds { Ok(()) } else { self.refuse(why) }
    }

    fn arity(&self, inputs: std::ops::RangeInclusive<usize>, outputs: usize, params: &[&str]) -> Result<()> {
        if !inputs.contains(&self.launch.inputs.len()) || self.launch.outputs.len() != outputs {
            return self.refuse(format!(
                "has {} inputs and {} outputs, {inputs:?} and {outputs} are needed",
                self.launch.inputs.len(),
                self.launch.outputs.len()
            ));
        }
        for (name, _) in &self.launch.params {
            self.require(params.contains(&name.as_str()), &format!("parameter {name} is unknown"))?;
        }
        Ok(())
    }

    fn name(&self, name: &str) -> Result<&'a str> {
        match self.param(name)? {
            Param::Name(word) => Ok(word),
            other => self.refuse(format!("parameter {name} is {other:?}, a name is needed")),
        }
    }

    /// `act`, if there is one.
    fn activation(&self) -> Result<Option<Activation>> {
        if self.launch.params.iter().all(|p| p.0 != "act") {
            return Ok(None);
        }
        self.name("act")?.parse().map(Some).or_else(|e: String| self.refuse(e))
    }

    fn rows(&self, rows: &Expr) -> Result<Rows> {
        match (rows.constant, rows.terms.as_slice()) {
            (0, [(T, 1)]) => Ok(Rows::Tokens),
            (0, [(R, 1)]) => Ok(Rows::Samples),
            _ => self.refuse("rows are neither t nor r"),
        }
    }

    fn region(&self, operand: &Operand) -> Result<Region> {
        let Place::Buffer(index) = operand.place else { return self.refuse("operand is no buffer") };
        let Some(buffer) = self.program.buffers.get(index as usize) else {
            return self.refuse("operand names a buffer that does not exist");
        };
        self.require(
            operand.col_offset == 0
                && operand.row_stride == operand.cols
                && buffer.cols == operand.cols
                && buffer.dtype == operand.dtype
                && buffer.rows == operand.rows,
            "operand is not the whole of its buffer",
        )?;
        self.require(operand.cols > 0 && operand.cols <= 1 << 31, "operand has no columns or too many")?;
        Ok(Region {
            offset: buffer.offset as usize,
            dtype: operand.dtype,
            rows: self.rows(&operand.rows)?,
            cols: operand.cols as usize,
        })
    }

    fn input(&self, i: usize) -> Result<Region> {
        self.region(&self.launch.inputs[i])
    }

    fn output(&self, i: usize) -> Result<Region> {
        self.region(&self.launch.outputs[i])
    }

    fn step_input(&self, i: usize, want: Input) -> Result<()> {
        self.require(self.launch.inputs[i].place == Place::Input(want), &format!("input {i} is not {want:?}"))
    }

    fn weight(&self, i: usize, layouts: &[Layout]) -> Result<WeightRef> {
        let operand = &self.launch.inputs[i];
        let Place::Weight(index) = operand.place else {
            return self.refuse(format!("input {i} is no weight"));
        };
        let Some(weight) = self.weights.get(index as usize) else {
            return self.refuse(format!("input {i} names a weight that does not exist"));
        };
        self.require(
            layouts.contains(&weight.layout),
            &format!("layout of {} has no kernel here", weight.name),
        )?;
        let (n, k) = match weight.shape[..] {
            [n] => (n, 1),
            [n, k] => (n, k),
            _ => return self.refuse(format!("weight {} is neither a vector nor a matrix", weight.name)),
        };
        self.require(
            (1..1 << 31).contains(&n) && (1..1 << 31).contains(&k) && weight.dtype.is_float(),
            &format!("weight {} has an extent or dtype that no kernel takes", weight.name),
        )?;
        Ok(WeightRef {
            index: index as usize,
            dtype: weight.dtype,
            n: n as usize,
            k: k as usize,
            panels: weight.layout == Layout::Panel16,
        })
    }

    fn vector(&self, i: usize, dtype: DType, len: usize) -> Result<WeightRef> {
        let w = self.weight(i, &[Layout::RowMajor])?;
        self.require(
            w.k == 1 && w.n == len && w.dtype == dtype,
            &format!("input {i} is not {dtype}[{len}]"),
        )?;
        Ok(w)
    }

    fn param(&self, name: &str) -> Result<&'a Param> {
        match self.launch.params.iter().find(|(n, _)| n == name) {
            Some((_, value)) => Ok(value),
            None => self.refuse(format!("parameter {name} is missing")),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.launch.params.iter().any(|(n, _)| n == name)
    }

    fn int(&self, name: &str) -> Result<usize> {
        match self.param(name)? {
            Param::Int(v) if (1..1 << 31).contains(v) => Ok(*v as usize),
            _ => self.refuse(format!("parameter {name} is no integer in 1..2^31")),
        }
    }

    fn float(&self, name: &str) -> Result<f32> {
        match self.param(name)? {
            Param::Float(v) if v.is_finite() => Ok(*v),
            _ => self.refuse(format!("parameter {name} is no finite number")),
        }
    }

    fn heads(&self, cache_input: usize) -> Result<Heads> {
        let (heads, kv_heads, head_dim) = (self.int("heads")?, self.int("kv_heads")?, self.int("head_dim")?);
        self.cached_heads(cache_input, heads, kv_heads, head_dim)
    }

    /// Heads of these counts and size over the cache layer that an input names.
    fn cached_heads(
        &self,
        cache_input: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Heads> {
        self.require(heads.is_multiple_of(kv_heads), "heads are no multiple of kv_heads")?;
        self.require(head_dim.is_multiple_of(2), "head_dim is odd")?;
        self.require(
            heads
                .checked_add(2 * kv_heads)
                .and_then(|h| h.checked_mul(head_dim))
                .is_some_and(|c| c < 1 << 31),
            "heads do not fit",
        )?;
        let Place::Cache { group: index, layer } = self.launch.inputs[cache_input].place else {
            return self.refuse(format!("input {cache_input} is no layer of the cache"));
        };
        let Some((group, cache)) = self.program.cache_layer(index, layer) else {
            return self.refuse("cache layer does not exist");
        };
        self.require(
            cache.kv_heads as usize == kv_heads
                && cache.head_dim as usize == head_dim
                && cache.dtype.is_float(),
            "cache layer has other heads than the launch",
        )?;
        self.require(
            cache.offset.is_multiple_of(64) && group.bytes_per_block.is_multiple_of(64),
            "cache layer or block does not start on a multiple of 64 bytes",
        )?;
        Ok(Heads {
            heads,
            kv_heads,
            head_dim,
            group: index as usize,
            cache_offset: cache.offset as usize,
            cache_dtype: cache.dtype,
        })
    }

    fn same_rows(&self, regions: &[Region]) -> Result<()> {
        self.require(regions.windows(2).all(|w| w[0].rows == w[1].rows), "operands have different rows")
    }

    fn call(&self) -> Result<Call> {
        match self.launch.kernel.as_str() {
            "embedding" => {
                self.arity(2..=2, 1, &[])?;
                let table = self.weight(1, &[Layout::RowMajor, Layout::Panel16])?;
                let ids = match self.launch.inputs[0].place {
                    Place::Input(Input::Tokens) => Ids::Tokens,
                    Place::Input(Input::Positions) => Ids::Positions,
                    _ => return self.refuse("input 0 is neither Tokens nor Positions"),
                };
                self.require(
                    ids == Ids::Tokens || table.n >= self.max_seq_len,
                    "table does not cover max_seq_len positions",
                )?;
                let out = self.output(0)?;
                self.require(
                    out.rows == Rows::Tokens && out.cols == table.k && out.dtype == table.dtype,
                    "output does not match the table",
                )?;
                Ok(Call::Embedding { ids, table, out })
            }
            "unary" => self.unary(),
            "binary" => self.binary(),
            "rms_norm" => self.rms_norm(),
            "layer_norm" => self.layer_norm(),
            "add_rms_norm" => {
                self.arity(3..=3, 2, &["eps"])?;
                let (delta, residual) = (self.input(0)?, self.input(1)?);
                let (sum, out) = (self.output(0)?, self.output(1)?);
                self.same_rows(&[delta, residual, sum, out])?;
                let all = [delta.cols, sum.cols, out.cols];
                self.require(all.iter().all(|c| *c == residual.cols), "columns differ")?;
                self.require(
                    delta.dtype == DType::F32
                        && residual.dtype.is_float()
                        && sum.dtype == residual.dtype
                        && out.dtype == residual.dtype,
                    "dtypes differ",
                )?;
                let weight = self.norm_weight(2, residual.dtype)?;
                self.require(weight.n == residual.cols, "the norm's weight is not as long as a row")?;
                Ok(Call::AddRmsNorm { delta, residual, weight, sum, out, eps: self.float("eps")? })
            }
            "gemm" => {
                self.arity(2..=3, 1, &["act", "cols", "epilogue"])?;
                let (x, out) = (self.input(0)?, self.output(0)?);
                self.same_rows(&[x, out])?;
                let weight = self.weight(1, &[Layout::Panel16])?;
                self.require(
                    x.cols == weight.k && x.dtype == weight.dtype,
                    "weight does not match the input",
                )?;
                self.require(out.dtype.is_float(), "output is no float")?;
                let epilogue = match (self.name("epilogue")?, self.activation()?) {
                    ("store", None) => Epilogue::Store,
                    ("store", Some(act)) => Epilogue::Act(act),
                    ("glu", Some(act)) => Epilogue::Glu(act),
                    ("glu", None) => return self.refuse("parameter act is missing"),
                    // What plans of format 1.1 call it.
                    ("silu_mul", None) => Epilogue::Glu(Activation::Silu),
                    (other, _) => return self.refuse(format!("epilogue {other} is unknown")),
                };
                if let Epilogue::Glu(_) = epilogue {
                    let cols = self.int("cols")?;
                    self.require(
                        cols == out.cols && weight.n == 32 * cols.div_ceil(16),
                        "output does not match the interleaved weight",
                    )?;
                } else {
                    self.require(out.cols == weight.n, "output does not match the weight")?;
                }
                let bias = match self.launch.inputs.len() {
                    3 => Some(self.vector(2, DType::F32, weight.n)?),
                    _ => None,
                };
                Ok(Call::Gemm { x, weight, bias, out, epilogue })
            }
            "rope_append" => self.rope_append(),
            "rope" => self.rope(),
            "kv_append" => self.kv_append(),
            "attention" => {
                let params = ["heads", "kv_heads", "head_dim", "scale", "softcap", "window"];
                self.arity(2..=3, 1, &params)?;
                let (q, out, heads) = (self.input(0)?, self.output(0)?, self.heads(1)?);
                self.require(
                    q.rows == Rows::Tokens
                        && out.rows == Rows::Tokens
                        && q.cols == heads.heads * heads.head_dim
                        && out.cols == q.cols
                        && q.dtype.is_float()
                        && out.dtype == q.dtype,
                    "operands do not match the heads",
                )?;
                let window = self.has("window").then(|| self.int("window")).transpose()?;
                let softcap = self.has("softcap").then(|| self.float("softcap")).transpose()?;
                self.require(softcap.is_none_or(|cap| cap > 0.0), "softcap is not above 0")?;
                let score = Score { scale: self.float("scale")?, window: window.map(|w| w as u32), softcap };
                let sinks = match self.launch.inputs.len() {
                    3 => Some(self.vector(2, DType::F32, heads.heads)?),
                    _ => None,
                };
                Ok(Call::Attention { q, out, heads, score, sinks })
            }
            "gather_rows" => {
                self.arity(2..=2, 1, &[])?;
                self.step_input(1, Input::SampleRows)?;
                let (x, out) = (self.input(0)?, self.output(0)?);
                self.require(
                    x.rows == Rows::Tokens
                        && out.rows == Rows::Samples
                        && x.cols == out.cols
                        && x.dtype == out.dtype
                        && x.dtype.is_float(),
                    "operands do not match",
                )?;
                Ok(Call::GatherRows { x, out })
            }
            "top_k" => self.top_k().map(Call::TopK),
            "expert_gemm" => self.expert_gemm().map(Call::ExpertGemm),
            "combine" => self.combine().map(Call::Combine),
            other => self.refuse(format!("kernel {other:?} is unknown to the CPU engine")),
        }
    }
}

/// Checks a CPU program against LAUNCHES.md.
///
/// # Errors
/// `Plan` with the launch and the rule that it breaks.
pub fn bind(program: &Program, weights: &[Weight], max_seq_len: usize, vocab_size: usize) -> Result<Bound> {
    let refuse = |what: &str, why: &str| EngineError::Plan { what: what.to_owned(), why: why.to_owned() };
    let symbols: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    if symbols != ["t", "s", "r"] {
        return Err(refuse("symbols", "they are not t, s, r"));
    }
    let blocks = program.cache_groups.iter().map(|group| match group.kind {
        CacheKind::Paged { block, .. } => Some(block),
        CacheKind::Latent { .. } | CacheKind::Recurrent { .. } | CacheKind::Cross { .. } => None,
    });
    let Some(Some(block)) = blocks.reduce(|first, other| first.filter(|_| first == other)) else {
        return Err(refuse("cache groups", "the CPU engine runs paged ones, with blocks of one size"));
    };
    if block == 0 || !block.is_multiple_of(16) || 128 % block != 0 {
        return Err(refuse("cache groups", "block is no multiple of 16 that divides 128"));
    }
    let mut calls = Vec::with_capacity(program.launches.len());
    let mut n_embeddings = usize::MAX;
    for (at, launch) in program.launches.iter().enumerate() {
        let binder = Binder { program, weights, max_seq_len, launch, at };
        let call = binder.call()?;
        if let Call::Embedding { ids: Ids::Tokens, table, .. } = call {
            n_embeddings = n_embeddings.min(table.n);
        }
        let grouping = match &call {
            Call::TopK(call) => Some(Call::GroupChoices(call.grouping)),
            _ => None,
        };
        let bound = |call| BoundCall { node: launch.node.clone(), launch: at, call, next_gemm: None };
        calls.extend(std::iter::once(call).chain(grouping).map(bound));
    }
    if n_embeddings < vocab_size {
        return Err(refuse("embedding", "its table has fewer rows than there are ids to draw"));
    }
    // Borrows the checks of a launch for the one operand that stands outside of all launches.
    let launch = Launch {
        kernel: "output".into(),
        node: "logits".into(),
        inputs: vec![program.logits.clone()],
        outputs: vec![],
        params: vec![],
        device: vec![],
    };
    let binder = Binder { program, weights, max_seq_len, launch: &launch, at: program.launches.len() };
    let logits = binder.input(0)?;
    binder.require(
        logits.dtype == DType::F32 && logits.rows == Rows::Samples && logits.cols == vocab_size,
        "is not f32[r, vocab_size]",
    )?;
    let mut next = calls.iter().find_map(|bound| bound.call.gemm_weight());
    for bound in calls.iter_mut().rev() {
        bound.next_gemm = next;
        next = bound.call.gemm_weight().or(next);
    }
    Ok(Bound { calls, logits, block: block as usize, n_embeddings })
}

#[cfg(test)]
mod tests {
    use lathe_plan::Plan;
    use lathe_plan::testing::small_plan;

    use super::*;

    /// Epilogue of the launch of node `u` with these parameters beside `cols`, or why it is refused.
    fn epilogue(params: &[(&str, &str)]) -> std::result::Result<Epilogue, String> {
        let plan = Plan::from_bytes(small_plan().unwrap()).unwrap();
        let mut program = plan.programs()[0].clone();
        let launch = program.launches.iter_mut().find(|l| l.node == "u").unwrap();
        launch.params.retain(|p| p.0 == "cols");
        launch.params.extend(params.iter().map(|(k, v)| ((*k).into(), Param::Name((*v).into()))));
        let card = plan.card();
        let bound =
            bind(&program, plan.weights(), card.limits.max_seq_len as usize, card.vocab_size as usize)
                .map_err(|e| e.to_string())?;
        let call = bound.calls.iter().find(|bound| bound.node == "u").map(|bound| bound.call.clone());
        let Some(Call::Gemm { epilogue, .. }) = call else { panic!("{call:?}") };
        Ok(epilogue)
    }

    #[test]
    fn activations_are_named() {
        let glu = |act| epilogue(&[("act", act), ("epilogue", "glu")]);
        for act in Activation::ALL {
            assert_eq!(glu(act.name()), Ok(Epilogue::Glu(act)));
        }
        // As plans of format 1.1 have it.
        assert_eq!(epilogue(&[("epilogue", "silu_mul")]), Ok(Epilogue::Glu(Activation::Silu)));
        for (refused, why) in [
            (glu("relu"), "unknown activation relu"),
            (epilogue(&[("epilogue", "glu")]), "parameter act is missing"),
            (epilogue(&[("epilogue", "gelu_mul"), ("act", "gelu")]), "epilogue gelu_mul is unknown"),
            (epilogue(&[("epilogue", "silu_mul"), ("act", "gelu")]), "epilogue silu_mul is unknown"),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.contains("(gemm u)") && refused.contains(why), "{refused}");
        }
    }
}
