//! What compilation made of every kernel that real models launch: resources per architecture, instructions.

use std::collections::BTreeSet;

use lathe_conformance::{code, sass};
use lathe_device::Symbol;
use lathe_kernels::attention::cuda::Problem;
use lathe_kernels::cuda::{Launches, Source, Stage};
use lathe_kernels::elementwise::cuda::{BinaryProblem, UnaryProblem, binary_launches, unary_launches};
use lathe_kernels::elementwise::{Binary, Unary};
use lathe_kernels::embedding::cuda::TableLayout;
use lathe_kernels::gemm::Epilogue;
use lathe_kernels::gemm::cuda::{Fused, Tail};
use lathe_kernels::rms_norm::cuda::NormProblem;
use lathe_kernels::{
    attention, combine, embedding, gather_rows, gemm, glu, layer_norm, rms_norm, rope_append, sampling,
};
use lathe_numerics::{Activation, DType};
use lathe_nvrtc::{Compiled, EntryReport};

/// Sizes of a model.
struct Model {
    name: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocab: usize,
    layers: usize,
    tied: bool,
}

const LLAMA_8B: Model = Model {
    name: "Llama-3.1-8B",
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    intermediate: 14336,
    vocab: 128_256,
    layers: 32,
    tied: false,
};

/// That of tools/demo-model.
const DEMO: Model = Model {
    name: "demo",
    hidden: 256,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    intermediate: 640,
    vocab: 1516,
    layers: 4,
    tied: true,
};

const BLOCK: usize = 32;

/// Most sequences and rows of a step.
const MAX_SEQS: usize = 64;
const MAX_ROWS: u32 = 2048;

/// Instructions that a kernel of 16-bit elements is about: opcodes with modifiers.
fn wants(entry: &str) -> &'static [&'static str] {
    match entry {
        "gemm" | "attention_split" | "attention_decode" | "attention_prefill" => {
            &["HMMA", "LDGSTS.128", "LDSM"]
        }
        "rms_norm" | "add_rms_norm" | "glu" | "gather_rows" => &["LDG.128", "STG.128"],
        "rope_append" => &["LDG.128", "STG"],
        "attention_fold" | "embedding" | "draw" | "report" => &["LDG", "STG"],
        _ => panic!("kernel {entry}: say here what its machine code must hold"),
    }
}

/// Nodes of a decoder as the CUDA targets launch them.
fn nodes(m: &Model, dtype: DType) -> Vec<Launches> {
    let tensor_cores = dtype != DType::F32;
    let block_bytes = (m.layers * 2 * m.kv_heads * BLOCK * m.head_dim * dtype.size()) as u64;
    let gemm = |m, n, k, out, epilogue| gemm::cuda::Problem {
        m,
        max_m: MAX_ROWS,
        n,
        k,
        dtype,
        out,
        epilogue,
        bias: false,
    };
    let qkv = (m.heads + 2 * m.kv_heads) * m.head_dim;
    let (o, down, gate_up) = (m.heads * m.head_dim, m.intermediate, 2 * m.intermediate);
    let linear = [
        gemm(Symbol::Tokens, qkv, m.hidden, DType::F32, Epilogue::Store),
        gemm(Symbol::Tokens, m.hidden, o, DType::F32, Epilogue::Store),
        gemm(Symbol::Tokens, gate_up, m.hidden, dtype, Epilogue::Glu(Activation::Silu)),
        gemm(Symbol::Tokens, m.hidden, down, DType::F32, Epilogue::Store),
        gemm(Symbol::Rows, m.vocab, m.hidden, DType::F32, Epilogue::Store),
    ];
    let norm = rms_norm::cuda::NormProblem::rows(Symbol::Tokens, m.hidden, dtype, 1e-5);
    let layout = if m.tied && tensor_cores { TableLayout::Mma16 } else { TableLayout::RowMajor };
    let table = embedding::cuda::Problem { vocab: m.vocab, h: m.hidden, dtype, layout };
    let rope = rope_append::cuda::Problem {
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.head_dim,
        rotary_dim: m.head_dim,
        norm: None,
        dtype,
        kv_dtype: dtype,
        block: BLOCK,
        block_bytes,
    };
    let attend = attention::cuda::Problem {
        heads: m.heads,
        kv_heads: m.kv_heads,
        head_dim: m.head_dim,
        scale: 1.0 / (m.head_dim as f32).sqrt(),
        dtype,
        kv_dtype: dtype,
        block: BLOCK,
        block_bytes,
        max_seq_len: 8192,
        max_seqs: MAX_SEQS,
        max_tokens: MAX_ROWS as usize,
        window: None,
        softcap: None,
        sinks: false,
    };
    let gated = glu::cuda::Problem {
        act: Activation::Silu,
        m: Symbol::Tokens,
        cols: m.intermediate,
        stride: gate_up,
        dtype,
        out: dtype,
    };
    // Layers as their passes leave them: what stands before and behind a projection goes with it.
    let with = |p: gemm::cuda::Problem, norm: bool, tail: Tail| {
        gemm::cuda::fused_launches(&p, &Fused { norm: norm.then_some(1e-5), tail })
    };
    let fused = [
        with(linear[0], true, Tail::RopeAppend(rope)),
        with(gemm::cuda::Problem { out: dtype, ..linear[1] }, false, Tail::Add),
        with(linear[2], true, Tail::None),
        with(gemm::cuda::Problem { out: dtype, ..linear[3] }, false, Tail::Add),
        with(linear[4], true, Tail::None),
    ];
    let draw = sampling::cuda::Problem { vocab: m.vocab, max_batch: MAX_SEQS, max_rows: MAX_SEQS };
    let others = [
        embedding::cuda::launches(&table),
        rms_norm::cuda::launches(&norm),
        rms_norm::cuda::add_launches(&norm),
        rope_append::cuda::launches(&rope),
        attention::cuda::launches(&attend),
        glu::cuda::launches(&gated),
        gather_rows::cuda::launches(&gather_rows::cuda::Problem { cols: m.hidden, dtype }),
        sampling::cuda::launches(&draw),
    ];
    linear.iter().map(gemm::cuda::launches).chain(others).chain(fused).map(Result::unwrap).collect()
}

