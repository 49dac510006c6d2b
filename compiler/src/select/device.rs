//! Device launches of a node: the kernel families plan them, here they are tied to operands, buffers and modules.

use lathe_device::{DeviceLaunch, Symbol};
use lathe_ir::entity::NodeId;
use lathe_ir::ops::{Op, Over};
use lathe_kernels::cuda::{Cost, Launches, Source, Stage};
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_kernels::gemm::Epilogue;
use lathe_kernels::gemm::cuda::{Fused, Tail, fused_launches};
use lathe_kernels::{
    KernelError, attention, combine, elementwise, embedding, expert_gemm, gather_rows, gemm, layer_norm,
    rms_norm, rope_append, sampling, top_k,
};
use lathe_numerics::DType;
use lathe_plan::schema::{Buffer, CacheGroup, CacheKind, Expr, Layout, Operand, Place, Target};

use super::Selection;
use super::rope::norm_over;
use crate::error::{CompileError, Result};

/// One kernel of a module and the work of one of its launches.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelUse {
    /// Index into `DeviceCode::sources`.
    pub module: u32,
    /// `__global__` function.
    pub entry: &'static str,
    /// Symbol that `cost` is per unit of.
    pub symbol: Symbol,
    /// Bytes and operations.
    pub cost: Cost,
    /// When it runs, at the smallest and largest number of rows.
    pub rows: (u32, u32),
}

/// Device code that a program's launches name.
#[derive(Clone, Debug, Default)]
pub struct DeviceCode {
    /// One source per module, each once.
    pub sources: Vec<Source>,
    /// Every launch, for the report.
    pub uses: Vec<KernelUse>,
}

impl DeviceCode {
    fn module(&mut self, source: Source) -> u32 {
        let found = self.sources.iter().position(|s| *s == source);
        let index = found.unwrap_or_else(|| {
            self.sources.push(source);
            self.sources.len() - 1
        });
        index as u32
    }

    fn launch(&mut self, stage: Stage, symbol: Symbol, most: u32) -> DeviceLaunch {
        let Stage { source, entry, when, grid, block, shared_bytes, dependent, args, cost } = stage;
        let module = self.module(source);
        let rows = match when {
            lathe_device::When::Range { symbol: s, min, max } if s == symbol => (min, max.min(most)),
            _ => (1, most),
        };
        self.uses.push(KernelUse { module, entry, symbol, cost, rows });
        DeviceLaunch { module, entry: entry.into(), when, grid, block, shared_bytes, dependent, args }
    }
}

