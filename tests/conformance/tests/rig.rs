//! The rig itself: conditions, grids, arguments, workspaces, and what its errors say.

use lathe_conformance::{Operands, Rig};
use lathe_device::{Arg, Extent, StepTable, Symbol, Symbols, When};
use lathe_kernels::cuda::{Cost, Launches, Source, Stage, Workspace};

/// Leaves the row's number plus an offset in the workspace; the second kernel moves it to the output.
const TEXT: &str = r#"
extern "C" __global__ void fill(float* work, const int* tokens, float offset, unsigned rows) {
    if (threadIdx.x == 0) work[2 * blockIdx.x] = tokens[blockIdx.x] + offset;
}
extern "C" __global__ void move(float* out, const float* work) {
    if (threadIdx.x == 0) out[blockIdx.x] = work[STRIDE * blockIdx.x];
}
"#;

fn stage(entry: &'static str, stride: u32, when: When, args: Vec<Arg>) -> Stage {
    Stage {
        source: Source::new("rows", TEXT, vec![("STRIDE", stride.to_string())]),
        entry,
        when,
        grid: [Extent::per(Symbol::Tokens, 1, 1), Extent::fixed(1), Extent::fixed(1)],
        block: 32,
        shared_bytes: 0,
        dependent: false,
        args,
        cost: Cost::default(),
    }
}

fn launches(stride: u32) -> Launches {
    let fill =
        vec![Arg::Output(1), Arg::Table(StepTable::Tokens), Arg::F32(0.5), Arg::Symbol(Symbol::Tokens)];
    let give = vec![Arg::Output(0), Arg::Output(1)];
    Launches {
        stages: vec![
            stage("fill", stride, When::Always, fill),
            stage("move", stride, When::Range { symbol: Symbol::Tokens, min: 1, max: 8 }, give.clone()),
            stage("move", stride, When::Range { symbol: Symbol::Tokens, min: 9, max: 99 }, give),
        ],
        workspaces: vec![Workspace { symbol: Symbol::Tokens, floats: 2 }],
    }
}

const STEP: Symbols = Symbols { tokens: 3, sequences: 1, rows: 1, decode: false, sm_count: 4 };

#[test]
fn a_node_runs_as_it_was_planned() {
    for check in [false, true] {
        let mut rig = Rig::emulator(check).unwrap();
        let out = rig.empty("out", 12).unwrap();
        let tokens = rig.i32s("tokens", &[7, 8, 9]).unwrap();
        let operands =
            Operands { inputs: vec![], outputs: vec![out], tables: vec![(StepTable::Tokens, tokens)] };
        let free = rig.driver().free_bytes().unwrap();
        rig.run(&launches(2), STEP, &operands).unwrap();
        assert_eq!(rig.read_f32(out, 3).unwrap(), [7.5, 8.5, 9.5]);
        assert_eq!(rig.launched(), ["rows/fill", "rows/move"]);
        assert_eq!(rig.driver().free_bytes().unwrap(), free, "workspaces are given back");
    }
}

#[test]
fn errors_name_what_is_missing() {
    let mut rig = Rig::emulator(true).unwrap();
    let out = rig.empty("out", 12).unwrap();
    let no_table = Operands { outputs: vec![out], ..Operands::default() };
    let error = format!("{:#}", rig.run(&launches(2), STEP, &no_table).unwrap_err());
    assert_eq!(error, "rows/fill: no table Tokens");
    let tokens = rig.i32s("tokens", &[7, 8, 9]).unwrap();
    let no_output = Operands { tables: vec![(StepTable::Tokens, tokens)], ..Operands::default() };
    let error = format!("{:#}", rig.run(&launches(2), STEP, &no_output).unwrap_err());
    assert_eq!(error, "rows/fill: output 1 of 1");
}

#[test]
fn faults_come_back_with_the_report() {
    let run = |check: bool, stride: u32| {
        let mut rig = Rig::emulator(check).unwrap();
        let out = rig.empty("out", 12).unwrap();
        let tokens = rig.i32s("tokens", &[7, 8, 9]).unwrap();
        let operands =
            Operands { inputs: vec![], outputs: vec![out], tables: vec![(StepTable::Tokens, tokens)] };
        let ran = rig.run(&launches(stride), STEP, &operands);
        ran.and_then(|()| rig.read_f32(out, 3)).map_err(|error| format!("{error:#}"))
    };
    // The workspace has six floats.
    for check in [false, true] {
        let error = run(check, 40).unwrap_err();
        assert!(error.contains("rows/move") && error.contains("workspace 0"), "{error}");
        assert!(error.contains("rows.cu:6"), "{error}");
    }
    // The odd ones are never written: NaN where nothing checks, a finding where something does.
    assert!(run(false, 1).unwrap()[1].is_nan());
    let error = run(true, 1).unwrap_err();
    assert!(error.contains("out"), "{error}");
}
