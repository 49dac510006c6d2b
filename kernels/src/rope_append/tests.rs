//! `rope_append` against its reference, and its bits against themselves: rows, chunks, splits, threads.

use lathe_numerics::DType;

use super::{
    KvAppend, KvAppendArgs, NormOver, QkNorm, Rope, RopeAppend, RopeAppendArgs, RopeArgs, reference,
};
use crate::paged::{Batch, KvCache, KvLayout, Sequence};
use crate::rms_norm::reference::rms_norm;
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, tolerance};

const MAX_POS: usize = 64;
const EPS: f32 = 1e-5;

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
    go_normed((path, split), act, (kv, hd), rotary, None)
}

/// Weights of the query's and the key's norm for heads of `hd`.
fn norms(over: NormOver, hd: usize) -> (Vec<f32>, Vec<f32>) {
    let (q, k) = match over {
        NormOver::Head => (hd, hd),
        NormOver::Row => (3 * hd, 2 * hd),
    };
    (values(8, q, DType::F32), values(9, k, DType::F32))
}

fn go_normed(
    (path, split): (IsaPath, Split),
    act: DType,
    (kv, hd): (DType, usize),
    rotary: usize,
    over: Option<NormOver>,
) -> (Buffer, KvLayout, Vec<u8>) {
    let (q_norm, k_norm) = norms(over.unwrap_or(NormOver::Head), hd);
    let norm =
        over.map(|over| QkNorm { over, q: q_norm.as_slice().into(), k: k_norm.as_slice().into(), eps: EPS });
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
        norm,
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
fn heads_or_rows_are_normalised_before_they_rotate() {
    for over in [NormOver::Head, NormOver::Row] {
        for (hd, rotary) in [(16, 16), (20, 8), (8, 0)] {
            let (q_norm, k_norm) = norms(over, hd);
            let (qkv, table) = (values(4, 9 * 7 * hd, DType::F32), table(rotary));
            let positions = [5, 6, 7, 30, 31, 32, 33, 34, 35];
            let (mut want_q, mut want_k) = (vec![], vec![]);
            for (row, position) in qkv.chunks(7 * hd).zip(positions) {
                let turns = &table[position * rotary..(position + 1) * rotary];
                let part = |x: &[f32], w: &[f32], out: &mut Vec<f32>| {
                    for x in x.chunks(w.len()) {
                        for head in rms_norm(x, w, EPS).chunks(hd) {
                            out.extend(reference::rope(head, turns));
                        }
                    }
                };
                part(&row[..3 * hd], &q_norm, &mut want_q);
                part(&row[3 * hd..5 * hd], &k_norm, &mut want_k);
            }
            let first = go_normed(
                (IsaPath::detect(), Split::Whole),
                DType::BF16,
                (DType::F32, hd),
                rotary,
                Some(over),
            );
            tolerance::check(DType::BF16, &want_q, &first.0.f32()).unwrap();
            let slots = [(2, 5), (2, 6), (2, 7), (3, 14), (3, 15), (1, 0), (1, 1), (1, 2), (1, 3)];
            let layout = first.1;
            let got_k: Vec<f32> = slots
                .iter()
                .flat_map(|&(block, at)| (0..2 * hd).map(move |i| (block, at, i / hd, i % hd)))
                .map(|(block, at, h, d)| {
                    element(DType::F32, &first.2, block * layout.block_bytes() / 4 + layout.k_index(h, at, d))
                })
                .collect();
            tolerance::check(DType::F32, &want_k, &got_k).unwrap();
            for (path, split) in IsaPath::all().flat_map(|p| SPLITS.map(|s| (p, s))) {
                let again = go_normed((path, split), DType::BF16, (DType::F32, hd), rotary, Some(over));
                assert_eq!((first.0.bits(), &first.2), (again.0.bits(), &again.2));
            }
        }
    }
}

#[test]
fn the_parts_have_the_bits_of_the_whole() {
    let (hd, rotary) = (20, 12);
    for (act, kv) in [(DType::BF16, DType::F16), (DType::F32, DType::BF16), (DType::F16, DType::F32)] {
        let (want_q, layout, want_cache) = go(IsaPath::detect(), act, kv, hd, rotary, Split::Whole);
        let (qkv, table) = (values(4, 9 * 7 * hd, DType::F32), table(rotary));
        let columns = |from: usize, to: usize| -> Vec<f32> {
            qkv.chunks(7 * hd).flat_map(|row| row[from * hd..to * hd].to_vec()).collect()
        };
        let (q, k, v) = (columns(0, 3), columns(3, 5), columns(5, 7));
        for (path, split) in IsaPath::all().flat_map(|p| SPLITS.map(|s| (p, s))) {
            let turn = |x: &[f32], heads: usize, dtype: DType| {
                let mut out = Buffer::zeros(dtype, 9 * heads * hd);
                let args = RopeArgs {
                    path,
                    x: x.into(),
                    positions: &[5, 6, 7, 30, 31, 32, 33, 34, 35],
                    table: table.as_slice().into(),
                    max_pos: MAX_POS,
                    rotary_dim: rotary,
                    heads,
                    head_dim: hd,
                    out: out.dst(),
                    rows: 9,
                };
                run(&Rope::new(args).unwrap(), split);
                out
            };
            assert_eq!(want_q.bits(), turn(&q, 3, act).bits());
            let seqs = [
                Sequence { q_start: 0, q_len: 3, kv_len: 8, blocks_start: 0 },
                Sequence { q_start: 3, q_len: 6, kv_len: 36, blocks_start: 1 },
            ];
            let mut words = vec![0u64; 4 * layout.block_bytes() / 8];
            // SAFETY: the vector's own bytes.
            let memory =
                unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), words.len() * 8) };
            let k = turn(&k, 2, DType::F32);
            let args = KvAppendArgs {
                path,
                k: k.src(),
                v: v.as_slice().into(),
                cache: KvCache::new(layout, memory, 0, layout.block_bytes(), 4).unwrap(),
                batch: Batch::new(&seqs, &[2, 0, 3, 1], 16, 4).unwrap(),
            };
            run(&KvAppend::new(args).unwrap(), split);
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert!(want_cache == bytes, "{path:?} {split:?}");
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
            norm: None,
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
