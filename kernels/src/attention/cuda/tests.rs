//! Launch planning of device attention.

use lathe_device::Symbols;

use super::*;

fn problem(heads: usize, kv_heads: usize, head_dim: usize) -> Problem {
    Problem {
        heads,
        kv_heads,
        head_dim,
        scale: 0.125,
        dtype: DType::BF16,
        kv_dtype: DType::BF16,
        block: 32,
        block_bytes: 1 << 22,
        max_seq_len: 8192,
        max_seqs: 256,
        max_tokens: 2048,
        window: None,
        softcap: None,
        sinks: false,
    }
}

fn entries(l: &Launches, s: &Symbols) -> Vec<&'static str> {
    l.stages.iter().filter(|stage| stage.when.holds(s)).map(|stage| stage.entry).collect()
}

fn step(tokens: u32, sequences: u32) -> Symbols {
    Symbols { tokens, sequences, rows: sequences, decode: tokens == sequences, sm_count: 132 }
}

#[test]
fn steps_run_what_they_need() {
    let l = launches(&problem(32, 8, 128)).unwrap();
    assert_eq!(entries(&l, &step(1, 1)), ["attention_split", "attention_fold"]);
    assert_eq!(entries(&l, &step(63, 63)), ["attention_split", "attention_fold"]);
    assert_eq!(entries(&l, &step(64, 64)), ["attention_split", "attention_fold"]);
    assert_eq!(entries(&l, &step(600, 2)), ["attention_split", "attention_fold", "attention_prefill"]);
    let medium = launches(&Problem { max_seq_len: 2048, ..problem(32, 8, 128) }).unwrap();
    assert_eq!(entries(&medium, &step(63, 63)), ["attention_split", "attention_fold"]);
    assert_eq!(entries(&medium, &step(64, 64)), ["attention_decode"]);
    assert_eq!(entries(&medium, &step(600, 90)), ["attention_decode", "attention_prefill"]);
    let short = launches(&Problem { max_seq_len: 128, ..problem(32, 8, 128) }).unwrap();
    assert_eq!(entries(&short, &step(1, 1)), ["attention_decode"]);
    assert!(short.workspaces.is_empty());
    let single = launches(&Problem { max_tokens: 1, max_seqs: 1, ..problem(32, 8, 128) }).unwrap();
    assert_eq!(single.stages.len(), 2);
    assert!(l.stages.iter().all(|s| s.source == l.stages[0].source));
}

#[test]
fn every_step_has_one_way_to_decode() {
    for kv_heads in [1, 8, 600] {
        for max_seqs in [1, 63, 64, 1000] {
            for max_seq_len in [100, 129, 2048, 2049, 100_000] {
                let p = Problem { max_seqs, max_seq_len, ..problem(kv_heads, kv_heads, 64) };
                let l = launches(&p).unwrap();
                for s in [1, 2, 63, 64, 511, 512, 1000].into_iter().filter(|s| *s <= max_seqs as u32) {
                    let ways = entries(&l, &step(s, s));
                    let split = ways == ["attention_split", "attention_fold"];
                    assert!(split || ways == ["attention_decode"], "{p:?} {s}: {ways:?}");
                    assert!(!split || l.workspaces.len() == 1);
                }
            }
        }
    }
}

#[test]
fn decode_fills_the_device_and_no_more() {
    let l = launches(&problem(32, 8, 128)).unwrap();
    assert_eq!(l.stages[0].grid.len(), 3);
    let grid = |s: &Symbols| {
        let d = lathe_device::DeviceLaunch {
            module: 0,
            entry: String::new(),
            when: When::Always,
            grid: l.stages[0].grid.clone(),
            block: 128,
            shared_bytes: 0,
            dependent: false,
            args: vec![],
        };
        d.grid(s).unwrap()
    };
    assert_eq!(grid(&step(1, 1)), [1, 8, 50]);
    assert_eq!(grid(&step(40, 40)), [40, 8, 2]);
    assert_eq!(grid(&step(63, 63)), [63, 8, 1]);
}

#[test]
fn shared_memory_fits_the_smallest_device() {
    // sm_86, sm_89 and sm_120 give a block 99 KiB.
    for head_dim in (16..=256).step_by(16) {
        let p = problem(8, 2, head_dim);
        assert!(decode_bytes(&p) <= 99 << 10, "{head_dim}: {}", decode_bytes(&p));
        assert!(prefill_bytes(&p) <= 99 << 10, "{head_dim}: {}", prefill_bytes(&p));
    }
    let columns = [64, 80, 96, 128, 256].map(stage_columns);
    assert_eq!(columns, [64, 80, 48, 64, 64]);
    // Three blocks of decode share the 228 KiB of an H200.
    assert!(DECODE_PER_SM as usize * (decode_bytes(&problem(32, 8, 128)) + 1024) <= 228 << 10);
}

#[test]
fn windows_bound_the_leaves() {
    let with = |w| leaves(&Problem { window: Some(w), ..problem(8, 8, 64) });
    // 129 positions can touch three leaves: one, 127 or 128 of the next, one.
    assert_eq!([1, 2, 129, 130, 4096, 100_000].map(with), [1, 2, 2, 3, 33, 64]);
}

#[test]
fn sinks_go_to_what_writes_rows() {
    for dtype in [DType::BF16, DType::F32] {
        let p = Problem { dtype, kv_dtype: dtype, ..problem(32, 8, 128) };
        let with = launches(&Problem { sinks: true, ..p }).unwrap();
        for (with, without) in with.stages.iter().zip(launches(&p).unwrap().stages) {
            assert_eq!(with.args, [&without.args[..], &[Arg::Input(2)]].concat());
        }
    }
}

#[test]
fn what_tensor_cores_do_not_take_goes_the_plain_way() {
    let plain = |p: Problem| launches(&p).unwrap().stages[0].entry == "attention_plain";
    let p = problem(8, 2, 64);
    assert!(!plain(p));
    assert!(plain(Problem { dtype: DType::F32, kv_dtype: DType::F32, ..p }));
    assert!(plain(Problem { kv_dtype: DType::F16, ..p }));
    assert!(plain(Problem { head_dim: 24, ..p }));
    assert!(plain(Problem { head_dim: 272, ..p }));
}

#[test]
fn refusals_name_what_is_wrong() {
    let e = launches(&problem(8, 3, 64)).unwrap_err().to_string();
    assert_eq!(e, "attention: unsupported: 8 heads on 3 kv_heads; they must divide");
    assert!(launches(&problem(8, 0, 64)).is_err());
    assert!(launches(&problem(0, 1, 64)).is_err());
    assert!(launches(&Problem { dtype: DType::I32, ..problem(8, 8, 64) }).is_err());
    assert!(launches(&Problem { window: Some(0), ..problem(8, 8, 64) }).is_err());
    for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(launches(&Problem { softcap: Some(cap), ..problem(8, 8, 64) }).is_err());
    }
}
