//! The device look-up: both layouts, every dtype, ids that the step before drew.

use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{StepTable, Symbols};
use lathe_kernels::embedding::cuda::{Problem, TableLayout, launches};
use lathe_numerics::{DType, philox};

const VOCAB: usize = 37;
const TOKENS: [i32; 8] = [0, 36, -1, 17, -3, -2, 16, 17];
const DRAWN: [i32; 3] = [31, -1, 5];

#[test]
fn rows_are_copied_whatever_the_layout() {
    let mut rig = Rig::chosen(true).unwrap();
    let tokens = rig.i32s("tokens", &TOKENS).unwrap();
    let drawn = rig.i32s("drawn", &DRAWN).unwrap();
    let step = Symbols { tokens: TOKENS.len() as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 };
    for (dtype, layout) in [
        (DType::BF16, TableLayout::RowMajor),
        (DType::F32, TableLayout::RowMajor),
        (DType::BF16, TableLayout::Mma16),
        (DType::F16, TableLayout::Mma16),
    ] {
        for h in [1, 8, 31, 64, 611, 612, 4096] {
            let table: Vec<f32> =
                (0..VOCAB * h).map(|i| dtype.round(philox::uniform(5, 0, i as u32) - 0.5)).collect();
            let plain = bytes::of(dtype, &table);
            let row_bytes = h * dtype.size();
            let stored = match layout {
                TableLayout::RowMajor => plain.clone(),
                TableLayout::Mma16 => {
                    bytes::in_fragments(&plain.chunks(row_bytes).collect::<Vec<_>>(), h).unwrap()
                }
            };
            let table = rig.buffer("table", &stored).unwrap();
            let out = rig.empty("out", TOKENS.len() * row_bytes).unwrap();
            let launches = launches(&Problem { vocab: VOCAB, h, dtype, layout }).unwrap();
            let operands = Operands {
                inputs: vec![tokens, table],
                outputs: vec![out],
                tables: vec![(StepTable::Drawn, drawn)],
            };
            rig.run(&launches, step, &operands).unwrap();
            let got = rig.read(out, TOKENS.len() * row_bytes).unwrap();
            // -1 is row 0 of the step before, -3 row 2; row 1 drew nothing.
            let ids = [0, 36, 31, 17, 5, 0, 16, 17];
            for (r, id) in ids.into_iter().enumerate() {
                let (got, want) = (&got[r * row_bytes..][..row_bytes], &plain[id * row_bytes..][..row_bytes]);
                assert_eq!(got, want, "{dtype} {layout:?} h {h} row {r}");
            }
        }
    }
}
