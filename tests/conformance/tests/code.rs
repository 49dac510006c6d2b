//! What compilation made of every kernel that real models launch: resources per architecture, instructions.

use std::collections::BTreeSet;

use lathe_conformance::{code, sass};
use lathe_device::Symbol;
use lathe_kernels::cuda::{Launches, Source, Stage};
use lathe_kernels::{embedding, gather_rows, rms_norm, rope_append, silu_mul};
use lathe_numerics::DType;
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

/// A node of a model and the instructions that its stages' code is about: (entry, opcode with modifiers).
struct Node {
    launches: Launches,
    wants: &'static [(&'static str, &'static str)],
}

fn nodes(m: &Model, dtype: DType) -> Vec<Node> {
    let norm = rms_norm::cuda::NormProblem { m: Symbol::Tokens, h: m.hidden, dtype, eps: 1e-5 };
    let layout =
        if m.tied { embedding::cuda::TableLayout::Mma16 } else { embedding::cuda::TableLayout::RowMajor };
    let node = |launches, wants| Node { launches, wants };
    vec![
        node(
            embedding::cuda::launches(&embedding::cuda::Problem {
                vocab: m.vocab,
                h: m.hidden,
                dtype,
                layout,
            })
            .unwrap(),
            &[],
        ),
        node(rms_norm::cuda::launches(&norm).unwrap(), &[("rms_norm", "LDG.128"), ("rms_norm", "STG.128")]),
        node(
            rms_norm::cuda::add_launches(&norm).unwrap(),
            &[("add_rms_norm", "LDG.128"), ("add_rms_norm", "STG.128")],
        ),
        node(
            rope_append::cuda::launches(&rope_append::cuda::Problem {
                heads: m.heads,
                kv_heads: m.kv_heads,
                head_dim: m.head_dim,
                rotary_dim: m.head_dim,
                dtype,
                kv_dtype: dtype,
                block: BLOCK,
                block_bytes: (m.layers * 2 * m.kv_heads * BLOCK * m.head_dim * dtype.size()) as u64,
            })
            .unwrap(),
            &[("rope_append", "LDG.128"), ("rope_append", "STG.64")],
        ),
        node(
            silu_mul::cuda::launches(&silu_mul::cuda::Problem {
                m: Symbol::Tokens,
                cols: m.intermediate,
                stride: 2 * m.intermediate,
                dtype,
                out: dtype,
            })
            .unwrap(),
            &[("silu_mul", "LDG.128"), ("silu_mul", "STG.128")],
        ),
        node(
            gather_rows::cuda::launches(&gather_rows::cuda::Problem { cols: m.hidden, dtype }).unwrap(),
            &[("gather_rows", "LDG.128"), ("gather_rows", "STG.128")],
        ),
    ]
}

fn compile(nodes: &[Node], arch: &str) -> Vec<(Source, Compiled)> {
    let sources: BTreeSet<&Source> =
        nodes.iter().flat_map(|n| &n.launches.stages).map(|s| &s.source).collect();
    let sources: Vec<&Source> = sources.into_iter().collect();
    let code = code::compile(&code::compiler(), &sources, arch).unwrap();
    sources.into_iter().cloned().zip(code).collect()
}

/// Most shared memory of a block with opt-in (CUDA programming guide, technical specifications).
fn max_shared(arch: &str) -> u32 {
    match arch {
        "sm_80" => 163 * 1024,
        "sm_90" => 227 * 1024,
        _ => 99 * 1024,
    }
}

/// What is wrong with a kernel's resources; empty if nothing.
fn faults(stage: &Stage, entry: &EntryReport, arch: &str) -> String {
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
    if shared > max_shared(arch) {
        faults += &format!(" needs {shared} bytes of shared memory, {} are there;", max_shared(arch));
    }
    faults
}

fn resources(model: &Model, dtype: DType, arch: &str) {
    let nodes = nodes(model, dtype);
    let code = compile(&nodes, arch);
    let mut wrong = String::new();
    for (source, made) in &code {
        if !made.warnings.is_empty() {
            wrong += &format!("{arch} {}: {}", source.name, made.warnings);
        }
    }
    for stage in nodes.iter().flat_map(|n| &n.launches.stages) {
        let (_, made) = code.iter().find(|(source, _)| *source == stage.source).unwrap();
        let entry = made.entries.iter().find(|e| e.name == stage.entry);
        let entry = entry.unwrap_or_else(|| panic!("{}: no kernel {}", stage.source.name, stage.entry));
        let faults = faults(stage, entry, arch);
        if !faults.is_empty() {
            wrong +=
                &format!("{} {dtype} {arch} {}/{}:{faults}\n", model.name, stage.source.name, stage.entry);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn no_kernel_of_a_large_model_spills_on_any_architecture() {
    for arch in lathe_nvrtc::supported() {
        resources(&LLAMA_8B, DType::BF16, arch);
    }
}

#[test]
fn no_kernel_of_any_dtype_spills() {
    for dtype in [DType::F16, DType::F32] {
        resources(&LLAMA_8B, dtype, "sm_80");
    }
    for arch in ["sm_80", "sm_90"] {
        resources(&DEMO, DType::BF16, arch);
    }
}

#[test]
fn kernels_hold_the_instructions_that_they_are_about() {
    let nodes = nodes(&LLAMA_8B, DType::BF16);
    for arch in ["sm_80", "sm_90"] {
        let code = compile(&nodes, arch);
        let mut wrong = String::new();
        for node in &nodes {
            for stage in &node.launches.stages {
                let (_, made) = code.iter().find(|(source, _)| *source == stage.source).unwrap();
                let kernels = sass::disassemble(&made.cubin).unwrap();
                let kernel = &kernels[stage.entry];
                assert!(
                    sass::count(kernel, "EXIT") > 0 && kernel.len() > 16,
                    "{}: {kernel:?}",
                    stage.source.name
                );
                let wants = node.wants.iter().filter(|(entry, _)| *entry == stage.entry);
                for (_, opcode) in wants.filter(|(_, opcode)| sass::count(kernel, opcode) == 0) {
                    wrong += &format!("{arch} {}/{}: no {opcode}\n", stage.source.name, stage.entry);
                }
                // Local memory is what spills and indexed arrays become.
                for opcode in ["LDL", "STL"].iter().filter(|opcode| sass::count(kernel, opcode) > 0) {
                    wrong += &format!("{arch} {}/{}: {opcode}\n", stage.source.name, stage.entry);
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }
}
