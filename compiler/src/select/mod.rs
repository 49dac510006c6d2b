//! Selection: every node of the fused graph becomes one launch of `engines/cpu/LAUNCHES.md`, and for a CUDA target also
//! the device launches that do it (`engines/cuda/LAUNCHES.md`).
//!
//! Needs: a verified graph in execution order. Gives: a program whose buffers have no offsets yet, the weights it reads
//! and the device sources it needs. An op without a kernel is a typed error that names the node.

mod cache;
mod device;
mod experts;
mod rope;
mod rows;
mod weights;

use std::collections::HashMap;

use lathe_ir::entity::{Id, NodeId, ValueId};
use lathe_ir::facts::Dim;
use lathe_ir::ops::{Attention, Op};
use lathe_ir::{Facts, Graph};
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;
use lathe_plan::operand::SYMBOL_NAMES;
use lathe_plan::schema::{Buffer, Expr, Input, Launch, Layout, Operand, Param, Program, Symbol, Target};

use crate::error::{CompileError, Result};
use cache::CacheGroups;
pub use cache::KV_BLOCK;
pub use device::{DeviceCode, KernelUse};
use rows::norm_params;
pub use weights::{WeightTable, WeightUse};

/// A program and the device code that it needs.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Buffers without offsets, modules without code.
    pub program: Program,
    /// What `Program::modules` will hold, in that order; empty for the CPU.
    pub code: DeviceCode,
}

/// Selects kernels for `graph` on `target`, with sequences of at most `max_seq_len` positions; the graph's single
/// result becomes the logits.
///
/// # Errors
/// `Unsupported` naming the first node that has no kernel.
pub fn select(
    graph: &Graph,
    name: &str,
    target: &Target,
    max_seq_len: u32,
    table: &mut WeightTable,
) -> Result<Selected> {
    let mut selection = Selection::new(graph, target, max_seq_len, table)?;
    for (id, _) in graph.nodes() {
        selection.node(id)?;
    }
    let &[logits] = graph.outputs() else {
        return Err(CompileError::unsupported(
            format!("graph with {} results", graph.outputs().len()),
            "a program has one, the logits",
        ));
    };
    let logits = selection.read(logits)?;
    let sampling = selection.sampling(&logits)?;
    let program = Program {
        name: name.into(),
        target: target.clone(),
        rank: 0,
        n_ranks: 1,
        symbols: selection.symbols,
        buffers: selection.buffers,
        arena_bytes: 0,
        scratch_bytes: 0,
        cache_groups: selection.cache.groups,
        launches: selection.launches,
        logits,
        modules: vec![],
        sampling,
    };
    Ok(Selected { program, code: selection.code })
}

/// A kernel's name, its operands, its results and its parameters.
type Chosen = (&'static str, Vec<Operand>, Vec<Operand>, Vec<(String, Param)>);

struct Selection<'a> {
    graph: &'a Graph,
    target: &'a Target,
    max_seq_len: u32,
    table: &'a mut WeightTable,
    symbols: Vec<Symbol>,
    /// Index in the plan of each IR symbol.
    symbol_index: Vec<u32>,
    buffers: Vec<Buffer>,
    /// Buffer of each IR value, once written.
    buffer_of: HashMap<ValueId, u32>,
    cache: CacheGroups,
    /// What the ids of a router's choice were grouped to.
    groupings: HashMap<ValueId, experts::Grouping>,
    launches: Vec<Launch>,
    code: DeviceCode,
}

impl<'a> Selection<'a> {
    fn new(
        graph: &'a Graph,
        target: &'a Target,
        max_seq_len: u32,
        table: &'a mut WeightTable,
    ) -> Result<Self> {
        let mut symbols = Vec::new();
        let mut symbol_index = vec![0; graph.symbols().len()];
        for (index, name) in SYMBOL_NAMES.into_iter().enumerate() {
            let missing =
                || CompileError::Bug(format!("graph @{}: symbol {name} is not declared", graph.name));
            let id = graph.find_symbol(name).ok_or_else(missing)?;
            let symbol = &graph.symbols()[id];
            symbols.push(Symbol { name: name.into(), min: symbol.min as u64, max: symbol.max as u64 });
            symbol_index[id.index()] = index as u32;
        }
        Ok(Selection {
            graph,
            target,
            max_seq_len,
            table,
            symbols,
            symbol_index,
            buffers: Vec::new(),
            buffer_of: HashMap::new(),
            cache: CacheGroups::new(graph, max_seq_len)?,
            groupings: HashMap::new(),
            launches: Vec::new(),
            code: DeviceCode::default(),
        })
    }

