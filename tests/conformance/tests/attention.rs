//! Device attention against its reference, and its bits against themselves: decode, split decode, chunks, company.

use anyhow::{Context, Result, ensure};
use lathe_conformance::Rig;
use lathe_conformance::attention::{Part, Step, Tokens, expected, layer_bytes};
use lathe_kernels::attention::cuda::{Problem, launches};
use lathe_kernels::tolerance;
use lathe_numerics::DType;

/// `heads` on `kv_heads`, for sequences of up to 2,048 positions.
fn problem(heads: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Problem {
    sized(Problem {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        dtype,
        kv_dtype: dtype,
        block: 32,
        block_bytes: 0,
        max_seq_len: 2048,
        max_seqs: 600,
        max_tokens: 4096,
        window: None,
        softcap: None,
        sinks: false,
    })
}

/// The problem over two layers of the blocks that its other fields describe.
fn sized(p: Problem) -> Problem {
    Problem { block_bytes: 2 * layer_bytes(&p) as u64, ..p }
}

/// How a step is padded and what device it meets.
#[derive(Clone, Copy)]
struct Setting {
    padding_rows: usize,
    padding_sequences: usize,
    sm_count: u32,
}

const PLAIN: Setting = Setting { padding_rows: 0, padding_sequences: 0, sm_count: 4 };

/// One step. Gives the rows' bits.
fn step(rig: &mut Rig, p: &Problem, parts: &[Part], setting: Setting) -> Result<Vec<u32>> {
    let step = Step::new(p, parts, setting.padding_rows, setting.padding_sequences);
    let q = rig.floats("q", p.dtype, &step.q)?;
    let operands = step.operands(rig, p, q)?;
    rig.run(&launches(p)?, step.symbols(setting.sm_count), &operands)?;
    let got = rig.read_floats(operands.outputs[0], p.dtype, step.rows * p.heads * p.head_dim)?;
    step.free(rig, p, &operands)?;
    Ok(got.into_iter().map(f32::to_bits).collect())
}

/// A ragged step against the reference: every row of short chunks, a sample of long ones.
fn check(rig: &mut Rig, p: &Problem, parts: &[Part], setting: Setting) -> Result<()> {
    let got = step(rig, p, parts, setting)?;
    let (mut want, mut mine, mut start) = (vec![], vec![], 0);
    for Part(t, done, now) in parts {
        let stride = (now / 12).max(1);
        for row in (0..*now).filter(|row| row % stride == 0 || row + 1 == *now) {
            for head in 0..p.heads {
                want.extend(expected(p, t, done + row, head));
                let at = ((start + row) * p.heads + head) * p.head_dim;
                mine.extend(got[at..at + p.head_dim].iter().map(|b| f32::from_bits(*b)));
            }
        }
        start += now;
    }
    tolerance::check(p.dtype, &want, &mine).map_err(anyhow::Error::msg)
}

fn against_the_reference(p: &Problem) -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    let [a, b, c] = [5, 50, 500].map(|seed| Tokens::new(p, seed, 300));
    let long = Tokens::new(p, 9, 1100);
    let decodes = [
        Part(&a, 0, 1),
        Part(&b, 126, 1),
        Part(&b, 127, 1),
        Part(&c, 128, 1),
        Part(&long, 1099, 1),
        Part(&a, 299, 1),
    ];
    let padded = Setting { padding_rows: 3, padding_sequences: 2, sm_count: 132 };
    check(&mut rig, p, &decodes, padded).context("decode")?;
    let mixed =
        [Part(&a, 0, 70), Part(&b, 200, 1), Part(&c, 100, 41), Part(&long, 1030, 33), Part(&b, 250, 3)];
    check(&mut rig, p, &mixed, PLAIN).context("mixed")
}

#[test]
fn grouped_heads_of_64() -> Result<()> {
    against_the_reference(&problem(4, 1, 64, DType::BF16))
}

#[test]
fn heads_of_128_in_f16() -> Result<()> {
    against_the_reference(&problem(4, 2, 128, DType::F16))
}

#[test]
fn seven_heads_of_80() -> Result<()> {
    against_the_reference(&sized(Problem { block: 16, ..problem(7, 1, 80, DType::BF16) }))
}

#[test]
fn single_heads_of_96() -> Result<()> {
    against_the_reference(&sized(Problem { block: 128, ..problem(2, 2, 96, DType::BF16) }))
}

#[test]
fn eight_heads_of_256() -> Result<()> {
    against_the_reference(&problem(8, 1, 256, DType::BF16))
}

#[test]
fn twenty_heads_on_one() -> Result<()> {
    against_the_reference(&problem(20, 1, 16, DType::F16))
}

#[test]
fn windows() -> Result<()> {
    for window in [1, 129, 200] {
        against_the_reference(&Problem { window: Some(window), ..problem(4, 2, 64, DType::BF16) })?;
    }
    Ok(())
}

#[test]
fn soft_caps_and_sinks() -> Result<()> {
    let p = problem(4, 2, 64, DType::BF16);
    against_the_reference(&Problem { softcap: Some(1.5), sinks: true, ..p })?;
    against_the_reference(&Problem { window: Some(130), softcap: Some(50.0), sinks: true, ..p })?;
    against_the_reference(&Problem { window: Some(3), sinks: true, ..problem(6, 2, 128, DType::F16) })?;
    against_the_reference(&Problem { softcap: Some(0.75), sinks: true, ..problem(2, 1, 256, DType::BF16) })
}

