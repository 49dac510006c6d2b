//! Device launches of a program: that a device can be asked for them, and that they name what is there.

use lathe_numerics::DType;

use super::code::Entries;
use super::order;
use super::{Parts, VerifyError};
use crate::schema::{
    Arg, DeviceLaunch, Expr, Extent, Launch, Layout, Operand, Place, Program, StepSymbol, Target, When,
};

/// Threads of a block, at most.
const MAX_BLOCK: u32 = 1024;
/// Threads that run together.
const WARP: u32 = 32;
/// Shared memory of a block, static and dynamic, at most: 227 KiB of the 228 KiB of a multiprocessor.
const MAX_SHARED: u64 = 227 << 10;
/// Registers of a multiprocessor, which a block must fit into.
const MAX_REGISTERS: u64 = 1 << 16;
/// Registers of a thread are given in this many.
const REGISTER_STEP: u64 = 8;
/// Blocks in x, y and z, at most.
const MAX_GRID: [u32; 3] = [(1 << 31) - 1, 65535, 65535];
/// Blocks that one multiprocessor holds are 32 at most; twice as many still make sense.
const MAX_PER_SM: u32 = 64;
/// More multiprocessors than any device has: below it grid arithmetic must not overflow.
const MAX_SMS: u32 = 1 << 16;
/// Arguments of a kernel, at most: 4 KiB of 8 bytes each hold more.
const MAX_ARGS: usize = 128;

/// What launches may name.
enum Names<'a> {
    /// The operands of a node.
    Node(&'a Launch),
    /// The logits as input 0.
    Sampling,
}

/// All device launches of a program whose symbols, operands and modules were checked.
pub(super) fn check(p: &Program, parts: &Parts<'_>, entries: &Entries<'_>) -> Result<(), VerifyError> {
    let on_cpu = |at, what| Err(VerifyError::DeviceOnCpu { at, what });
    for (i, l) in p.launches.iter().enumerate() {
        let at = || order::place(p, i, l);
        if p.target == Target::Cpu {
            if !l.device.is_empty() {
                return on_cpu(at(), "device launches");
            }
            continue;
        }
        if l.device.is_empty() {
            return Err(VerifyError::NoDeviceLaunch { at: at() });
        }
        covered(p, &l.device, &at)?;
        gemm_layout(l, parts, &at)?;
        workspaces(p, l, &at)?;
        for (j, d) in l.device.iter().enumerate() {
            let at = || format!("{} device launch {j} {}", at(), d.entry);
            launch(p, d, &Names::Node(l), entries, &at)?;
        }
    }
    if p.target == Target::Cpu && !p.sampling.is_empty() {
        return on_cpu(format!("program {}", p.name), "sampling launches");
    }
    if !p.sampling.is_empty() {
        covered(p, &p.sampling, &|| format!("program {}: sampling", p.name))?;
    }
    for (i, d) in p.sampling.iter().enumerate() {
        launch(p, d, &Names::Sampling, entries, &|| {
            format!("program {}: sampling launch {i} {}", p.name, d.entry)
        })?;
    }
    Ok(())
}

fn launch(
    p: &Program,
    d: &DeviceLaunch,
    names: &Names<'_>,
    entries: &Entries<'_>,
    at: &dyn Fn() -> String,
) -> Result<(), VerifyError> {
    if d.module as usize >= p.modules.len() {
        return Err(VerifyError::LaunchModule { at: at(), module: d.module });
    }
    let Some(entry) = entries.get(&(d.module, d.entry.as_str())) else {
        return Err(VerifyError::LaunchEntry { at: at(), module: d.module });
    };
    if d.block == 0 || d.block > MAX_BLOCK || !d.block.is_multiple_of(WARP) {
        return Err(VerifyError::LaunchBlock { at: at(), block: d.block });
    }
    let shared = u64::from(d.shared_bytes) + u64::from(entry.shared_bytes);
    if shared > MAX_SHARED {
        return Err(VerifyError::LaunchShared { at: at(), bytes: shared, most: MAX_SHARED });
    }
    let registers = u64::from(entry.registers).next_multiple_of(REGISTER_STEP) * u64::from(d.block);
    if registers > MAX_REGISTERS {
        return Err(VerifyError::LaunchRegisters { at: at(), registers, most: MAX_REGISTERS });
    }
    grid(p, d, at)?;
    if d.args.len() > MAX_ARGS {
        return Err(VerifyError::ArgCount { at: at(), count: d.args.len(), most: MAX_ARGS });
    }
    for arg in &d.args {
        let (way, index, there) = match (arg, names) {
            (Arg::Input(i), Names::Node(l)) => ("input", *i, l.inputs.len()),
            (Arg::Output(i), Names::Node(l)) => ("output", *i, l.outputs.len()),
            (Arg::Input(i), Names::Sampling) => ("input", *i, 1),
            (Arg::Output(i), Names::Sampling) => ("output", *i, 0),
            (Arg::Table(_) | Arg::Symbol(_) | Arg::U32(_) | Arg::U64(_) | Arg::F32(_), _) => continue,
        };
        if index as usize >= there {
            return Err(VerifyError::ArgOperand { at: at(), way, index });
        }
    }
    Ok(())
}

