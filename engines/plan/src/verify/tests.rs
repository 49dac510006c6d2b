//! One case per way of not making sense, each a single edit of the small plan.

use lathe_numerics::DType;

use super::{Parts, VerifyError, verify};
use crate::operand::{ROWS, TOKENS};
use crate::schema::{
    Arg, Blob, CacheKind, CacheLayer, DeviceLaunch, Expr, Extent, Input, Launch, Layout, Operand, Param,
    Place, Program, StepSymbol, Target, Weight, When,
};
use crate::testing::{small_cuda_tables, small_cuda_weights, small_tables, small_weights};
use crate::writer::{Tables, place};

struct Plan {
    t: Tables,
    weights: Vec<Weight>,
    data_bytes: u64,
}

impl Plan {
    fn p(&mut self) -> &mut Program {
        &mut self.t.programs[0]
    }

    /// The first launch of this kernel.
    fn l(&mut self, kernel: &str) -> &mut Launch {
        self.p().launches.iter_mut().find(|l| l.kernel == kernel).unwrap()
    }

    fn cubin(&mut self, module: usize) -> &mut Blob {
        self.p().modules[module].cubin.as_mut().unwrap()
    }

    /// Gives the last module other PTX.
    fn ptx(&mut self, text: &[u8]) {
        let offset = self.t.code.len().next_multiple_of(64);
        self.t.code.resize(offset, 0);
        self.t.code.extend(text);
        let hash = *blake3::hash(text).as_bytes();
        self.p().modules[2].ptx = Some(Blob { offset: offset as u64, bytes: text.len() as u64, hash });
    }

    /// Edits the operand of attention's workspace.
    fn workspace(&mut self, edit: impl FnOnce(&mut Operand)) {
        edit(&mut self.l("attention").outputs[1]);
    }

    /// Gives a weight another layout, behind all others.
    fn relay(&mut self, index: usize, layout: Layout) {
        let w = &mut self.weights[index];
        let bytes = layout.bytes(w.dtype, &w.shape).unwrap();
        (w.layout, w.bytes, w.offset) = (layout, bytes, self.data_bytes);
        self.data_bytes += bytes.next_multiple_of(64);
    }
}

fn small() -> Plan {
    let (weights, data_bytes) = place(small_weights()).unwrap();
    Plan { t: small_tables(&weights), weights, data_bytes }
}

fn small_cuda() -> Plan {
    let (weights, data_bytes) = place(small_cuda_weights()).unwrap();
    Plan { t: small_cuda_tables(&weights), weights, data_bytes }
}

fn run(plan: &Plan) -> Result<(), VerifyError> {
    verify(&Parts {
        card: &plan.t.card,
        programs: &plan.t.programs,
        weights: &plan.weights,
        data_bytes: plan.data_bytes,
        code: &plan.t.code,
        text: &plan.t.text,
        self_test: plan.t.self_test.as_ref(),
    })
}

fn variant(e: &VerifyError) -> String {
    let debug = format!("{e:?}");
    debug.split([' ', '{']).next().unwrap_or_default().to_string()
}