impl Selection<'_> {
    /// The device launches of node `id`; workspaces become buffers and further outputs.
    pub(super) fn device(
        &mut self,
        id: NodeId,
        inputs: &[Operand],
        outputs: &mut Vec<Operand>,
    ) -> Result<Vec<DeviceLaunch>> {
        if *self.target == Target::Cpu {
            return Ok(vec![]);
        }
        // An append has no result.
        let rows = outputs.first().or(inputs.first()).and_then(|o| symbol_of(&o.rows));
        let rows = rows.ok_or_else(|| self.unsupported(id, "its rows are no plain symbol"))?;
        let Launches { stages, workspaces } =
            self.plan(id, rows, inputs, outputs).map_err(|e| self.unsupported(id, e.to_string()))?;
        let name = self.graph.value_name(self.graph.node(id).outputs[0]).to_string();
        for (at, workspace) in workspaces.into_iter().enumerate() {
            let buffer = Buffer {
                name: format!("{name}.work{at}"),
                dtype: DType::F32,
                rows: Expr { constant: 0, terms: vec![(workspace.symbol as u32, 1)] },
                cols: workspace.floats,
                offset: 0,
            };
            outputs.push(Operand::buffer(self.buffers.len() as u32, &buffer));
            self.buffers.push(buffer);
        }
        let most = self.symbols[rows as usize].max as u32;
        Ok(stages.into_iter().map(|stage| self.code.launch(stage, rows, most)).collect())
    }

    /// The launches that draw tokens from `logits`.
    pub(super) fn sampling(&mut self, logits: &Operand) -> Result<Vec<DeviceLaunch>> {
        if *self.target == Target::Cpu {
            return Ok(vec![]);
        }
        let most = |symbol: Symbol| self.symbols[symbol as usize].max as u32;
        let problem = sampling::cuda::Problem {
            vocab: logits.cols as usize,
            max_batch: most(Symbol::Sequences) as usize,
            max_rows: most(Symbol::Rows) as usize,
        };
        let launches = sampling::cuda::launches(&problem)
            .map_err(|e| CompileError::unsupported("sampling on the device", e.to_string()))?;
        if !launches.workspaces.is_empty() {
            return Err(CompileError::Bug("sampling asks for workspace, which only nodes have".into()));
        }
        let rows = most(Symbol::Rows);
        Ok(launches.stages.into_iter().map(|stage| self.code.launch(stage, Symbol::Rows, rows)).collect())
    }

    fn plan(
        &self,
        id: NodeId,
        m: Symbol,
        inputs: &[Operand],
        outputs: &[Operand],
    ) -> Result<Launches, KernelError> {
        let most = |symbol: Symbol| self.symbols[symbol as usize].max as usize;
        let x = &inputs[0];
        let out = outputs.first().unwrap_or(x);
        let gemm = |epilogue: Epilogue, n: usize, bias: bool| gemm::cuda::Problem {
            m,
            max_m: most(m) as u32,
            n,
            k: x.cols as usize,
            dtype: x.dtype,
            out: out.dtype,
            epilogue,
            bias,
        };
        let experts = |epilogue: Epilogue, n: usize, experts: usize| {
            let (choices, k) = (inputs[1].cols as usize, inputs[3].cols as usize);
            let share = if x.cols as usize == k { choices } else { 1 };
            expert_gemm::cuda::Problem {
                m,
                max_m: most(m) as u32,
                experts,
                choices,
                share,
                n,
                k,
                dtype: x.dtype,
                out: out.dtype,
                epilogue,
                bias: inputs.len() > 4,
            }
        };
        let rope = |heads: usize, kv_heads: usize, head_dim: usize, rotation: &[Operand]| {
            rope_append::cuda::Problem {
                heads,
                kv_heads,
                head_dim,
                rotary_dim: rotation[1].cols as usize,
                norm: None,
                dtype: out.dtype,
                kv_dtype: rotation[2].dtype,
                block: self.block(&rotation[2]),
                block_bytes: self.block_bytes(&rotation[2]),
            }
        };
        match &self.graph.node(id).op {
            Op::Embedding(_) => {
                let Place::Weight(table) = inputs[1].place else { return Ok(Launches::default()) };
                embedding::cuda::launches(&embedding::cuda::Problem {
                    vocab: self.vocabulary(&inputs[1]),
                    h: out.cols as usize,
                    dtype: out.dtype,
                    layout: match self.table.uses()[table as usize].entry.layout {
                        Layout::Mma16 => embedding::cuda::TableLayout::Mma16,
                        _ => embedding::cuda::TableLayout::RowMajor,
                    },
                })
            }
            Op::Cast(_) => unary(x, out, m, Unary::Cast),
            Op::Scale(op) => unary(x, out, m, Unary::Scale(op.factor)),
            Op::Softcap(op) => unary(x, out, m, Unary::Softcap(op.cap)),
            Op::Activate(op) => unary(x, out, m, Unary::Activation(op.act)),
            Op::SliceCols(_) => unary(x, out, m, Unary::Cast),
            Op::Add(_) => binary(x, &inputs[1], out, m, Binary::Add),
            Op::Mul(_) => binary(x, &inputs[1], out, m, Binary::Mul),
            Op::RmsNorm(op) => rms_norm::cuda::launches(&norm(x, &inputs[1], m, op.groups, op.eps)),
            Op::LayerNorm(op) => {
                let problem = norm(x, &inputs[1], m, op.groups, op.eps);
                layer_norm::cuda::launches(&problem, inputs.len() > 2)
            }
            Op::AddRmsNorm(op) => rms_norm::cuda::add_launches(&norm(out, &inputs[2], m, 1, op.eps)),
            Op::Linear(op) => {
                let epilogue = op.act.map_or(Epilogue::Store, Epilogue::Act);
                gemm::cuda::launches(&gemm(epilogue, out.cols as usize, inputs.len() > 2))
            }
            Op::LinearGlu(op) => {
                gemm::cuda::launches(&gemm(Epilogue::Glu(op.act), 2 * op.cols, inputs.len() > 2))
            }
            Op::LinearAdd(_) => {
                let problem = gemm(Epilogue::Store, out.cols as usize, inputs.len() > 3);
                fused_launches(&problem, &Fused { norm: None, tail: Tail::Add })
            }
            Op::NormLinear(op) => {
                let problem = gemm(Epilogue::Store, out.cols as usize, inputs.len() > 3);
                fused_launches(&problem, &Fused { norm: Some(op.eps), tail: Tail::None })
            }
            Op::NormLinearGlu(op) => {
                let problem = gemm(Epilogue::Glu(op.act), 2 * op.cols, inputs.len() > 3);
                fused_launches(&problem, &Fused { norm: Some(op.eps), tail: Tail::None })
            }
            Op::NormLinearRopeAppend(op) => {
                let (weights, rotation) = inputs.split_at(inputs.len() - 3);
                let n = (op.heads + 2 * op.kv_heads) * op.head_dim;
                let tail = Tail::RopeAppend(rope(op.heads, op.kv_heads, op.head_dim, rotation));
                let problem = gemm(Epilogue::Store, n, weights.len() > 3);
                fused_launches(&problem, &Fused { norm: Some(op.eps), tail })
            }
            Op::RopeAppend(op) => {
                let cache = inputs.len() - 1 - op.n_norms();
                rope_append::cuda::launches(&rope_append::cuda::Problem {
                    heads: op.heads,
                    kv_heads: op.kv_heads,
                    head_dim: op.head_dim,
                    rotary_dim: if cache > 2 { inputs[2].cols as usize } else { 0 },
                    norm: norm_over(op.qk_norm).map(|over| (over, op.eps)),
                    dtype: out.dtype,
                    kv_dtype: inputs[cache].dtype,
                    block: self.block(&inputs[cache]),
                    block_bytes: self.block_bytes(&inputs[cache]),
                })
            }
            Op::Rope(op) => rope_append::cuda::rope_launches(&rope_append::cuda::RopeProblem {
                heads: op.heads,
                head_dim: op.head_dim,
                rotary_dim: op.rotary_dim,
                dtype: x.dtype,
                out: out.dtype,
            }),
            Op::KvAppend(op) => {
                let (kv_heads, head_dim) = self.cached(op.layer);
                rope_append::cuda::kv_append_launches(&rope_append::cuda::KvAppendProblem {
                    kv_heads,
                    head_dim,
                    k: x.dtype,
                    v: inputs[1].dtype,
                    kv_dtype: inputs[2].dtype,
                    block: self.block(&inputs[2]),
                    block_bytes: self.block_bytes(&inputs[2]),
                })
            }
            Op::Attention(op) => attention::cuda::launches(&attention::cuda::Problem {
                heads: op.heads,
                kv_heads: op.kv_heads,
                head_dim: op.head_dim,
                scale: op.scale,
                dtype: x.dtype,
                kv_dtype: inputs[1].dtype,
                block: self.block(&inputs[1]),
                block_bytes: self.block_bytes(&inputs[1]),
                max_seq_len: self.max_seq_len as usize,
                max_seqs: most(Symbol::Sequences),
                max_tokens: most(Symbol::Tokens),
                window: self.window(op),
                softcap: super::softcap(op),
                sinks: inputs.len() > 2,
            }),
            Op::TopK(op) => top_k::cuda::launches(&top_k::cuda::Problem {
                m,
                max_m: most(m) as u32,
                n: x.cols as usize,
                k: op.k,
                over: match op.over {
                    Over::All => top_k::Over::All,
                    Over::Chosen => top_k::Over::Chosen,
                },
            }),
            Op::ExpertLinear(op) => {
                let n = (inputs[3].rows.constant as usize) / op.experts;
                expert_gemm::cuda::launches(&experts(Epilogue::Store, n, op.experts))
            }
            Op::ExpertLinearGlu(op) => {
                let problem = experts(expert_gemm::gated(op.act), 2 * op.cols, op.experts);
                expert_gemm::cuda::launches(&problem)
            }
            Op::Combine(_) | Op::CombineAdd(_) => {
                let residual = matches!(self.graph.node(id).op, Op::CombineAdd(_));
                combine::cuda::launches(&combine::cuda::Problem {
                    m,
                    cols: out.cols as usize,
                    choices: inputs[1].cols as usize,
                    dtype: x.dtype,
                    out: out.dtype,
                    shared: inputs.len() > 3,
                    residual,
                })
            }
            Op::GatherRows(_) => gather_rows::cuda::launches(&gather_rows::cuda::Problem {
                cols: x.cols as usize,
                dtype: x.dtype,
            }),
            // Selection has refused every other op before.
            _ => Ok(Launches::default()),
        }
    }

    fn vocabulary(&self, table: &Operand) -> usize {
        table.rows.constant as usize
    }

    /// The cache group of a cache operand.
    fn group(&self, cache: &Operand) -> Option<&CacheGroup> {
        match cache.place {
            Place::Cache { group, .. } => self.cache.groups.get(group as usize),
            Place::Buffer(_) | Place::Weight(_) | Place::Input(_) => None,
        }
    }

    fn block(&self, cache: &Operand) -> usize {
        match self.group(cache).map(|g| g.kind) {
            Some(CacheKind::Paged { block, .. }) => block as usize,
            _ => 0,
        }
    }

    fn block_bytes(&self, cache: &Operand) -> u64 {
        self.group(cache).map_or(0, |g| g.bytes_per_block)
    }
}

