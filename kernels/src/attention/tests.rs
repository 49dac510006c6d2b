//! `attention` against its reference, and its bits against themselves: rows, chunks, splits, threads.

use lathe_numerics::DType;

use super::{Attention, AttentionArgs, reference};
use crate::paged::{Batch, KvCache, KvLayout, Sequence};
use crate::rope_append::{RopeAppend, RopeAppendArgs};
use crate::testing::{Buffer, DTYPES, SPLITS, Split, run, values};
use crate::{IsaPath, tolerance};

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block: usize,
    act: DType,
    kv: DType,
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
}

const SHAPES: &[(usize, usize, usize, usize)] = &[
    (1, 1, 2, 16),
    (4, 2, 16, 32),
    (8, 2, 64, 32),
    (3, 3, 18, 128),
    (16, 1, 40, 64),
    (6, 2, 128, 32),
    (50, 1, 24, 16),
];

/// All dtype pairs for two shapes, three pairs for the rest.
fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.iter().enumerate().flat_map(|(i, &(heads, kv_heads, head_dim, block))| {
        let pairs = DTYPES.into_iter().flat_map(|act| DTYPES.into_iter().map(move |kv| (act, kv)));
        let few = [(DType::BF16, DType::BF16), (DType::BF16, DType::F16), (DType::F32, DType::F32)];
        pairs.filter(move |pair| matches!(i, 1 | 3) || few.contains(pair)).map(move |(act, kv)| Shape {
            heads,
            kv_heads,
            head_dim,
            block,
            act,
            kv,
            window: None,
            softcap: None,
            sinks: false,
        })
    })
}

/// Windows at and beside the borders of leaves and of lanes, with caps and sinks, over one to four query heads a row.
fn featured() -> impl Iterator<Item = Shape> {
    let plain = |heads, kv_heads, head_dim, act, kv| Shape {
        heads,
        kv_heads,
        head_dim,
        block: 32,
        act,
        kv,
        window: None,
        softcap: None,
        sinks: false,
    };
    let wide = plain(4, 1, 32, DType::BF16, DType::BF16);
    let odd = plain(3, 3, 18, DType::F32, DType::F32);
    let mixed = plain(6, 2, 24, DType::BF16, DType::F16);
    let windows = [1, 3, 16, 37, 127, 128, 129, 200].map(|w| Shape { window: Some(w), ..wide });
    let others = [
        Shape { window: Some(5), sinks: true, ..odd },
        Shape { window: Some(130), softcap: Some(0.75), sinks: true, ..mixed },
        Shape { window: Some(1000), ..mixed },
        Shape { softcap: Some(0.5), ..wide },
        Shape { softcap: Some(50.0), ..odd },
        Shape { sinks: true, ..wide },
        Shape { sinks: true, ..odd },
    ];
    windows.into_iter().chain(others)
}

/// Sinks about as large as the largest scores, other for every head.
fn sinks(s: Shape) -> Option<Vec<f32>> {
    s.sinks.then(|| (0..s.heads).map(|h| 1.5 - h as f32 * 0.8).collect())
}

/// A sequence's projections: q (activation dtype values), k and v (f32, before rounding to the cache).
struct Tokens {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn tokens(s: Shape, seed: u32, len: usize) -> Tokens {
    let kv = len * s.kv_heads * s.head_dim;
    let mut k = values(seed + 1, kv, DType::F32);
    k.iter_mut().for_each(|k| *k *= 3.0);
    Tokens { q: values(seed, len * s.heads * s.head_dim, s.act), k, v: values(seed + 2, kv, DType::F32) }
}

/// A cache full of NaN.
struct Memory {
    layout: KvLayout,
    words: Vec<u32>,
    n_blocks: usize,
}

impl Memory {
    fn new(s: Shape, n_blocks: usize) -> Self {
        let layout = KvLayout::new(s.kv, s.kv_heads, s.head_dim, s.block).unwrap();
        Memory { layout, words: vec![u32::MAX; n_blocks * layout.block_bytes() / 4], n_blocks }
    }