    fn node(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let value = |at: usize| node.inputs[at];
        let (kernel, inputs, mut outputs, params): Chosen = match &node.op {
            Op::Embedding(_) => {
                // A table that is also a projection is stored once, in the projection's layout.
                let packed = self.is_projection(value(1));
                let layout =
                    if packed { self.projection_layout(self.dtype(value(1))) } else { Layout::RowMajor };
                let learned = self.graph.value_name(value(0)) == "positions";
                let ids = if learned { Input::Positions } else { Input::Tokens };
                let inputs = vec![self.input(id, value(0), ids)?, self.weight(id, value(1), layout, None)?];
                ("embedding", inputs, vec![self.write(node.outputs[0])?], vec![])
            }
            Op::Cast(_) => self.unary(id, Unary::Cast)?,
            Op::Scale(op) => self.unary(id, Unary::Scale(op.factor))?,
            Op::Softcap(op) => self.unary(id, Unary::Softcap(op.cap))?,
            Op::Activate(op) => self.unary(id, Unary::Activation(op.act))?,
            // A cast of some columns to their own type.
            Op::SliceCols(_) => self.unary(id, Unary::Cast)?,
            Op::Add(_) => self.binary(id, Binary::Add)?,
            Op::Mul(_) => self.binary(id, Binary::Mul)?,
            Op::RmsNorm(op) => {
                let inputs = self.norm(id)?;
                ("rms_norm", inputs, vec![self.write(node.outputs[0])?], norm_params(op.eps, op.groups))
            }
            Op::LayerNorm(op) => {
                let inputs = self.norm(id)?;
                ("layer_norm", inputs, vec![self.write(node.outputs[0])?], norm_params(op.eps, op.groups))
            }
            Op::AddRmsNorm(op) => {
                self.expect_dtype(id, value(0), DType::F32)?;
                let norm = self.norm_weights(id, &[value(2)], value(1))?;
                let inputs = [vec![self.read(value(0))?, self.read(value(1))?], norm].concat();
                let outputs = vec![self.write(node.outputs[0])?, self.write(node.outputs[1])?];
                ("add_rms_norm", inputs, outputs, vec![float("eps", op.eps)])
            }
            Op::Linear(op) => {
                let inputs = self.projection(id)?;
                let mut params: Vec<_> = op.act.map(|act| choice("act", act.name())).into_iter().collect();
                params.push(choice("epilogue", "store"));
                ("gemm", inputs, vec![self.write(node.outputs[0])?], params)
            }
            Op::LinearGlu(op) => {
                self.expect_panels(id, op.interleave)?;
                if self.dtype(node.outputs[0]) != self.dtype(value(0)) {
                    return Err(self.unsupported(id, "the kernel keeps the type of its operand"));
                }
                let inputs = self.projection(id)?;
                let params =
                    vec![choice("act", op.act.name()), int("cols", op.cols), choice("epilogue", "glu")];
                ("gemm", inputs, vec![self.write(node.outputs[0])?], params)
            }
            Op::RopeAppend(op) => self.rope_append(id, op)?,
            Op::Rope(op) => self.rope(id, op)?,
            Op::KvAppend(op) => self.kv_append(id, op)?,
            Op::LinearAdd(_) if self.on_device() => {
                let mut inputs = self.weights_behind(id, &[self.read(value(0))?], &node.inputs[2..])?;
                inputs.push(self.read(value(1))?);
                ("linear_add", inputs, vec![self.write(node.outputs[0])?], vec![])
            }
            Op::NormLinear(op) if self.on_device() => {
                let rows = self.normed_rows(id)?;
                let inputs = self.weights_behind(id, &rows, &node.inputs[2..])?;
                ("norm_linear", inputs, vec![self.write(node.outputs[0])?], vec![float("eps", op.eps)])
            }
            Op::NormLinearGlu(op) if self.on_device() => {
                self.expect_panels(id, op.interleave)?;
                let rows = self.normed_rows(id)?;
                let inputs = self.weights_behind(id, &rows, &node.inputs[2..])?;
                let params = vec![choice("act", op.act.name()), int("cols", op.cols), float("eps", op.eps)];
                ("norm_linear_glu", inputs, vec![self.write(node.outputs[0])?], params)
            }
            Op::NormLinearRopeAppend(op) if self.on_device() => {
                let norm = self.weight(id, value(4), Layout::RowMajor, self.dtype(value(0)))?;
                let rows = [self.read(value(0))?, norm];
                let mut inputs = self.weights_behind(id, &rows, &node.inputs[5..])?;
                inputs.extend(self.rotation(id, &node.inputs[1..4], op.layer)?);
                let params = vec![
                    float("eps", op.eps),
                    int("head_dim", op.head_dim),
                    int("heads", op.heads),
                    int("kv_heads", op.kv_heads),
                ];
                ("norm_linear_rope_append", inputs, vec![self.write(node.outputs[0])?], params)
            }
            Op::Attention(op) => {
                let mut inputs = vec![self.read(value(0))?, self.cache(id, op.layer)?];
                if let Some(&sinks) = node.inputs.get(2) {
                    inputs.push(self.weight(id, sinks, Layout::RowMajor, Some(DType::F32))?);
                }
                let mut params = vec![
                    int("head_dim", op.head_dim),
                    int("heads", op.heads),
                    int("kv_heads", op.kv_heads),
                    float("scale", op.scale),
                ];
                params.extend(softcap(op).map(|cap| float("softcap", cap)));
                params.extend(self.window(op).map(|w| int("window", w as usize)));
                ("attention", inputs, vec![self.write(node.outputs[0])?], params)
            }
            Op::TopK(op) => self.top_k(id, op)?,
            Op::ExpertLinear(op) => self.expert_linear(id, op)?,
            Op::ExpertLinearGlu(op) => self.expert_linear_glu(id, op)?,
            Op::Combine(_) => self.combine(id, "combine")?,
            Op::CombineAdd(_) if self.on_device() => self.combine(id, "combine_add")?,
            Op::GatherRows(_) => {
                let inputs = vec![self.read(value(0))?, self.input(id, value(1), Input::SampleRows)?];
                ("gather_rows", inputs, vec![self.write(node.outputs[0])?], vec![])
            }
            _ => {
                let why = "it has no kernel of its own, and no fusion took it into one that has";
                return Err(self.unsupported(id, why));
            }
        };
        let device = self.device(id, &inputs, &mut outputs)?;
        let node = self.graph.value_name(node.outputs[0]).to_string();
        self.launches.push(Launch { kernel: kernel.into(), node, inputs, outputs, params, device });
        Ok(())
    }

