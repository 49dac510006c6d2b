//! The device gather: rows of every alignment, repeated and out of order.

use lathe_conformance::{Operands, Rig};
use lathe_device::Symbols;
use lathe_kernels::gather_rows::cuda::{Problem, launches};
use lathe_numerics::{DType, philox};

#[test]
fn rows_are_copied() {
    let mut rig = Rig::chosen(true).unwrap();
    let picked = [4, 0, 2, 2, 6];
    let rows = rig.i32s("rows", &picked).unwrap();
    let step = Symbols { tokens: 7, sequences: 1, rows: picked.len() as u32, decode: false, sm_count: 4 };
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for cols in [1, 2, 31, 64, 611, 612, 4096] {
            let bytes = cols * dtype.size();
            let x: Vec<u8> =
                (0..7 * bytes).map(|i| (philox::uniform(3, 1, i as u32) * 256.0) as u8).collect();
            let input = rig.buffer("x", &x).unwrap();
            let out = rig.empty("out", picked.len() * bytes).unwrap();
            let operands = Operands { inputs: vec![input, rows], outputs: vec![out], tables: vec![] };
            rig.run(&launches(&Problem { cols, dtype }).unwrap(), step, &operands).unwrap();
            let got = rig.read(out, picked.len() * bytes).unwrap();
            for (got, row) in got.chunks(bytes).zip(picked) {
                assert_eq!(got, &x[row as usize * bytes..][..bytes], "{dtype} cols {cols}");
            }
        }
    }
}