fn compile(nodes: &[Launches], arch: &str) -> Vec<(Source, Compiled)> {
    let sources: BTreeSet<&Source> = nodes.iter().flat_map(|n| &n.stages).map(|s| &s.source).collect();
    let sources: Vec<&Source> = sources.into_iter().collect();
    let code = code::compile(&code::compiler(), &sources, arch).unwrap();
    sources.into_iter().cloned().zip(code).collect()
}

/// Most shared memory of a block with opt-in where it is smallest, on sm_86, sm_89 and sm_120 (CUDA programming guide,
/// technical specifications): a launch is planned without knowing the device.
const MAX_SHARED: u32 = 99 * 1024;

/// What is wrong with a kernel's resources; empty if nothing.
fn faults(stage: &Stage, entry: &EntryReport) -> String {
    let mut faults = String::new();
    if entry.spill_store_bytes + entry.spill_load_bytes > 0 {
        faults += &format!(" spills {} bytes;", entry.spill_store_bytes);
    }
    if entry.stack_bytes > 0 {
        faults += &format!(" has a stack of {} bytes;", entry.stack_bytes);
    }
    // Registers are given out by warp in portions of 8 per thread.
    let registers = entry.registers.next_multiple_of(8) * stage.block;
    if registers > 65536 {
        faults += &format!(" needs {registers} registers per block;");
    }
    let shared = stage.shared_bytes + entry.shared_bytes;
    if shared > MAX_SHARED {
        faults += &format!(" needs {shared} bytes of shared memory, {MAX_SHARED} are there;");
    }
    faults
}

fn resources(model: &Model, dtype: DType, arch: &str) {
    report(model.name, dtype, arch, &nodes(model, dtype));
}