    fn cache(&mut self) -> KvCache<'_> {
        // SAFETY: the vector's own bytes, exclusively borrowed.
        unsafe {
            let (p, len) = (self.words.as_mut_ptr().cast(), self.words.len() * 4);
            KvCache::raw(self.layout, p, len, 0, self.layout.block_bytes(), self.n_blocks).unwrap()
        }
    }
}

/// Appends and attends one step. `parts` are (tokens, rows already done, rows now, block ids).
fn step(
    path: IsaPath,
    s: Shape,
    memory: &mut Memory,
    parts: &[(&Tokens, usize, usize, &[u32])],
    split: Split,
) -> Buffer {
    let (hd, qn, kn) = (s.head_dim, s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let (mut qkv, mut q, mut seqs, mut blocks) = (vec![], vec![], vec![], vec![]);
    for &(t, done, now, ids) in parts {
        seqs.push(Sequence {
            q_start: q.len() / qn,
            q_len: now,
            kv_len: done + now,
            blocks_start: blocks.len(),
        });
        blocks.extend_from_slice(ids);
        for r in done..done + now {
            qkv.extend_from_slice(&t.q[r * qn..(r + 1) * qn]);
            qkv.extend_from_slice(&t.k[r * kn..(r + 1) * kn]);
            qkv.extend_from_slice(&t.v[r * kn..(r + 1) * kn]);
            q.extend_from_slice(&t.q[r * qn..(r + 1) * qn]);
        }
    }
    let rows = q.len() / qn;
    let batch = Batch::new(&seqs, &blocks, s.block, memory.n_blocks).unwrap();
    let mut q_out = Buffer::zeros(s.act, q.len());
    let positions = vec![0; rows];
    let append = RopeAppend::new(RopeAppendArgs {
        path,
        qkv: qkv.as_slice().into(),
        qkv_stride: qn + 2 * kn,
        positions: &positions,
        norm: None,
        table: (&[] as &[f32]).into(),
        max_pos: 1,
        rotary_dim: 0,
        heads: s.heads,
        q_out: q_out.dst(),
        cache: memory.cache(),
        batch,
    })
    .unwrap();
    run(&append, split);
    assert_eq!(q_out.f32(), q);
    let mut out = Buffer::zeros(s.act, q.len());
    let sinks = sinks(s);
    let attention = Attention::new(AttentionArgs {
        path,
        q: q_out.src(),
        heads: s.heads,
        scale: 1.0 / (hd as f32).sqrt(),
        window: s.window,
        softcap: s.softcap,
        sinks: sinks.as_deref(),
        cache: memory.cache(),
        batch,
        out: out.dst(),
    })
    .unwrap();
    run(&attention, split);
    out
}

/// Scattered block ids.
fn table(first: u32, n: usize, of: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (first + i * 7) % of).collect()
}

/// `t` holds keys and values as the cache does, rounded.
fn expected(s: Shape, t: &Tokens, row: usize, head: usize) -> Vec<f32> {
    let (hd, g) = (s.head_dim, s.heads / s.kv_heads);
    let pick = |x: &[f32]| -> Vec<f32> {
        (0..=row)
            .flat_map(|p| &x[(p * s.kv_heads + head / g) * hd..(p * s.kv_heads + head / g + 1) * hd])
            .copied()
            .collect()
    };
    let q = &t.q[(row * s.heads + head) * hd..(row * s.heads + head + 1) * hd];
    let (scale, sink) = (1.0 / (hd as f32).sqrt(), sinks(s).map(|s| s[head]));
    reference::attention(q, &pick(&t.k), &pick(&t.v), scale, s.window, s.softcap, sink)
}