/// Extents only grow with the symbols, so the largest grid is that of the bounds.
fn grid(p: &Program, d: &DeviceLaunch, at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    for (extent, limit) in d.grid.iter().zip(MAX_GRID) {
        match extent {
            Extent::Sum { terms, .. } => {
                if terms.iter().any(|t| t.per == 0) {
                    return Err(VerifyError::GridDivisor { at: at() });
                }
            }
            Extent::Fill { per_sm, most } => {
                if *per_sm == 0 || *per_sm > MAX_PER_SM || *most == 0 || *most > limit {
                    return Err(VerifyError::GridFill { at: at(), per_sm: *per_sm, most: *most });
                }
            }
        }
    }
    let max = |symbol| p.symbols[symbol as usize].max as u32;
    let symbols = lathe_device::Symbols {
        tokens: max(StepSymbol::Tokens),
        sequences: max(StepSymbol::Sequences),
        rows: max(StepSymbol::Rows),
        decode: false,
        sm_count: MAX_SMS,
    };
    match d.grid(&symbols) {
        Some(blocks) if blocks.iter().zip(MAX_GRID).all(|(n, most)| *n <= most) => Ok(()),
        _ => Err(VerifyError::GridSize { at: at() }),
    }
}

/// In every step that has rows one of the launches runs: one that always does, or the ranges of one symbol leave out
/// none of its values. The others may then come on top.
fn covered(p: &Program, launches: &[DeviceLaunch], at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    if launches.iter().any(|d| d.when == When::Always) {
        return Ok(());
    }
    let all = [StepSymbol::Tokens, StepSymbol::Sequences, StepSymbol::Rows].into_iter().any(|symbol| {
        let bounds = &p.symbols[symbol as usize];
        let mut ranges: Vec<(u64, u64)> = launches
            .iter()
            .filter_map(|d| match d.when {
                When::Range { symbol: of, min, max } if of == symbol => {
                    Some((u64::from(min), u64::from(max)))
                }
                When::Range { .. } | When::Always | When::Mixed => None,
            })
            .collect();
        ranges.sort_unstable();
        let mut next = bounds.min.max(1);
        for (min, max) in ranges {
            if min <= next && next <= max {
                next = max + 1;
            }
        }
        next > bounds.max
    });
    if all { Ok(()) } else { Err(VerifyError::StepsWithoutLaunch { at: at() }) }
}

/// A GEMM's kernel follows from its weight's dtype and takes the padding of its layout for granted.
fn gemm_layout(l: &Launch, parts: &Parts<'_>, at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    let at_input = match l.kernel.as_str() {
        "gemm" | "linear_add" => 1,
        "norm_linear" | "norm_linear_glu" | "norm_linear_silu_mul" | "norm_linear_rope_append" => 2,
        "expert_gemm" => 3,
        _ => return Ok(()),
    };
    let Some(Place::Weight(index)) = l.inputs.get(at_input).map(|o| o.place) else { return Ok(()) };
    let weight = &parts.weights[index as usize];
    let want = if weight.dtype.size() == 2 { Layout::Mma16 } else { Layout::RowMajor };
    if weight.layout != want {
        let (weight, layout) = (weight.name.clone(), weight.layout.name());
        return Err(VerifyError::WeightLayout { at: at(), weight, layout });
    }
    Ok(())
}

/// Results of the kernels in LAUNCHES.md; outputs after them are workspace. `None` for others.
pub(super) fn results(kernel: &str) -> Option<usize> {
    match kernel {
        "unary" | "binary" | "layer_norm" | "rope" => Some(1),
        "kv_append" => Some(0),
        "embedding" | "rms_norm" | "gemm" | "rope_append" | "attention" | "gather_rows" => Some(1),
        "linear_add" | "norm_linear" | "norm_linear_glu" | "norm_linear_rope_append" => Some(1),
        // What plans of format 1.1 call `norm_linear_glu`.
        "norm_linear_silu_mul" => Some(1),
        "expert_gemm" | "combine" | "combine_add" => Some(1),
        "add_rms_norm" => Some(2),
        "top_k" => Some(4),
        _ => None,
    }
}

/// Workspace is all of an f32 buffer with one row per unit of a symbol.
fn workspaces(p: &Program, l: &Launch, at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    let extra = results(&l.kernel).map_or(&[][..], |own| l.outputs.get(own..).unwrap_or_default());
    for (i, o) in extra.iter().enumerate() {
        let whole = match o.place {
            Place::Buffer(index) => *o == Operand::buffer(index, &p.buffers[index as usize]),
            Place::Weight(_) | Place::Input(_) | Place::Cache { .. } => false,
        };
        let per_symbol = matches!(&o.rows, Expr { constant: 0, terms } if matches!(terms[..], [(_, 1)]));
        if !whole || !per_symbol || o.dtype != DType::F32 {
            return Err(VerifyError::WorkspaceShape { at: format!("{} workspace {i}", at()) });
        }
    }
    Ok(())
}