#[test]
fn plain_kernel_with_all_features() -> Result<()> {
    let p = problem(3, 1, 20, DType::F32);
    against_the_reference(&Problem { window: Some(37), softcap: Some(1.5), sinks: true, ..p })?;
    against_the_reference(&Problem { sinks: true, ..problem(2, 2, 130, DType::BF16) })
}

#[test]
fn plain_kernel_of_f32_and_mixed_types() -> Result<()> {
    against_the_reference(&problem(4, 2, 64, DType::F32))?;
    against_the_reference(&sized(Problem { kv_dtype: DType::F16, ..problem(2, 1, 20, DType::F32) }))?;
    against_the_reference(&sized(Problem { window: Some(130), ..problem(2, 1, 130, DType::BF16) }))
}

fn one_answer(p: &Problem) -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    let len = 300;
    let width = p.heads * p.head_dim;
    let (t, other) = (Tokens::new(p, 5, len), Tokens::new(p, 50, 260));
    let want = step(&mut rig, p, &[Part(&t, 0, len)], PLAIN)?;
    for chunk in [7, 64] {
        for done in (0..len).step_by(chunk) {
            let now = chunk.min(len - done);
            let got = step(&mut rig, p, &[Part(&t, done, now)], PLAIN)?;
            ensure!(got[..] == want[done * width..][..now * width], "chunk of {chunk} at {done}");
        }
    }
    // Decode: alone, split over few and many blocks, among others, and unsplit among padding.
    let alone = [1, 3, 132].map(|sm_count| (vec![], Setting { sm_count, ..PLAIN }));
    let company = (vec![Part(&other, 200, 1), Part(&other, 17, 1)], PLAIN);
    let mixed = (vec![Part(&other, 100, 30), Part(&other, 40, 2)], PLAIN);
    let padded = (vec![], Setting { padding_sequences: 520, ..PLAIN });
    for (others, setting) in alone.into_iter().chain([company, mixed, padded]) {
        for position in [0, 1, 126, 127, 128, 129, 200, 255, 256, 299] {
            let mut parts = others.clone();
            parts.push(Part(&t, position, 1));
            let rows: usize = others.iter().map(|part| part.2).sum();
            let got = step(&mut rig, p, &parts, setting)?;
            ensure!(
                got[rows * width..] == want[position * width..][..width],
                "decode of position {position}"
            );
        }
    }
    Ok(())
}

#[test]
fn one_answer_for_heads_of_64() -> Result<()> {
    one_answer(&problem(4, 2, 64, DType::BF16))
}

#[test]
fn one_answer_for_heads_of_128() -> Result<()> {
    one_answer(&problem(4, 1, 128, DType::F16))
}

#[test]
fn one_answer_for_windows() -> Result<()> {
    let p = problem(3, 1, 80, DType::BF16);
    one_answer(&Problem { window: Some(100), softcap: Some(1.5), sinks: true, ..p })
}

#[test]
fn one_answer_for_f32() -> Result<()> {
    one_answer(&Problem { sinks: true, softcap: Some(1.5), ..problem(2, 1, 32, DType::F32) })
}

#[test]
fn infinities_and_nan_reach_later_rows_only() -> Result<()> {
    for (head_dim, dtype) in [(64, DType::BF16), (256, DType::F16), (64, DType::F32)] {
        let p = problem(4, 2, head_dim, dtype);
        let mut rig = Rig::chosen(true)?;
        let (width, kv_width) = (4 * head_dim, 2 * head_dim);
        let mut t = Tokens::new(&p, 5, 140);
        let want = step(&mut rig, &p, &[Part(&t, 0, 140)], PLAIN)?;
        // A value of the first key-value head, a key of the second.
        t.v[131 * kv_width + 3] = f32::INFINITY;
        t.v[133 * kv_width + 3] = f32::NAN;
        t.k[132 * kv_width + head_dim + 1] = f32::INFINITY;
        let got = step(&mut rig, &p, &[Part(&t, 0, 140)], PLAIN)?;
        ensure!(got[..131 * width] == want[..131 * width], "{dtype}: rows before");
        ensure!(f32::from_bits(got[131 * width + 3]) == f32::INFINITY, "{dtype}: row 131");
        ensure!(f32::from_bits(got[133 * width + 3]).is_nan(), "{dtype}: row 133");
        ensure!(got[131 * width + 4] == want[131 * width + 4], "{dtype}: another column");
        for position in [130, 131, 132, 139] {
            let alone = step(&mut rig, &p, &[Part(&t, position, 1)], PLAIN)?;
            ensure!(alone[..] == got[position * width..][..width], "{dtype}: decode of position {position}");
        }
    }
    Ok(())
}

#[test]
fn steps_take_the_ways_they_should() -> Result<()> {
    let p = problem(4, 2, 64, DType::BF16);
    let mut rig = Rig::chosen(false)?;
    let t = Tokens::new(&p, 5, 200);
    let mut ways = |parts: &[Part], setting| -> Result<Vec<String>> {
        step(&mut rig, &p, parts, setting)?;
        Ok(rig.launched().iter().map(|l| l.rsplit('/').next().unwrap_or_default().to_owned()).collect())
    };
    let padded = Setting { padding_sequences: 300, ..PLAIN };
    assert_eq!(ways(&[Part(&t, 150, 1)], PLAIN)?, ["attention_split", "attention_fold"]);
    assert_eq!(ways(&[Part(&t, 150, 1)], padded)?, ["attention_decode"]);
    assert_eq!(
        ways(&[Part(&t, 150, 20)], PLAIN)?,
        ["attention_split", "attention_fold", "attention_prefill"]
    );
    Ok(())
}
