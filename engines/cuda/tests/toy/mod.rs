//! The toy model of toy.cu as a plan, and the same by hand. toy.ptx is what NVRTC 13.0 makes of toy.cu for sm_80 with
//! `--std=c++17 -lineinfo`, its `.file` lines cut to names.

use std::collections::HashMap;
use std::path::Path;

use lathe_api::SamplingParams;
use lathe_device::{Arg, DeviceLaunch, Extent, StepTable, Symbol as StepSymbol, When};
use lathe_numerics::DType;
use lathe_plan::operand::{ROWS, TOKENS};
use lathe_plan::schema::{
    Buffer, CacheGroup, CacheKind, CacheLayer, Entry, Expr, Input, Launch, Layout, Module, Operand, Program,
    Symbol, Target,
};
use lathe_plan::testing::small_tables;
use lathe_plan::{CodeWriter, PlanWriter, Tables, WeightSpec};

pub const VOCAB: u32 = 45;
pub const WIDTH: usize = 32;
pub const BLOCK: u32 = 16;
pub const MAX_BATCH: u32 = 5;
pub const MAX_TOKENS: u32 = 24;
pub const MAX_ROWS: u32 = 6;
pub const MAX_LEN: u32 = 64;
const ENTRIES: [&str; 7] = ["look_up", "append", "mix", "pick", "score_few", "score_many", "draw"];

/// Small integers without a pattern.
fn element(id: usize, i: usize) -> f32 {
    let x = (id * WIDTH + i + 1).wrapping_mul(2_654_435_761) as u32;
    ((x >> 13) % 7) as f32 - 3.0
}

/// Writes the plan with these targets; `bend` may edit each program.
pub fn write(path: &Path, targets: &[&str], bend: impl Fn(&mut Program)) {
    let spec = |name: &str, rows: u64| WeightSpec {
        name: name.into(),
        dtype: DType::F32,
        shape: vec![rows, WIDTH as u64],
        layout: Layout::RowMajor,
    };
    // The last one is named by no launch.
    let specs = vec![spec("table", u64::from(VOCAB)), spec("other", 4000)];
    let writer = PlanWriter::create(path, specs, 1 << 16).unwrap();
    let table: Vec<u8> = (0..VOCAB as usize)
        .flat_map(|id| (0..WIDTH).flat_map(move |i| element(id, i).to_le_bytes()))
        .collect();
    writer.write_weight(0, &table).unwrap();
    writer.write_weight(1, &vec![0; 4000 * WIDTH * 4]).unwrap();
    let weights = writer.weights().to_vec();
    let mut tables: Tables = small_tables(&weights_of_small(&weights));
    let limits = &mut tables.card.limits;
    (limits.max_batch, limits.max_num_tokens) = (MAX_BATCH, MAX_TOKENS);
    (limits.max_sample_rows, limits.max_seq_len, limits.kv_tokens) = (MAX_ROWS, MAX_LEN, 256);
    tables.card.vocab_size = VOCAB;
    tables.self_test = None;
    let mut code = CodeWriter::default();
    let ptx = code.add(include_bytes!("toy.ptx"));
    let entry = |name: &&str| Entry {
        name: (*name).into(),
        registers: 32,
        spill_bytes: 0,
        stack_bytes: 176,
        shared_bytes: 0,
    };
    let module = Module {
        name: "toy".into(),
        cubin: None,
        ptx: Some(ptx),
        entries: ENTRIES.iter().map(entry).collect(),
    };
    tables.programs = targets
        .iter()
        .map(|arch| {
            let mut program = decoder(&weights, module.clone());
            program.target = Target::Cuda { arch: (*arch).into() };
            bend(&mut program);
            program
        })
        .collect();
    tables.code = code.finish();
    writer.finish(&tables).unwrap();
}

/// `small_tables` looks at nine weights, of which nothing stays.
fn weights_of_small(weights: &[lathe_plan::schema::Weight]) -> Vec<lathe_plan::schema::Weight> {
    std::iter::repeat_n(weights[0].clone(), 9).collect()
}