fn unary(x: &Operand, out: &Operand, m: Symbol, function: Unary) -> Result<Launches, KernelError> {
    elementwise::cuda::unary_launches(&elementwise::cuda::UnaryProblem {
        function,
        m,
        cols: x.cols as usize,
        stride: x.row_stride as usize,
        start: x.col_offset as usize,
        dtype: x.dtype,
        out: out.dtype,
    })
}

fn binary(
    a: &Operand,
    b: &Operand,
    out: &Operand,
    m: Symbol,
    function: Binary,
) -> Result<Launches, KernelError> {
    elementwise::cuda::binary_launches(&elementwise::cuda::BinaryProblem {
        function,
        m,
        cols: out.cols as usize,
        a: a.dtype,
        b: b.dtype,
        out: out.dtype,
    })
}

fn norm(x: &Operand, weight: &Operand, m: Symbol, groups: usize, eps: f32) -> rms_norm::cuda::NormProblem {
    rms_norm::cuda::NormProblem {
        m,
        h: x.cols as usize,
        groups,
        dtype: x.dtype,
        weight: weight.dtype,
        weight_len: weight.rows.constant as usize,
        eps,
    }
}

/// The symbol that an extent is, if it is one.
fn symbol_of(rows: &Expr) -> Option<Symbol> {
    match (rows.constant, &rows.terms[..]) {
        (0, [(0, 1)]) => Some(Symbol::Tokens),
        (0, [(1, 1)]) => Some(Symbol::Sequences),
        (0, [(2, 1)]) => Some(Symbol::Rows),
        _ => None,
    }
}