type Case = (&'static str, fn(&mut Plan));

/// The variant that the edit must give.
const CASES: &[Case] = &[
    ("Limit", |x| x.t.card.limits.max_batch = 0),
    ("Limit", |x| x.t.card.limits.max_num_tokens = 0),
    ("Limit", |x| x.t.card.limits.max_sample_rows = 9),
    ("Limit", |x| x.t.card.limits.max_seq_len = 1 << 31),
    ("Limit", |x| x.t.card.limits.kv_tokens = u64::MAX),
    ("Contract", |x| x.t.card.contract += 1),
    ("Vocabulary", |x| x.t.card.vocab_size = 0),
    ("Vocabulary", |x| x.t.card.vocab_size = u32::MAX),
    ("SpecialId", |x| x.t.card.eos_ids.push(1 << 31)),
    ("SpecialId", |x| x.t.card.bos_id = Some(u32::MAX)),
    ("Default", |x| x.t.card.generation.temperature = Some(f32::NAN)),
    ("Default", |x| x.t.card.generation.min_p = Some(-1.0)),
    ("TextTwice", |x| {
        let first = x.t.text.chat_templates[0].clone();
        x.t.text.chat_templates.push(first);
    }),
    ("TextTwice", |x| x.t.text.special_tokens[1].0 = "bos_token".into()),
    ("WeightTwice", |x| x.weights[5].name = "norm.0".into()),
    ("WeightShape", |x| x.weights[0].dtype = DType::U32),
    ("WeightShape", |x| x.weights[1].shape = vec![]),
    ("WeightBytes", |x| x.weights[1].bytes += 1),
    ("WeightBytes", |x| x.weights[0].layout = Layout::RowMajor),
    ("WeightAlignment", |x| x.weights[1].offset += 32),
    ("WeightRange", |x| x.weights[8].offset += 64),
    ("WeightRange", |x| x.weights[8].offset = u64::MAX - 63),
    ("WeightRange", |x| x.data_bytes -= 64),
    ("WeightOverlap", |x| x.weights[8].offset = x.weights[5].offset),
    ("NoProgram", |x| x.t.programs.clear()),
    ("ProgramTwice", |x| {
        let again = x.p().clone();
        x.t.programs.push(again);
    }),
    ("Rank", |x| x.p().rank = 1),
    ("Rank", |x| x.p().n_ranks = 0),
    ("Size", |x| x.p().arena_bytes = u64::MAX),
    ("Size", |x| x.p().scratch_bytes = 1 << 48),
    ("SymbolNames", |x| x.p().symbols.swap(0, 1)),
    ("SymbolNames", |x| x.p().symbols.truncate(2)),
    ("SymbolBounds", |x| x.p().symbols[1].max += 1),
    ("SymbolBounds", |x| x.p().symbols[0].min = 9),
    ("Expression", |x| x.p().buffers[0].rows.terms[0].0 = 3),
    ("Expression", |x| x.p().buffers[0].rows.terms.push((0, 1))),
    ("Expression", |x| x.p().buffers[0].rows.constant = u64::MAX),
    ("Expression", |x| x.l("gemm").inputs[0].rows.terms[0].1 = 0),
    ("BufferCols", |x| x.p().buffers[0].cols = 0),
    ("BufferCols", |x| x.p().buffers[0].cols = u64::MAX),
    ("BufferAlignment", |x| x.p().buffers[1].offset += 4),
    ("BufferRange", |x| x.p().buffers[9].offset += 64),
    ("BufferRange", |x| x.p().buffers[9].offset = u64::MAX - 63),
    ("BufferRange", |x| x.p().arena_bytes -= 64),
    ("CacheBlock", |x| x.p().cache_groups[0].kind = CacheKind::Paged { block: 48, window: None }),
    ("CacheBlock", |x| x.p().cache_groups[0].kind = CacheKind::Cross { block: 0 }),
    ("CacheExtent", |x| x.p().cache_groups[0].kind = CacheKind::Paged { block: 32, window: Some(0) }),
    ("CacheExtent", |x| x.p().cache_groups[0].kind = CacheKind::Latent { block: 32, width: 0 }),
    ("CacheExtent", |x| x.p().cache_groups[0].kind = CacheKind::Recurrent { bytes: 0 }),
    ("CacheExtent", |x| x.p().cache_groups[0].bytes_per_block = 0),
    ("CacheExtent", |x| x.p().cache_groups[0].layers[0].kv_heads = 0),
    ("CacheDType", |x| x.p().cache_groups[0].layers[0].dtype = DType::I32),
    ("CacheAlignment", |x| x.p().cache_groups[0].layers[0].offset = 32),
    ("CacheRange", |x| x.p().cache_groups[0].layers[0].offset = 64),
    ("CacheRange", |x| x.p().cache_groups[0].layers[0].head_dim = u32::MAX),
    ("CacheRange", |x| x.p().cache_groups[0].bytes_per_block -= 1),
    ("CacheCount", |x| {
        let group = x.p().cache_groups[0].clone();
        x.p().cache_groups = vec![group; 9];
    }),
    ("CacheBlocksDiffer", |x| {
        let mut group = x.p().cache_groups[0].clone();
        group.kind = CacheKind::Paged { block: 16, window: None };
        x.p().cache_groups.push(group);
    }),
    ("CacheWindow", |x| x.p().cache_groups[0].kind = CacheKind::Paged { block: 32, window: Some(9) }),
    ("CacheWindow", |x| {
        x.p().cache_groups[0].kind = CacheKind::Paged { block: 32, window: Some(9) };
        x.l("attention").params.push(("window".into(), Param::Int(10)));
    }),
    ("CacheOverlap", |x| {
        let group = &mut x.p().cache_groups[0];
        group.bytes_per_block *= 2;
        let second = CacheLayer { offset: 64, ..group.layers[0] };
        group.layers.push(second);
    }),
    ("KernelName", |x| x.p().launches[0].kernel.clear()),
    ("OperandCount", |x| {
        let l = x.l("gemm");
        l.inputs = vec![l.inputs[0].clone(); 17];
    }),
    ("ParamOrder", |x| x.l("attention").params.swap(0, 1)),
    ("ParamOrder", |x| {
        let l = x.l("attention");
        l.params.push(l.params[3].clone());
    }),
    ("ParamValue", |x| x.l("rms_norm").params[0].1 = Param::Float(f32::INFINITY)),
    ("OperandPlace", |x| x.l("gemm").inputs[0].place = Place::Buffer(99)),
    ("OperandPlace", |x| x.l("gemm").inputs[1].place = Place::Weight(99)),
    ("OperandPlace", |x| x.l("attention").inputs[1].place = Place::Cache { group: 0, layer: 1 }),
    ("OperandPlace", |x| x.l("attention").inputs[1].place = Place::Cache { group: 1, layer: 0 }),
    ("OperandDType", |x| x.l("gemm").inputs[0].dtype = DType::F32),
    ("OperandDType", |x| x.l("gemm").inputs[1].dtype = DType::F32),
    ("OperandDType", |x| x.l("embedding").inputs[0].dtype = DType::U32),
    ("OperandDType", |x| x.l("attention").inputs[1].dtype = DType::F32),
    ("OperandStride", |x| x.l("gemm").inputs[0].row_stride -= 1),
    ("OperandStride", |x| x.l("gemm").inputs[0].cols = u64::MAX),
    ("OperandStride", |x| x.l("gemm").inputs[0].cols = 0),
    ("OperandStride", |x| x.l("gemm").inputs[0].row_stride = u64::MAX),
    ("OperandRange", |x| x.l("gemm").inputs[0].row_stride += 1),
    ("OperandRange", |x| x.l("gemm").inputs[0].rows.constant += 1),
    ("OperandRange", |x| x.l("gemm").inputs[0].rows.terms[0].1 = 2),
    // As many rows at the bounds (8 of t against 2 of each r), but more when few tokens meet many rows.
    ("OperandRange", |x| x.l("gemm").inputs[0].rows = Expr { constant: 0, terms: vec![(ROWS, 2)] }),
    ("WeightPart", |x| x.l("gemm").inputs[1].rows.constant -= 1),
    ("WeightPart", |x| x.l("gemm").inputs[1].col_offset = 1),
    ("InputShape", |x| x.l("embedding").inputs[0].rows = Expr::symbol(ROWS)),
    ("InputShape", |x| x.l("embedding").inputs[0].cols = 2),
    ("CacheShape", |x| x.l("attention").inputs[1].cols = 1),
    ("OutputPlace", |x| x.l("embedding").outputs[0] = Operand::input(Input::Tokens)),
    ("OutputPlace", |x| {
        let weight = x.l("rms_norm").inputs[1].clone();
        x.l("rms_norm").outputs[0] = weight;
    }),
    ("OutputPlace", |x| {
        let weight = x.l("rms_norm").inputs[1].clone();
        x.p().logits = weight;
    }),
    ("OutputsOverlap", |x| {
        let l = x.l("add_rms_norm");
        l.outputs[1] = l.outputs[0].clone();
    }),
    ("OutputOverInput", |x| {
        let l = x.l("rms_norm");
        l.outputs[0] = l.inputs[0].clone();
    }),
    // In place is the sum over the residual, not the normed rows over it.
    ("OutputOverInput", |x| x.l("add_rms_norm").outputs.swap(0, 1)),
    ("OutputOverInput", |x| x.l("add_rms_norm").kernel = "add_layer_norm".into()),
    ("ReadUnwritten", |x| x.p().launches.swap(0, 1)),
    // qkv and delta share bytes: rope_append would read what the o projection wrote.
    ("ReadUnwritten", |x| x.p().launches.swap(3, 5)),
    ("ReadUnwritten", |x| {
        x.p().launches.pop();
    }),
    ("LogitsShape", |x| x.t.card.vocab_size -= 1),
    ("LogitsShape", |x| {
        let buffer = x.p().buffers[0].clone();
        x.p().logits = Operand::buffer(0, &buffer);
    }),
    ("SelfTestId", |x| x.t.self_test.as_mut().unwrap().ids[0] = 40),
    ("SelfTestId", |x| x.t.self_test.as_mut().unwrap().token_ids[0] = 40),
    ("SelfTestLength", |x| x.t.self_test.as_mut().unwrap().token_ids.clear()),
    ("SelfTestLength", |x| x.t.self_test.as_mut().unwrap().token_ids = vec![0; 65]),
    ("SelfTestPosition", |x| x.t.self_test.as_mut().unwrap().positions[0] = 3),
    ("SelfTestLogits", |x| x.t.self_test.as_mut().unwrap().logits.push(0.0)),
    ("SelfTestLogits", |x| {
        let test = x.t.self_test.as_mut().unwrap();
        test.ids.clear();
        test.logits.clear();
    }),
    ("SelfTestValue", |x| x.t.self_test.as_mut().unwrap().logits[0] = f32::NAN),
    ("SelfTestValue", |x| x.t.self_test.as_mut().unwrap().tolerance = -1.0),
];

/// The same for the small CUDA plan. Its modules are rows, tiles and sampler, which shares the PTX of the others.
const CUDA_CASES: &[Case] = &[
    ("DeviceOnCpu", |x| x.p().target = Target::Cpu),
    ("DeviceOnCpu", |x| {
        *x = small();
        x.l("gemm").device = small_cuda().l("gemm").device.clone();
    }),
    ("DeviceOnCpu", |x| {
        *x = small();
        x.p().sampling = small_cuda().p().sampling.clone();
    }),
    ("ModuleEmpty", |x| x.p().modules[2].ptx = None),
    ("EntryName", |x| x.p().modules[0].entries[0].name.clear()),
    ("EntryName", |x| {
        let again = x.p().modules[0].entries[0].clone();
        x.p().modules[0].entries.push(again);
    }),
    ("BlobAlignment", |x| x.cubin(1).offset += 32),
    ("BlobRange", |x| x.cubin(1).offset += 64),
    ("BlobRange", |x| x.cubin(1).offset = u64::MAX - 63),
    ("BlobRange", |x| x.cubin(1).bytes = u64::MAX),
    ("BlobRange", |x| x.cubin(1).bytes = 0),
    ("BlobRange", |x| x.t.code.clear()),
    ("BlobOverlap", |x| x.cubin(1).offset = 0),
    ("BlobHash", |x| x.cubin(1).bytes -= 1),
    ("BlobHash", |x| x.cubin(1).hash[0] ^= 1),
    ("BlobHash", |x| *x.t.code.last_mut().unwrap() ^= 1),
    ("BlobTwice", |x| {
        let copy = x.p().modules[1].cubin.unwrap();
        let bytes = x.t.code[copy.offset as usize..][..copy.bytes as usize].to_vec();
        let offset = x.t.code.len().next_multiple_of(64);
        x.t.code.resize(offset, 0);
        x.t.code.extend(bytes);
        x.p().modules[0].cubin = Some(Blob { offset: offset as u64, ..copy });
    }),
    ("PtxText", |x| x.ptx(&[0xff, 0xfe])),
    ("PtxText", |x| x.ptx(b".version 8.0\0")),
    ("NoDeviceLaunch", |x| x.l("rms_norm").device.clear()),
    ("StepsWithoutLaunch", |x| {
        x.l("gemm").device.pop();
    }),
    ("StepsWithoutLaunch", |x| x.l("gemm").device[1].when = range(StepSymbol::Tokens, 4, 8)),
    ("StepsWithoutLaunch", |x| x.l("gemm").device[1].when = range(StepSymbol::Tokens, 3, 7)),
    ("StepsWithoutLaunch", |x| x.l("gemm").device[1].when = range(StepSymbol::Rows, 3, 8)),
    ("StepsWithoutLaunch", |x| x.l("rms_norm").device[0].when = When::Mixed),
    ("StepsWithoutLaunch", |x| x.p().sampling[0].when = When::Mixed),
    ("LaunchModule", |x| x.l("gemm").device[0].module = 3),
    ("LaunchModule", |x| x.p().sampling[0].module = u32::MAX),
    ("LaunchEntry", |x| x.l("gemm").device[0].entry = "rows".into()),
    ("LaunchEntry", |x| x.p().sampling[0].module = 1),
    ("LaunchBlock", |x| x.l("gemm").device[0].block = 0),
    ("LaunchBlock", |x| x.l("gemm").device[0].block = 48),
    ("LaunchBlock", |x| x.l("gemm").device[0].block = 1056),
    ("LaunchShared", |x| x.l("gemm").device[0].shared_bytes = 226 * 1024 + 1),
    ("LaunchShared", |x| x.p().modules[1].entries[0].shared_bytes = u32::MAX),
    ("LaunchRegisters", |x| x.p().modules[1].entries[0].registers = 513),
    ("LaunchRegisters", |x| x.p().modules[1].entries[0].registers = u32::MAX),
    ("GridDivisor", |x| x.l("gemm").device[0].grid[1] = Extent::per(StepSymbol::Tokens, 0, 1)),
    ("GridFill", |x| x.l("gemm").device[0].grid[2] = Extent::Fill { per_sm: 0, most: 1 }),
    ("GridFill", |x| x.l("gemm").device[0].grid[2] = Extent::Fill { per_sm: 65, most: 1 }),
    ("GridFill", |x| x.l("gemm").device[0].grid[2] = Extent::Fill { per_sm: 1, most: 0 }),
    ("GridFill", |x| x.l("gemm").device[0].grid[2] = Extent::Fill { per_sm: 1, most: 65536 }),
    ("GridSize", |x| x.l("gemm").device[0].grid[0] = Extent::fixed(1 << 31)),
    ("GridSize", |x| x.l("gemm").device[0].grid[1] = Extent::fixed(65536)),
    // 8 tokens at most.
    ("GridSize", |x| x.l("gemm").device[0].grid[1] = Extent::per(StepSymbol::Tokens, 1, 8192)),
    ("GridSize", |x| x.l("gemm").device[0].grid[0] = Extent::per(StepSymbol::Tokens, 1, u32::MAX)),
    ("GridSize", |x| x.l("gemm").device[0].grid = [1 << 20, 1 << 12, 1].map(Extent::fixed)),
    ("ArgCount", |x| x.l("gemm").device[0].args = vec![Arg::U32(0); 129]),
    ("ArgOperand", |x| x.l("gemm").device[0].args[0] = Arg::Input(2)),
    ("ArgOperand", |x| x.l("gemm").device[0].args[0] = Arg::Output(1)),
    ("ArgOperand", |x| x.p().sampling[0].args[0] = Arg::Input(1)),
    ("ArgOperand", |x| x.p().sampling[0].args[0] = Arg::Output(0)),
    ("WorkspaceShape", |x| {
        let own = x.l("gemm").outputs[0].clone();
        x.l("rms_norm").outputs.push(Operand { cols: 1, ..own });
    }),
    ("WorkspaceShape", |x| x.p().buffers[10].rows = Expr::constant(4)),
    ("WorkspaceShape", |x| x.workspace(|o| o.rows = Expr::constant(0))),
    ("WorkspaceShape", |x| {
        x.p().buffers[10].dtype = DType::I32;
        x.workspace(|o| o.dtype = DType::I32);
    }),
    ("WorkspaceShape", |x| {
        x.p().buffers[10].rows = Expr { constant: 0, terms: vec![(1, 2)] };
        x.p().arena_bytes *= 2;
        x.workspace(|o| o.rows = Expr { constant: 0, terms: vec![(1, 2)] });
    }),
    ("WeightLayout", |x| x.relay(2, Layout::RowMajor)),
    ("WeightLayout", |x| x.relay(0, Layout::Panel16)),
    ("WeightLayout", |x| {
        *x = small();
        x.relay(0, Layout::Mma16);
    }),
    // Workspace is for its own node.
    ("ReadUnwritten", |x| {
        let parts = x.l("attention").outputs[1].clone();
        let l = x.p().launches.iter_mut().find(|l| l.node == "o").unwrap();
        l.inputs.push(parts);
    }),
];

fn range(symbol: StepSymbol, min: u32, max: u32) -> When {
    When::Range { symbol, min, max }
}

#[test]
fn the_small_plans_are_valid() {
    assert_eq!(run(&small()), Ok(()));
    assert_eq!(run(&small_cuda()), Ok(()));
}

#[test]
fn each_way_of_being_wrong() {
    let cpu = CASES.iter().map(|case| (small as fn() -> Plan, case));
    let cuda = CUDA_CASES.iter().map(|case| (small_cuda as fn() -> Plan, case));
    for (i, (make, (want, edit))) in cpu.chain(cuda).enumerate() {
        let mut plan = make();
        edit(&mut plan);
        match run(&plan) {
            Err(e) => assert_eq!(variant(&e), *want, "case {i}: {e}"),
            Ok(()) => panic!("case {i}: accepted, want {want}"),
        }
    }
}

/// Reads the variants from the source, so that a new one without a case fails here.
#[test]
fn every_variant_has_a_case() {
    let body = include_str!("error.rs").split_once("pub enum VerifyError {").unwrap().1;
    let variants = body.lines().filter_map(|l| {
        let name = l.strip_prefix("    ")?;
        let end = name.find([' ', ','])?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| &name[..end])
    });
    let missing: Vec<_> =
        variants.clone().filter(|v| !CASES.iter().chain(CUDA_CASES).any(|(want, _)| want == v)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    assert!(variants.count() > 70);
}

/// Columns of one matrix that are apart may be read and written by one launch.
#[test]
fn columns_apart_are_no_overlap() {
    let mut plan = small();
    let l = plan.l("gemm");
    let qkv = l.outputs[0].clone();
    let part = |cols, col_offset| Operand { cols, col_offset, ..qkv.clone() };
    let copy = |read: Operand, write: Operand| Launch {
        kernel: "copy".into(),
        node: "test".into(),
        inputs: vec![read],
        outputs: vec![write],
        params: vec![],
        device: vec![],
    };
    let try_it = |launch: Launch| {
        let mut plan = small();
        plan.p().launches.insert(3, launch);
        run(&plan).map_err(|e| variant(&e))
    };
    assert_eq!(try_it(copy(part(16, 0), part(16, 16))), Ok(()));
    assert_eq!(try_it(copy(part(16, 48), part(16, 0))), Ok(()));
    assert_eq!(try_it(copy(part(17, 0), part(16, 16))), Err("OutputOverInput".into()));
    assert_eq!(try_it(copy(part(16, 15), part(16, 0))), Err("OutputOverInput".into()));
}

/// Rows are compared for every value of the symbols, not only at the bounds.
#[test]
fn fewer_rows_are_within() {
    let mut plan = small();
    let rows = |e| {
        let mut plan = small();
        plan.l("gemm").inputs[0].rows = e;
        run(&plan).is_ok()
    };
    assert!(rows(Expr::constant(0)));
    assert!(!rows(Expr::constant(1)), "t may be zero");
    plan.p().symbols[0].min = 1;
    plan.l("gemm").inputs[0].rows = Expr::constant(1);
    assert_eq!(run(&plan), Ok(()));
    plan.l("gemm").inputs[0].rows = Expr { constant: 1, terms: vec![(TOKENS, 1)] };
    assert!(run(&plan).is_err());
}

/// Tables that are large are checked in time: quadratic work on 100,000 entries would not end.
#[test]
fn large_tables_take_no_quadratic_time() {
    let mut plan = small();
    let n = 100_000;
    let p = plan.p();
    let (buffer, first) = (p.buffers[0].clone(), p.launches[0].clone());
    p.buffers.resize(n, buffer);
    p.launches.splice(0..0, vec![first; n]);
    let start = std::time::Instant::now();
    assert_eq!(run(&plan), Ok(()));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// The same for what only CUDA programs have.
#[test]
fn many_modules_and_launches_take_no_quadratic_time() {
    let mut plan = small_cuda();
    let n = 50_000;
    let p = plan.p();
    let (module, launch) = (p.modules[2].clone(), p.launches[1].device[0].clone());
    p.modules.resize(n, module);
    let mut last = p.modules[0].entries[0].clone();
    for i in 0..n {
        last.name = format!("k{i}");
        p.modules[0].entries.push(last.clone());
    }
    p.launches[1].device.resize(n, DeviceLaunch { entry: last.name, ..launch });
    let start = std::time::Instant::now();
    assert_eq!(run(&plan), Ok(()));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// Ranges may overlap and stand in any order; `Mixed` may come on top; values without rows need no launch.
#[test]
fn ranges_that_leave_nothing_out() {
    let mut plan = small_cuda();
    let l = plan.l("gemm");
    let with = |when| DeviceLaunch { when, ..l.device[0].clone() };
    l.device = vec![
        with(range(StepSymbol::Tokens, 6, u32::MAX)),
        with(When::Mixed),
        with(range(StepSymbol::Tokens, 4, 2)),
        with(range(StepSymbol::Tokens, 2, 7)),
        with(range(StepSymbol::Tokens, 0, 1)),
        with(range(StepSymbol::Rows, 3, 3)),
    ];
    assert_eq!(run(&plan), Ok(()));
    plan.p().symbols[0].min = 2;
    plan.l("gemm").device.remove(4);
    assert_eq!(run(&plan), Ok(()));
}