fn decoder(weights: &[lathe_plan::schema::Weight], module: Module) -> Program {
    let symbol = |name: &str, max: u32| Symbol { name: name.into(), min: 0, max: u64::from(max) };
    let (t, r, width) = (Expr::symbol(TOKENS), Expr::symbol(ROWS), WIDTH as u64);
    let sizes = [
        ("x", &t, width, MAX_TOKENS),
        ("y", &t, width, MAX_TOKENS),
        ("z", &r, width, MAX_ROWS),
        ("logits", &r, u64::from(VOCAB), MAX_ROWS),
    ];
    let mut buffers = Vec::new();
    let mut end = 0u64;
    for (name, rows, cols, most) in sizes {
        buffers.push(Buffer { name: name.into(), dtype: DType::F32, rows: rows.clone(), cols, offset: end });
        end = (end + cols * u64::from(most) * 4).next_multiple_of(64);
    }
    let buf = |i: usize| Operand::buffer(i as u32, &buffers[i]);
    let layer = |offset| CacheLayer { kv_heads: 1, head_dim: WIDTH as u32, dtype: DType::F32, offset };
    let layers = vec![layer(0), layer(4096)];
    let cache = Operand::cache(0, 1, &layers[1]);
    let table = Operand::weight(0, &weights[0]);
    let launch = |entry: &str, when, grid, args: Vec<Arg>| DeviceLaunch {
        module: 0,
        entry: entry.into(),
        when,
        grid,
        block: 32,
        shared_bytes: 0,
        dependent: true,
        args,
    };
    let one = Extent::fixed(1);
    let per = |symbol| [Extent::per(symbol, 1, 1), one.clone(), one.clone()];
    let node = |kernel: &str, name: &str, inputs, outputs, device| Launch {
        kernel: kernel.into(),
        node: name.into(),
        inputs,
        outputs,
        params: vec![],
        device,
    };
    use Arg::{Input as In, Output as Out, Table};
    use StepTable as S;
    let rows_of = [Table(S::RowSequence), Table(S::Sequences), Table(S::Blocks)];
    let args = |first: &[Arg], then: &[Arg]| [first, then].concat();
    let ids = u64::from(VOCAB);
    let range = |min, max| When::Range { symbol: StepSymbol::Rows, min, max };
    let launches = vec![
        node(
            "embedding",
            "x",
            vec![Operand::input(Input::Tokens), table.clone()],
            vec![buf(0)],
            vec![launch(
                "look_up",
                When::Always,
                per(StepSymbol::Tokens),
                vec![In(1), In(0), Table(S::Drawn), Out(0)],
            )],
        ),
        // What it writes is the cache; y is written over by the next node.
        node(
            "append",
            "y.0",
            vec![buf(0), Operand::input(Input::Positions), cache.clone()],
            vec![buf(1)],
            vec![launch(
                "append",
                When::Always,
                per(StepSymbol::Tokens),
                args(&[In(0), In(1), In(2)], &rows_of),
            )],
        ),
        node(
            "mix",
            "y",
            vec![buf(0), cache],
            vec![buf(1)],
            vec![launch(
                "mix",
                When::Always,
                per(StepSymbol::Tokens),
                args(&args(&[In(0), In(1)], &rows_of), &[Out(0)]),
            )],
        ),
        node(
            "pick",
            "z",
            vec![buf(1), Operand::input(Input::SampleRows)],
            vec![buf(2)],
            vec![launch("pick", When::Always, per(StepSymbol::Rows), vec![In(0), In(1), Out(0)])],
        ),
        node(
            "score",
            "logits",
            vec![buf(2), table],
            vec![buf(3)],
            vec![
                launch(
                    "score_few",
                    range(0, 2),
                    [
                        Extent::fixed(ids.div_ceil(32) as u32),
                        Extent::per(StepSymbol::Rows, 1, 1),
                        one.clone(),
                    ],
                    vec![In(0), In(1), Out(0), Arg::U32(VOCAB)],
                ),
                launch(
                    "score_many",
                    range(3, MAX_ROWS),
                    [Extent::Fill { per_sm: 1, most: 3 }, one.clone(), one.clone()],
                    vec![In(0), In(1), Out(0), Arg::U32(VOCAB), Arg::Symbol(StepSymbol::Rows)],
                ),
            ],
        ),
    ];
    let drawn = [S::DrawParams, S::Masks, S::Counts, S::Bias, S::Stops, S::Answers, S::Drawn, S::Scores];
    let draw = args(&args(&[In(0)], &drawn.map(Table)), &[Arg::U32(VOCAB)]);
    Program {
        name: "decoder".into(),
        target: Target::Cuda { arch: "sm_80".into() },
        rank: 0,
        n_ranks: 1,
        symbols: vec![symbol("t", MAX_TOKENS), symbol("s", MAX_BATCH), symbol("r", MAX_ROWS)],
        logits: buf(3),
        arena_bytes: end,
        scratch_bytes: 0,
        cache_groups: vec![CacheGroup {
            kind: CacheKind::Paged { block: BLOCK, window: None },
            replay_exact: true,
            bytes_per_block: 8192,
            layers,
        }],
        launches,
        modules: vec![module],
        sampling: vec![launch("draw", When::Always, per(StepSymbol::Rows), draw)],
        buffers,
    }
}

