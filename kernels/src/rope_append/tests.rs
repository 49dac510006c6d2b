//! `rope_append` against its reference, and its bits against themselves: rows, chunks, splits, threads.

use lathe_numerics::DType;

use super::{RopeAppend, RopeAppendArgs, reference};
use crate::paged::{Batch, KvCache, KvLayout, Sequence};
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, tolerance};

const MAX_POS: usize = 64;

fn table(rotary: usize) -> Vec<f32> {
    (0..MAX_POS)
        .flat_map(|p| {
            let angle = move |i: usize| p as f64 * 100f64.powf(-2.0 * i as f64 / rotary as f64);
            let cos = (0..rotary / 2).map(move |i| angle(i).cos() as f32);
            cos.chain((0..rotary / 2).map(move |i| angle(i).sin() as f32))
        })
        .collect()
}

/// Runs two sequences (positions 5..8 and 30..36 of their own); returns q and the cache as f32 by layout index.
fn go(
    path: IsaPath,
    act: DType,
    kv: DType,
    hd: usize,
    rotary: usize,
    split: Split,
) -> (Buffer, KvLayout, Vec<u8>) {
    let layout = KvLayout::new(kv, 2, hd, 16).unwrap();
    let seqs = [
        Sequence { q_start: 0, q_len: 3, kv_len: 8, blocks_start: 0 },
        Sequence { q_start: 3, q_len: 6, kv_len: 36, blocks_start: 1 },
    ];
    let blocks = [2, 0, 3, 1];
    let batch = Batch::new(&seqs, &blocks, 16, 4).unwrap();
    let qkv = values(4, 9 * 7 * hd, DType::F32);
    let positions = [5, 6, 7, 30, 31, 32, 33, 34, 35];
    let table = table(rotary);
    let mut q = Buffer::zeros(act, 9 * 3 * hd);
    let mut words = vec![0u64; 4 * layout.block_bytes() / 8];
    // SAFETY: the vector's own bytes.
    let memory = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 8) };
    let args = RopeAppendArgs {
        path,
        qkv: qkv.as_slice().into(),
        qkv_stride: 7 * hd,
        positions: &positions,
        table: table.as_slice().into(),
        max_pos: MAX_POS,
        rotary_dim: rotary,
        heads: 3,
        q_out: q.dst(),
        cache: KvCache::new(layout, memory, 0, layout.block_bytes(), 4).unwrap(),
        batch,
    };
    run(&RopeAppend::new(args).unwrap(), split);
    let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    (q, layout, bytes)
}

fn element(dtype: DType, bytes: &[u8], i: usize) -> f32 {
    let b = &bytes[i * dtype.size()..(i + 1) * dtype.size()];
    match dtype {
        DType::F32 => f32::from_le_bytes(b.try_into().unwrap()),
        DType::F16 => half::f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
        _ => half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
    }
}

#[test]
fn queries_rotate_and_keys_land_in_their_slots() {
    for path in IsaPath::all() {
        for (act, kv) in
            DTYPES.into_iter().zip(DTYPES).chain([(DType::BF16, DType::F32), (DType::F32, DType::BF16)])
        {
            for (hd, rotary) in [(16, 16), (18, 18), (64, 64), (20, 8), (8, 0)] {
                let (q, layout, cache) = go(path, act, kv, hd, rotary, Split::Whole);
                let (qkv, table) = (values(4, 9 * 7 * hd, DType::F32), table(rotary));
                let slots = [(2, 5), (2, 6), (2, 7), (3, 14), (3, 15), (1, 0), (1, 1), (1, 2), (1, 3)];
                let positions = [5, 6, 7, 30, 31, 32, 33, 34, 35];
                let (mut want_q, mut want_kv, mut got_kv, mut seen) = (vec![], vec![], vec![], vec![]);
                for row in 0..9 {
                    let t = &table[positions[row] * rotary..(positions[row] + 1) * rotary];
                    let head = |i: usize| &qkv[(row * 7 + i) * hd..(row * 7 + i + 1) * hd];
                    (0..3).for_each(|h| want_q.extend(reference::rope(head(h), t)));
                    for h in 0..2 {
                        want_kv.extend(reference::rope(head(3 + h), t));
                        want_kv.extend_from_slice(head(5 + h));
                        let (block, at) = slots[row];
                        let base = block * layout.block_bytes() / kv.size();
                        for index in (0..hd)
                            .map(|d| layout.k_index(h, at, d))
                            .chain((0..hd).map(|d| layout.v_index(h, at, d)))
                        {
                            got_kv.push(element(kv, &cache, base + index));
                            seen.push(base + index);
                        }
                    }
                }
                tolerance::check(act, &want_q, &q.f32()).unwrap();
                tolerance::check(kv, &want_kv, &got_kv).unwrap();
                // Nothing else was written.
                let all = (0..cache.len() / kv.size()).filter(|i| !seen.contains(i));
                all.for_each(|i| assert_eq!(element(kv, &cache, i), 0.0));
            }
        }
    }
}

#[test]
fn splits_change_no_bit_and_paths_agree() {
    let want = go(IsaPath::detect(), DType::BF16, DType::F16, 20, 12, Split::Whole);
    for path in IsaPath::all() {
        for split in SPLITS {
            let got = go(path, DType::BF16, DType::F16, 20, 12, split);
            assert_eq!((want.0.bits(), &want.2), (got.0.bits(), &got.2));
        }
    }
}

#[test]
fn wrong_operands_are_refused() {
    let layout = KvLayout::new(DType::F32, 1, 4, 16).unwrap();
    let seqs = [Sequence { q_start: 0, q_len: 2, kv_len: 2, blocks_start: 0 }];
    let batch = Batch::new(&seqs, &[0], 16, 1).unwrap();
    let mut memory = vec![0f32; layout.block_bytes() / 4];
    let mut build = |qkv: usize, position: u32, table: usize, rotary: usize, q: usize| {
        let (qkv, table, mut q) = (vec![0f32; qkv], vec![0f32; table], vec![0f32; q]);
        // SAFETY: the vector's own bytes.
        let cache =
            unsafe { KvCache::raw(layout, memory.as_mut_ptr().cast(), layout.block_bytes(), 0, 512, 1) };
        RopeAppend::new(RopeAppendArgs {
            path: IsaPath::detect(),
            qkv: qkv.as_slice().into(),
            qkv_stride: 16,
            positions: &[0, position],
            table: table.as_slice().into(),
            max_pos: 8,
            rotary_dim: rotary,
            heads: 2,
            q_out: q.as_mut_slice().into(),
            cache: cache.unwrap(),
            batch,
        })
        .is_ok()
    };
    assert!(build(32, 7, 32, 4, 16));
    assert!(!build(31, 7, 32, 4, 16));
    assert!(!build(32, 8, 32, 4, 16));
    assert!(!build(32, 7, 31, 4, 16));
    assert!(!build(32, 7, 64, 6, 16));
    assert!(!build(32, 7, 64, 3, 16));
    assert!(!build(32, 7, 32, 4, 15));
}
