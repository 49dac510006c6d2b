//! `embedding` against the formula, and its bits across splits.

use super::{Embedding, EmbeddingArgs, TableLayout};
use crate::IsaPath;
use crate::gemm::tests::{Packed, plain_order};
use crate::testing::{Buffer, DTYPES, SPLITS, run, values};

#[test]
fn both_layouts_give_the_stored_row() {
    for path in IsaPath::all() {
        for dtype in DTYPES {
            for (vocab, h) in [(1, 1), (40, 33), (50, 64)] {
                let table = Buffer::new(dtype, &values(1, vocab * h, dtype));
                let packed = Packed::new(&table, h, &plain_order(vocab));
                let ids: Vec<u32> = (0..23).map(|i| (i * 17 % vocab) as u32).collect();
                let rows = table.f32();
                let want: Vec<f32> = ids.iter().flat_map(|i| rows[*i as usize * h..][..h].to_vec()).collect();
                for (table, layout) in
                    [(table.src(), TableLayout::RowMajor), (packed.src(), TableLayout::Panel16)]
                {
                    for split in SPLITS {
                        let mut out = Buffer::zeros(dtype, ids.len() * h);
                        let args = EmbeddingArgs { path, ids: &ids, table, layout, vocab, h, out: out.dst() };
                        run(&Embedding::new(args).unwrap(), split);
                        assert_eq!(want, out.f32());
                    }
                }
            }
        }
    }
}

#[test]
fn ids_and_lengths_are_checked() {
    let table = vec![0f32; 64];
    let mut out = vec![0f32; 8];
    let mut build = |ids: &[u32], vocab: usize, h: usize, layout: TableLayout| {
        let (table, out) = (table.as_slice().into(), out.as_mut_slice().into());
        Embedding::new(EmbeddingArgs { path: IsaPath::detect(), ids, table, layout, vocab, h, out }).is_ok()
    };
    assert!(build(&[15, 0], 16, 4, TableLayout::RowMajor));
    assert!(build(&[15, 0], 16, 4, TableLayout::Panel16));
    assert!(!build(&[16], 16, 4, TableLayout::RowMajor));
    assert!(!build(&[u32::MAX], 16, 4, TableLayout::RowMajor));
    assert!(!build(&[0; 3], 16, 4, TableLayout::RowMajor));
    assert!(!build(&[0], 17, 4, TableLayout::RowMajor));
    assert!(!build(&[0], 17, 3, TableLayout::Panel16));
    assert!(!build(&[0], 0, 4, TableLayout::RowMajor));
    assert!(!build(&[0], usize::MAX, 4, TableLayout::Panel16));
}