/// A sequence done by hand.
#[derive(Clone, Debug, Default)]
pub struct ByHand {
    /// Prompt and answer so far.
    pub ids: Vec<u32>,
    pub counts: HashMap<u32, u32>,
    pub prompt: Vec<u32>,
    pub bias: Vec<(u32, f32)>,
    pub stops: Vec<u32>,
}

impl ByHand {
    /// Logits of the row that feeds position `at`.
    pub fn logits(&self, at: usize) -> Vec<f32> {
        let vector = |p: usize| (0..WIDTH).map(move |i| element(self.ids[p] as usize, i));
        let mut y: Vec<f32> = vector(at).collect();
        for p in 0..=at {
            for (sum, v) in y.iter_mut().zip(vector(p)) {
                *sum += (p + 1) as f32 * v;
            }
        }
        let dot = |id: u32| (0..WIDTH).map(|i| y[i] * element(id as usize, i)).sum();
        (0..VOCAB).map(dot).collect()
    }

    /// The id that is drawn from the row that feeds position `at`; `allowed` says which may be.
    pub fn draw(
        &self,
        at: usize,
        p: &SamplingParams,
        suppress: bool,
        allowed: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let mut scores = self.logits(at);
        for (id, score) in (0..).zip(&mut scores) {
            let n = self.counts.get(&id).copied().unwrap_or(0);
            *score -= p.frequency_penalty * n as f32;
            *score -= if n > 0 { p.presence_penalty } else { 0.0 };
            *score -= if n > 0 || self.prompt.contains(&id) { p.repetition_penalty - 1.0 } else { 0.0 };
        }
        for (id, by) in &self.bias {
            scores[*id as usize] += by;
        }
        let mut best = None;
        for (id, score) in (0..).zip(scores) {
            let out = !allowed(id) || (suppress && self.stops.contains(&id));
            if !out && best.is_none_or(|(_, most)| score > most) {
                best = Some((id, score));
            }
        }
        best.map(|(id, _)| id)
    }

    /// What the toy says of an id: its logit, its rank, and the first `n` of all.
    pub fn report(&self, at: usize, id: u32, n: usize) -> (f32, u32, Vec<(u32, f32)>) {
        let logits = self.logits(at);
        let own = logits[id as usize];
        let rank = 1 + logits.iter().filter(|l| **l > own).count() as u32;
        let mut order: Vec<(u32, f32)> = (0..).zip(logits).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        order.truncate(n);
        (own, rank, order)
    }
}
