//! Device launches of a node: the kernel families plan them, here they are tied to operands, buffers and modules.

use lathe_device::{DeviceLaunch, Symbol};
use lathe_ir::entity::NodeId;
use lathe_ir::ops::Op;
use lathe_kernels::cuda::{Cost, Launches, Source, Stage};
use lathe_kernels::gemm::Epilogue;
use lathe_kernels::gemm::cuda::{Fused, Tail, fused_launches};
use lathe_kernels::{KernelError, attention, embedding, gather_rows, gemm, rms_norm, rope_append, sampling};
use lathe_numerics::DType;
use lathe_plan::schema::{Buffer, CacheKind, Expr, Layout, Operand, Place, Target};

use super::Selection;
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
        let rows = outputs.first().and_then(|o| symbol_of(&o.rows));
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
        let (x, out) = (&inputs[0], &outputs[0]);
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
        let rope = |heads: usize, kv_heads: usize, head_dim: usize, rotation: &[Operand]| {
            rope_append::cuda::Problem {
                heads,
                kv_heads,
                head_dim,
                rotary_dim: rotation[1].cols as usize,
                dtype: out.dtype,
                kv_dtype: rotation[2].dtype,
                block: self.block(),
                block_bytes: self.block_bytes(),
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
            Op::RmsNorm(op) => {
                let problem =
                    rms_norm::cuda::NormProblem { m, h: x.cols as usize, dtype: x.dtype, eps: op.eps };
                rms_norm::cuda::launches(&problem)
            }
            Op::AddRmsNorm(op) => {
                let problem =
                    rms_norm::cuda::NormProblem { m, h: x.cols as usize, dtype: out.dtype, eps: op.eps };
                rms_norm::cuda::add_launches(&problem)
            }
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
                rope_append::cuda::launches(&rope(op.heads, op.kv_heads, op.head_dim, &inputs[1..]))
            }
            Op::Attention(op) => attention::cuda::launches(&attention::cuda::Problem {
                heads: op.heads,
                kv_heads: op.kv_heads,
                head_dim: op.head_dim,
                scale: op.scale,
                dtype: x.dtype,
                kv_dtype: inputs[1].dtype,
                block: self.block(),
                block_bytes: self.block_bytes(),
                max_seq_len: self.max_seq_len as usize,
                max_seqs: most(Symbol::Sequences),
                max_tokens: most(Symbol::Tokens),
                window: self.window(op),
            }),
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

    fn block(&self) -> usize {
        match self.cache_groups.first().map(|g| g.kind) {
            Some(CacheKind::Paged { block, .. }) => block as usize,
            _ => 0,
        }
    }

    fn block_bytes(&self) -> u64 {
        self.cache_groups.first().map_or(0, |g| g.bytes_per_block)
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
