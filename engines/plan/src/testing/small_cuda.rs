//! The small plan for a CUDA device: the same nodes, each with launches of every kind. Its code does nothing.

use lathe_device::{Arg, DeviceLaunch, Extent, StepTable, Symbol as StepSymbol, Term, When};
use lathe_numerics::DType;

use super::small::{assembled, small_tables, small_weights};
use crate::code::CodeWriter;
use crate::error::PlanError;
use crate::operand::{ROWS, SEQUENCES};
use crate::schema::{Buffer, Entry, Expr, Launch, Layout, Module, Operand, Place, Program, Target, Weight};
use crate::writer::{Tables, WeightSpec};

/// Entries of the PTX, all without parameters.
const PTX: &str = "\
.version 8.0
.target sm_80
.address_size 64

.visible .entry rows()
{
	ret;
}

.visible .entry tiles()
{
	ret;
}
";

const ROWS_MODULE: u32 = 0;
const TILES_MODULE: u32 = 1;
const SAMPLER_MODULE: u32 = 2;

/// The weights of `small_cuda_tables`, in order.
pub fn small_cuda_weights() -> Vec<WeightSpec> {
    let layout = |layout| if layout == Layout::Panel16 { Layout::Mma16 } else { layout };
    small_weights().into_iter().map(|w| WeightSpec { layout: layout(w.layout), ..w }).collect()
}

/// The tables of the small CUDA plan; `weights` are those of a writer that was given `small_cuda_weights`.
pub fn small_cuda_tables(weights: &[Weight]) -> Tables {
    let mut tables = small_tables(weights);
    let mut code = CodeWriter::default();
    let ptx = code.add(PTX.as_bytes());
    let mut module = |name: &str, cubin: Option<&[u8]>, entry: &str| Module {
        name: name.into(),
        cubin: cubin.map(|bytes| code.add(bytes)),
        ptx: Some(ptx),
        entries: vec![Entry {
            name: entry.into(),
            registers: 40,
            spill_bytes: 0,
            stack_bytes: 16,
            shared_bytes: 1024,
        }],
    };
    let modules = vec![
        module("rows", Some(b"\x7fELF rows of the small plan"), "rows"),
        module("tiles N=32", Some(&[0x7f; 100]), "tiles"),
        module("sampler", None, "rows"),
    ];
    let program = &mut tables.programs[0];
    program.target = Target::Cuda { arch: "sm_80".into() };
    program.scratch_bytes = 0;
    program.modules = modules;
    for launch in &mut program.launches {
        launch.device = stages(launch);
    }
    workspace(program);
    let per_row = [Extent::per(StepSymbol::Rows, 1, 1), Extent::fixed(1), Extent::fixed(1)];
    let tables_of_draw = [StepTable::Scores, StepTable::Counts, StepTable::DrawParams, StepTable::Answers];
    program.sampling = vec![DeviceLaunch {
        args: [Arg::Input(0), Arg::U32(40)].into_iter().chain(tables_of_draw.map(Arg::Table)).collect(),
        ..launch(SAMPLER_MODULE, "rows", When::Always, per_row)
    }];
    tables.code = code.finish();
    tables
}

fn launch(module: u32, entry: &str, when: When, grid: [Extent; 3]) -> DeviceLaunch {
    DeviceLaunch {
        module,
        entry: entry.into(),
        when,
        grid,
        block: 128,
        shared_bytes: 0,
        dependent: false,
        args: vec![],
    }
}

/// GEMMs have an alternative per number of rows, attention a second stage, the rest one launch.
fn stages(l: &Launch) -> Vec<DeviceLaunch> {
    let inputs =
        (0..l.inputs.len() as u32).filter(|i| !matches!(l.inputs[*i as usize].place, Place::Input(_)));
    let mut args: Vec<Arg> = inputs.map(Arg::Input).collect();
    args.extend((0..l.outputs.len() as u32).map(Arg::Output));
    let of_rows = l.outputs[0].rows == Expr::symbol(ROWS);
    let symbol = if of_rows { StepSymbol::Rows } else { StepSymbol::Tokens };
    let per_row = || [Extent::per(symbol, 1, 1), Extent::fixed(1), Extent::fixed(1)];
    args.push(Arg::Symbol(symbol));
    let rows = |when| launch(ROWS_MODULE, "rows", when, per_row());
    match l.kernel.as_str() {
        "gemm" => [(1, 2), (3, 8)]
            .map(|(min, max)| DeviceLaunch {
                shared_bytes: 49152,
                dependent: true,
                args: args.clone(),
                ..launch(
                    TILES_MODULE,
                    "tiles",
                    When::Range { symbol, min, max },
                    [Extent::fixed(2), Extent::per(symbol, 8, 1), Extent::Fill { per_sm: 2, most: 8 }],
                )
            })
            .into(),
        "attention" => {
            let splits = Extent::Sum {
                constant: 1,
                terms: vec![Term { symbol: StepSymbol::Sequences, per: 2, times: 3 }],
            };
            let grid = [splits, Extent::fixed(2), Extent::fixed(1)];
            args.extend([Arg::Table(StepTable::Sequences), Arg::Table(StepTable::Blocks), Arg::F32(0.25)]);
            let first = launch(ROWS_MODULE, "rows", When::Always, grid);
            let second = DeviceLaunch { args: vec![Arg::Output(1), Arg::U64(64)], ..rows(When::Mixed) };
            vec![DeviceLaunch { args, ..first }, second]
        }
        "embedding" => {
            args.extend([Arg::Table(StepTable::Tokens), Arg::Table(StepTable::Drawn)]);
            vec![DeviceLaunch { args, ..rows(When::Always) }]
        }
        _ => vec![DeviceLaunch { args, ..rows(When::Always) }],
    }
}

/// Attention's second output, behind all other buffers.
fn workspace(program: &mut Program) {
    let buffer = Buffer {
        name: "a.parts".into(),
        dtype: DType::F32,
        rows: Expr::symbol(SEQUENCES),
        cols: 64,
        offset: program.arena_bytes,
    };
    program.arena_bytes += 4 * 64 * 4;
    let operand = Operand::buffer(program.buffers.len() as u32, &buffer);
    program.buffers.push(buffer);
    for l in &mut program.launches {
        if l.kernel == "attention" {
            l.outputs.push(operand.clone());
        }
    }
}

/// The bytes of the small CUDA plan.
pub fn small_cuda_plan() -> Result<Vec<u8>, PlanError> {
    assembled(small_cuda_weights(), small_cuda_tables)
}
