//! `gather_rows` against the formula, and its bits across splits.

use super::{GatherRows, GatherRowsArgs};
use crate::testing::{Buffer, DTYPES, SPLITS, run, values};

#[test]
fn rows_are_copied() {
    for dtype in DTYPES {
        let x = Buffer::new(dtype, &values(1, 9 * 13, dtype));
        let rows = [8, 0, 3, 3, 7];
        let all = x.f32();
        let want: Vec<f32> = rows.iter().flat_map(|r| all[*r as usize * 13..][..11].to_vec()).collect();
        for split in SPLITS {
            let mut out = Buffer::zeros(dtype, 5 * 11);
            let args =
                GatherRowsArgs { x: x.src(), x_stride: 13, n: 9, cols: 11, rows: &rows, out: out.dst() };
            run(&GatherRows::new(args).unwrap(), split);
            assert_eq!(want, out.f32());
        }
    }
}

#[test]
fn indices_and_lengths_are_checked() {
    let x = vec![0f32; 12];
    let mut out = vec![0f32; 6];
    let mut build = |rows: &[u32], n: usize, cols: usize| {
        let (x, out) = (x.as_slice().into(), out.as_mut_slice().into());
        GatherRows::new(GatherRowsArgs { x, x_stride: 3, n, cols, rows, out }).is_ok()
    };
    assert!(build(&[3, 0], 4, 3));
    assert!(!build(&[4], 4, 3));
    assert!(!build(&[0; 3], 4, 3));
    assert!(!build(&[0], 5, 3));
    assert!(!build(&[0], 4, 4));
    assert!(!build(&[0], 0, 3));
}