    /// How a projection's weight is stored.
    fn projection_layout(&self, dtype: Option<DType>) -> Layout {
        match (self.target, dtype) {
            (Target::Cpu, _) => Layout::Panel16,
            (Target::Cuda { .. }, Some(DType::BF16 | DType::F16)) => Layout::Mma16,
            (Target::Cuda { .. }, _) => Layout::RowMajor,
        }
    }

    /// Positions that a row sees, where they may be fewer than a sequence has.
    fn window(&self, op: &Attention) -> Option<u32> {
        cache::window_of(op, self.max_seq_len)
    }

    fn on_device(&self) -> bool {
        *self.target != Target::Cpu
    }

    fn expect_panels(&self, id: NodeId, interleave: usize) -> Result<()> {
        if interleave == PANEL {
            return Ok(());
        }
        Err(self.unsupported(id, format!("the kernel wants gate and up rows interleaved by {PANEL}")))
    }

    /// Operands of a GEMM: rows, packed weight of their type, f32 bias.
    fn projection(&mut self, id: NodeId) -> Result<Vec<Operand>> {
        let inputs = &self.graph.node(id).inputs;
        let rows = [self.read(inputs[0])?];
        self.weights_behind(id, &rows, &inputs[1..])
    }

    /// `rows`, then the packed weight and the f32 bias that stand in `weights`.
    fn weights_behind(&mut self, id: NodeId, rows: &[Operand], weights: &[ValueId]) -> Result<Vec<Operand>> {
        let x = Some(rows[0].dtype);
        if self.dtype(weights[0]) != x {
            return Err(self.unsupported(id, "the kernel wants activations and weight of one type"));
        }
        let mut operands = rows.to_vec();
        operands.push(self.weight(id, weights[0], self.projection_layout(x), x)?);
        if let Some(&bias) = weights.get(1) {
            operands.push(self.weight(id, bias, Layout::RowMajor, Some(DType::F32))?);
        }
        Ok(operands)
    }

    /// Rows that a norm comes before, and its weight, the first two operands of node `id`.
    fn normed_rows(&mut self, id: NodeId) -> Result<[Operand; 2]> {
        let inputs = &self.graph.node(id).inputs;
        let norm = self.weight(id, inputs[1], Layout::RowMajor, self.dtype(inputs[0]))?;
        Ok([self.read(inputs[0])?, norm])
    }

    /// Positions, table and cache layer of a rotation with operands positions, state, table; its state is the cache.
    fn rotation(&mut self, id: NodeId, operands: &[ValueId], layer: usize) -> Result<[Operand; 3]> {
        let positions = self.input(id, operands[0], Input::Positions)?;
        let table = self.weight(id, operands[2], Layout::RowMajor, None)?;
        Ok([positions, table, self.cache(id, layer)?])
    }

    fn is_projection(&self, weight: ValueId) -> bool {
        let at = |op: &Op| match op {
            Op::Linear(_) | Op::LinearGlu(_) => Some(1),
            Op::LinearAdd(_) | Op::NormLinear(_) | Op::NormLinearGlu(_) => Some(2),
            Op::NormLinearRopeAppend(_) => Some(5),
            _ => None,
        };
        self.graph.nodes().any(|(_, n)| at(&n.op).is_some_and(|at| n.inputs.get(at) == Some(&weight)))
    }