#[test]
fn every_path_is_close_to_the_reference() {
    let len = 300;
    let rows = || (0..len).step_by(13).chain([127, 128, 129, 255, 256, len - 1]);
    for s in shapes().chain(featured()) {
        let t = tokens(s, 5, len);
        let round = |x: &[f32]| x.iter().map(|v| s.kv.round(*v)).collect();
        let rounded = Tokens { q: t.q.clone(), k: round(&t.k), v: round(&t.v) };
        let places = || rows().flat_map(|row| (0..s.heads).map(move |head| (row, head)));
        let want: Vec<f32> = places().flat_map(|(row, head)| expected(s, &rounded, row, head)).collect();
        for path in IsaPath::all() {
            let mut memory = Memory::new(s, 29);
            let ids = table(3, len.div_ceil(s.block), 29);
            let got = step(path, s, &mut memory, &[(&t, 0, len, &ids)], Split::Whole).f32();
            let mut mine = vec![];
            for (row, head) in places() {
                let at = (row * s.heads + head) * s.head_dim;
                mine.extend_from_slice(&got[at..at + s.head_dim]);
            }
            tolerance::check(s.act, &want, &mine).unwrap_or_else(|e| panic!("{path:?} {s:?}: {e}"));
        }
    }
}

#[test]
fn chunks_splits_and_company_change_no_bit() {
    one_answer(shapes());
}

#[test]
fn windows_caps_and_sinks_have_one_answer_too() {
    one_answer(featured());
}