fn report(name: &str, dtype: DType, arch: &str, nodes: &[Launches]) {
    let code = compile(nodes, arch);
    let mut wrong = String::new();
    for (source, made) in &code {
        if !made.warnings.is_empty() {
            wrong += &format!("{arch} {}: {}", source.name, made.warnings);
        }
    }
    for stage in nodes.iter().flat_map(|n| &n.stages) {
        let (_, made) = code.iter().find(|(source, _)| *source == stage.source).unwrap();
        let entry = made.entries.iter().find(|e| e.name == stage.entry);
        let entry = entry.unwrap_or_else(|| panic!("{}: no kernel {}", stage.source.name, stage.entry));
        println!(
            "{arch} {} {}: {} registers, {} threads, {} + {} bytes shared",
            stage.source.name,
            stage.entry,
            entry.registers,
            stage.block,
            entry.shared_bytes,
            stage.shared_bytes
        );
        let faults = faults(stage, entry);
        if !faults.is_empty() {
            wrong += &format!("{name} {dtype} {arch} {}/{}:{faults}\n", stage.source.name, stage.entry);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn no_kernel_of_a_large_model_spills() {
    // sm_86 and sm_89 are the small model's.
    for arch in ["sm_80", "sm_90", "sm_120a"] {
        resources(&LLAMA_8B, DType::BF16, arch);
    }
}

#[test]
fn no_kernel_of_other_dtypes_spills() {
    for dtype in [DType::F16, DType::F32] {
        resources(&LLAMA_8B, dtype, "sm_80");
    }
}

/// SiLU's are among the model's nodes.
#[test]
fn no_other_activation_spills() {
    let m = &LLAMA_8B;
    for (act, dtype) in
        [(Activation::Gelu, DType::BF16), (Activation::GeluTanh, DType::F16), (Activation::Gelu, DType::F32)]
    {
        let gemm = |n: usize, epilogue| gemm::cuda::Problem {
            m: Symbol::Tokens,
            max_m: MAX_ROWS,
            n,
            k: m.hidden,
            dtype,
            out: dtype,
            epilogue,
            bias: true,
        };
        let gated = gemm(2 * m.intermediate, Epilogue::Glu(act));
        let norm = Fused { norm: Some(1e-5), tail: Tail::None };
        let product = glu::cuda::Problem {
            act,
            m: Symbol::Tokens,
            cols: m.intermediate,
            stride: m.intermediate,
            dtype,
            out: dtype,
        };
        let nodes = [
            gemm::cuda::launches(&gemm(m.intermediate, Epilogue::Act(act))),
            gemm::cuda::fused_launches(&gated, &norm),
            glu::cuda::launches(&product),
        ];
        report(act.name(), dtype, "sm_80", &nodes.map(Result::unwrap));
    }
}

/// What stands between projections where it goes with none: layer norms, elementwise functions, the sum of experts.
#[test]
fn no_kernel_between_projections_spills() {
    let (m, cols) = (Symbol::Tokens, 4096);
    let unary = |function, dtype, out| {
        unary_launches(&UnaryProblem { function, m, cols, stride: cols, start: 0, dtype, out }).unwrap()
    };
    for (dtype, arch) in [(DType::BF16, "sm_80"), (DType::BF16, "sm_90"), (DType::F32, "sm_80")] {
        let norm = NormProblem::rows(m, cols, dtype, 1e-5);
        let heads = NormProblem { groups: 32, ..norm };
        let binary = |function, b| {
            binary_launches(&BinaryProblem { function, m, cols, a: DType::F32, b, out: dtype }).unwrap()
        };
        let sum =
            combine::cuda::Problem { m, cols, choices: 8, dtype, out: dtype, shared: true, residual: true };
        let nodes = [
            layer_norm::cuda::launches(&norm, true).unwrap(),
            layer_norm::cuda::launches(&heads, false).unwrap(),
            unary(Unary::Cast, DType::F32, dtype),
            unary(Unary::Scale(2.0), dtype, dtype),
            unary(Unary::Softcap(30.0), DType::F32, DType::F32),
            unary(Unary::Activation(Activation::Silu), DType::F32, dtype),
            unary(Unary::Activation(Activation::Gelu), DType::F32, dtype),
            unary(Unary::Activation(Activation::GeluTanh), DType::F32, dtype),
            binary(Binary::Add, dtype),
            binary(Binary::Mul, DType::F32),
            combine::cuda::launches(&sum).unwrap(),
        ];
        report("between", dtype, arch, &nodes);
    }
}

#[test]
fn no_kernel_of_a_small_model_spills() {
    for arch in ["sm_86", "sm_89"] {
        resources(&DEMO, DType::BF16, arch);
    }
}

/// Attention of every head size, without its features and with all of them.
#[test]
fn no_attention_spills() {
    for arch in ["sm_80", "sm_90"] {
        let mut nodes = vec![];
        for head_dim in [64, 80, 96, 112, 128, 256] {
            let plain = Problem {
                heads: 16,
                kv_heads: 4,
                head_dim,
                scale: 0.1,
                dtype: DType::BF16,
                kv_dtype: DType::BF16,
                block: BLOCK,
                block_bytes: 1 << 22,
                max_seq_len: 8192,
                max_seqs: MAX_SEQS,
                max_tokens: MAX_ROWS as usize,
                window: None,
                softcap: None,
                sinks: false,
            };
            let windowed = Problem { window: Some(4096), ..plain };
            let all = Problem { softcap: Some(50.0), sinks: true, ..windowed };
            let capped = Problem { softcap: Some(30.0), ..plain };
            // Each feature by itself where most models are, else none and all: a module takes seconds to compile.
            let one = match (arch, head_dim) {
                ("sm_80", 128) => vec![plain, windowed, capped, Problem { sinks: true, ..plain }, all],
                _ => vec![plain, all],
            };
            nodes.extend(one.iter().map(|p| attention::cuda::launches(p).unwrap()));
        }
        report("attention", DType::BF16, arch, &nodes);
    }
}

#[test]
fn kernels_hold_the_instructions_that_they_are_about() {
    for (model, arch) in [(&LLAMA_8B, "sm_90"), (&DEMO, "sm_86")] {
        let mut wrong = String::new();
        for (source, made) in compile(&nodes(model, DType::BF16), arch) {
            for (entry, kernel) in sass::disassemble(&made.cubin).unwrap() {
                assert!(sass::count(&kernel, "EXIT") > 0 && kernel.len() > 16, "{}: {kernel:?}", source.name);
                for opcode in wants(&entry).iter().filter(|opcode| sass::count(&kernel, opcode) == 0) {
                    wrong += &format!("{arch} {}/{entry}: no {opcode}\n", source.name);
                }
                // Local memory is what spills and indexed arrays become.
                for opcode in ["LDL", "STL"].iter().filter(|opcode| sass::count(&kernel, opcode) > 0) {
                    wrong += &format!("{arch} {}/{entry}: {opcode}\n", source.name);
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