    fn dtype(&self, value: ValueId) -> Option<DType> {
        self.graph.facts(value).dtype()
    }

    fn expect_dtype(&self, id: NodeId, value: ValueId, want: DType) -> Result<()> {
        match self.dtype(value) {
            Some(dtype) if dtype != want => {
                let name = self.graph.value_name(value);
                Err(self.unsupported(id, format!("%{name} is {dtype}, the kernel reads {want}")))
            }
            _ => Ok(()),
        }
    }

    /// A weight operand, stored as `dtype` (as declared if `None`). Narrowing is never silent: only a widening is done.
    fn weight(
        &mut self,
        id: NodeId,
        value: ValueId,
        layout: Layout,
        dtype: Option<DType>,
    ) -> Result<Operand> {
        let (Some(weight), Some(declared)) = (self.graph.as_weight(value), self.dtype(value)) else {
            return Err(self.unsupported(id, format!("%{} is no weight", self.graph.value_name(value))));
        };
        let dtype = dtype.unwrap_or(declared);
        if dtype != declared && dtype != DType::F32 {
            let name = self.graph.value_name(value);
            return Err(self.unsupported(id, format!("@{name} is {declared}, the kernel reads {dtype}")));
        }
        self.table.operand(self.graph, weight, layout, dtype)
    }

    fn read(&self, value: ValueId) -> Result<Operand> {
        match self.buffer_of.get(&value) {
            Some(&index) => Ok(Operand::buffer(index, &self.buffers[index as usize])),
            None => {
                let name = self.graph.value_name(value);
                Err(CompileError::unsupported(
                    format!("%{name} as an activation"),
                    "no kernel has written it",
                ))
            }
        }
    }

    fn write(&mut self, value: ValueId) -> Result<Operand> {
        let name = self.graph.value_name(value).to_string();
        let Facts::Tensor { dtype, shape } = self.graph.facts(value) else {
            return Err(CompileError::Bug(format!("%{name}: a state has no buffer")));
        };
        let [rows, cols] = &shape[..] else {
            return Err(CompileError::unsupported(
                format!("%{name} of rank {}", shape.len()),
                "activations are matrices",
            ));
        };
        let symbolic = || CompileError::unsupported(format!("%{name}"), "its columns are symbolic");
        let cols = cols.as_const().ok_or_else(symbolic)? as u64;
        let buffer = Buffer { name: name.clone(), dtype: *dtype, rows: self.expr(rows)?, cols, offset: 0 };
        let index = self.buffers.len() as u32;
        let operand = Operand::buffer(index, &buffer);
        self.buffers.push(buffer);
        self.buffer_of.insert(value, index);
        Ok(operand)
    }

    fn expr(&self, dim: &Dim) -> Result<Expr> {
        let negative = |_| CompileError::unsupported("extent with a negative part", "extents are sums");
        let mut terms = Vec::new();
        for &(symbol, coefficient) in dim.terms() {
            terms.push((self.symbol_index[symbol.index()], u64::try_from(coefficient).map_err(negative)?));
        }
        Ok(Expr { constant: u64::try_from(dim.constant()).map_err(negative)?, terms })
    }

    /// The operand of data that a step brings; `value` must be the graph input of that name.
    fn input(&self, id: NodeId, value: ValueId, input: Input) -> Result<Operand> {
        let want = match input {
            Input::Tokens => "tokens",
            Input::Positions => "positions",
            Input::SampleRows => "rows",
        };
        if self.graph.inputs().contains(&value) && self.graph.value_name(value) == want {
            return Ok(Operand::input(input));
        }
        Err(self.unsupported(id, format!("%{} is not the graph input %{want}", self.graph.value_name(value))))
    }

    fn cache(&self, id: NodeId, layer: usize) -> Result<Operand> {
        let missing = || self.unsupported(id, format!("the cache has no layer {layer}"));
        self.cache.operand(layer).ok_or_else(missing)
    }

    fn unsupported(&self, id: NodeId, why: impl Into<String>) -> CompileError {
        let node = self.graph.node_label(id);
        CompileError::Unsupported { what: node.clone(), why: why.into(), node: Some(node) }
    }
}

/// The bound of an attention's scores, if they have one.
fn softcap(op: &Attention) -> Option<f32> {
    Some(op.softcap).filter(|cap| *cap != 0.0)
}

fn int(name: &str, value: usize) -> (String, Param) {
    (name.into(), Param::Int(value as u64))
}

fn float(name: &str, value: f32) -> (String, Param) {
    (name.into(), Param::Float(value))
}

fn choice(name: &str, value: &str) -> (String, Param) {
    (name.into(), Param::Name(value.into()))
}