fn one_answer(shapes: impl Iterator<Item = Shape>) {
    for s in shapes {
        for path in IsaPath::all() {
            let len = if s.window.is_some() { 290 } else { 150 };
            let (t, other) = (tokens(s, 5, len), tokens(s, 50, 160));
            let n = len.div_ceil(s.block);
            let (ids, other_ids) = (table(3, n, 41), table(8, 160usize.div_ceil(s.block), 41));
            let ids: Vec<u32> = ids.iter().map(|i| i + 41).collect();
            let mut memory = Memory::new(s, 82);
            let want = step(path, s, &mut memory, &[(&t, 0, len, &ids)], Split::Whole);
            let cache = memory.words;
            for chunk in [1, 7, 64] {
                let mut memory = Memory::new(s, 82);
                let mut got = vec![];
                for done in (0..len).step_by(chunk) {
                    let now = chunk.min(len - done);
                    got.extend(step(path, s, &mut memory, &[(&t, done, now, &ids)], Split::Whole).bits());
                }
                assert_eq!(want.bits(), got, "{path:?} {s:?} chunk {chunk}");
                assert!(cache == memory.words, "{path:?} {s:?} chunk {chunk}: cache");
            }
            for split in SPLITS {
                let mut memory = Memory::new(s, 82);
                step(path, s, &mut memory, &[(&other, 0, 130, &other_ids)], split);
                step(path, s, &mut memory, &[(&t, 0, 90, &ids), (&other, 130, 5, &other_ids)], split);
                let last = [(&other, 135, 25, &other_ids[..]), (&t, 90, len - 90, &ids[..])];
                let got = step(path, s, &mut memory, &last, split).bits();
                let width = s.heads * s.head_dim;
                assert_eq!(want.bits()[90 * width..], got[25 * width..], "{path:?} {s:?} {split:?}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_later_rows_only() {
    for path in IsaPath::all() {
        for (act, kv) in [(DType::BF16, DType::BF16), (DType::F32, DType::F16), (DType::F32, DType::F32)] {
            let s = Shape {
                heads: 4,
                kv_heads: 2,
                head_dim: 16,
                block: 16,
                act,
                kv,
                window: None,
                softcap: None,
                sinks: false,
            };
            let mut t = tokens(s, 9, 140);
            let ids = table(0, 9, 9);
            let want = step(path, s, &mut Memory::new(s, 9), &[(&t, 0, 140, &ids)], Split::Whole).f32();
            // Position 131: NaN in v of head 0, infinity in k of head 1.
            t.v[131 * 32 + 3] = f32::NAN;
            t.k[131 * 32 + 20] = f32::INFINITY;
            let got = step(path, s, &mut Memory::new(s, 9), &[(&t, 0, 140, &ids)], Split::Whole).f32();
            assert_eq!(want[..131 * 64], got[..131 * 64]);
            assert!(got[131 * 64 + 3].is_nan() && got[139 * 64 + 3].is_nan());
        }
    }
}

#[test]
fn positions_before_the_window_reach_nothing() {
    for path in IsaPath::all() {
        for window in [1, 20, 100, 128, 150] {
            let s = featured().find(|s| s.window == Some(5)).unwrap();
            let s = Shape { window: Some(window), heads: 6, ..s };
            let len = 300;
            let mut t = tokens(s, 9, len);
            let ids = table(0, len.div_ceil(s.block), 17);
            let want = step(path, s, &mut Memory::new(s, 17), &[(&t, 0, len, &ids)], Split::Whole).bits();
            t.k[..150 * 54].fill(f32::NAN);
            t.v[..150 * 54].fill(f32::INFINITY);
            let got = step(path, s, &mut Memory::new(s, 17), &[(&t, 0, len, &ids)], Split::Whole);
            // The first row that sees only what lies behind.
            let clean = (150 + window as usize - 1) * 6 * 18;
            assert_eq!(want[clean..], got.bits()[clean..], "{path:?} window {window}");
            assert!(got.f32()[clean - 6 * 18..clean].iter().all(|v| v.is_nan()), "{path:?} window {window}");
        }
    }
}

#[test]
fn wrong_operands_are_refused() {
    let s = featured().find(|s| s.act == DType::F32).unwrap();
    let s = Shape { heads: 4, kv_heads: 2, head_dim: 8, block: 16, ..s };
    let seqs = [Sequence { q_start: 0, q_len: 3, kv_len: 3, blocks_start: 0 }];
    let mut memory = Memory::new(s, 2);
    let mut build = |heads: usize, q: usize, out: usize, block: usize, n_blocks: usize, more: More| {
        let (q, mut out) = (vec![0.0f32; q], vec![0.0f32; out]);
        let batch = Batch::new(&seqs, &[1], block, n_blocks).unwrap();
        Attention::new(AttentionArgs {
            path: IsaPath::detect(),
            q: q.as_slice().into(),
            heads,
            scale: 1.0,
            window: more.0,
            softcap: more.1,
            sinks: more.2,
            cache: memory.cache(),
            batch,
            out: out.as_mut_slice().into(),
        })
        .is_ok()
    };
    type More = (Option<u32>, Option<f32>, Option<&'static [f32]>);
    const NONE: More = (None, None, None);
    assert!(build(4, 96, 96, 16, 2, NONE));
    assert!(!build(4, 95, 96, 16, 2, NONE));
    assert!(!build(4, 96, 95, 16, 2, NONE));
    assert!(!build(3, 96, 96, 16, 2, NONE));
    assert!(!build(0, 96, 96, 16, 2, NONE));
    assert!(!build(4, 96, 96, 32, 2, NONE));
    assert!(!build(4, 96, 96, 16, 3, NONE));
    assert!(build(4, 96, 96, 16, 2, (Some(1), Some(0.1), Some(&[0.0; 4]))));
    assert!(!build(4, 96, 96, 16, 2, (Some(0), None, None)));
    assert!(!build(4, 96, 96, 16, 2, (None, Some(0.0), None)));
    assert!(!build(4, 96, 96, 16, 2, (None, Some(f32::NAN), None)));
    assert!(!build(4, 96, 96, 16, 2, (None, None, Some(&[0.0; 3]))));
    assert!(!build(4, 96, 96, 16, 2, (None, None, Some(&[0.0; 5]))));
}
