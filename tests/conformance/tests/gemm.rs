//! The device's GEMM against its reference, and its bits against themselves: rows alone, in company, by every kernel.

use anyhow::{Context, Result, ensure};
use lathe_conformance::values::uniform;
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{DevicePtr, Symbol, Symbols};
use lathe_kernels::cuda::Launches;
use lathe_kernels::gemm::cases::WEIGHTS;
use lathe_kernels::gemm::cuda::{Body, Config, Problem, Tile, add_launches, choose, launches, launches_of};
use lathe_kernels::gemm::{Epilogue, reference, stored_rows};
use lathe_kernels::tolerance;
use lathe_numerics::{Activation, DType, Gating};

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
/// Row counts around every border between kernels and tiles.
const ROWS: [usize; 13] = [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 200];
/// Rows that a batch has.
const BATCH: usize = 200;

fn problem(n: usize, k: usize, dtype: DType) -> Problem {
    Problem {
        m: Symbol::Tokens,
        max_m: 512,
        n,
        k,
        dtype,
        out: DType::F32,
        epilogue: Epilogue::Store,
        bias: false,
    }
}

/// The row that is stored at each place; `None` is zeros.
fn stored_order(p: &Problem) -> Vec<Option<usize>> {
    let cols = p.n / 2;
    let row = |at: usize| match p.epilogue {
        Epilogue::Store | Epilogue::Act(_) => Some(at),
        Epilogue::Glu(_) | Epilogue::ClampedSwiglu => {
            let col = at / 32 * 16 + at % 16;
            (col < cols).then_some(at / 16 % 2 * cols + col)
        }
    };
    (0..stored_rows(p.n, p.epilogue)).map(row).collect()
}

/// Row-major `[n, k]` as a plan stores it.
fn packed(p: &Problem, w: &[f32]) -> Result<Vec<u8>> {
    let zeros = vec![0.0; p.k];
    let rows = stored_order(p).into_iter().map(|row| row.map_or(&zeros[..], |r| &w[r * p.k..][..p.k]));
    bytes::of_weight(p.dtype, &rows.collect::<Vec<_>>().concat(), p.k)
}

/// A weight on a device, and what else a launch reads.
struct Case {
    p: Problem,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    residual: Option<Vec<f32>>,
    configs: Option<Vec<Config>>,
    weight: DevicePtr,
    bias_at: Option<DevicePtr>,
}

impl Case {
    fn new(rig: &mut Rig, p: Problem) -> Result<Case> {
        let (x, w) = (uniform(1, BATCH * p.k, p.dtype), uniform(2, p.n * p.k, p.dtype));
        Self::of(rig, p, x, w)
    }

    fn of(rig: &mut Rig, p: Problem, x: Vec<f32>, w: Vec<f32>) -> Result<Case> {
        let bias = uniform(3, p.n, DType::F32);
        let stored: Vec<f32> = stored_order(&p).into_iter().map(|r| r.map_or(0.0, |r| bias[r])).collect();
        let weight = rig.buffer("weight", &packed(&p, &w)?)?;
        let bias_at = if p.bias { Some(rig.f32s("bias", &stored)?) } else { None };
        Ok(Case { p, x, w, bias, residual: None, configs: None, weight, bias_at })
    }

    fn columns(&self) -> usize {
        self.p.epilogue.columns(self.p.n)
    }

    fn launches(&self) -> Result<Launches> {
        let made = match (&self.residual, &self.configs) {
            (Some(_), _) => add_launches(&self.p),
            (None, Some(configs)) => launches_of(&self.p, configs),
            (None, None) => launches(&self.p),
        };
        made.context("plan")
    }

    /// The problem of `m` rows from `first`, as a step of its own.
    fn run(&self, rig: &mut Rig, first: usize, m: usize) -> Result<Vec<f32>> {
        let Problem { k, dtype, out, .. } = self.p;
        let columns = self.columns();
        let x = rig.floats("x", dtype, &self.x[first * k..(first + m) * k])?;
        let y = match &self.residual {
            // In place, as the residual stream is.
            Some(r) => rig.floats("y", out, &r[first * columns..(first + m) * columns])?,
            None => rig.empty("y", m * columns * out.size())?,
        };
        let mut inputs = vec![x, self.weight];
        inputs.extend(self.bias_at);
        inputs.extend(self.residual.as_ref().map(|_| y));
        let symbols = Symbols { tokens: m as u32, sequences: 1, rows: 1, decode: false, sm_count: 4 };
        let operands = Operands { inputs, outputs: vec![y], tables: vec![] };
        rig.run(&self.launches()?, symbols, &operands)?;
        ensure!(rig.launched().len() == 1, "{} launches at {m} rows", rig.launched().len());
        let got = rig.read_floats(y, out, m * columns)?;
        rig.free(x)?;
        rig.free(y)?;
        Ok(got)
    }

    fn reference(&self) -> Vec<f32> {
        let Problem { n, k, bias, .. } = self.p;
        let y = reference::gemm(&self.x, &self.w, bias.then_some(&self.bias[..]), BATCH, n, k);
        match self.p.epilogue {
            Epilogue::Store => y,
            Epilogue::Act(act) => {
                y.into_iter().map(|y| reference::activation(act, f64::from(y)) as f32).collect()
            }
            Epilogue::Glu(act) => reference::glu(act, &y, BATCH, n / 2),
            Epilogue::ClampedSwiglu => {
                let join = |row: &[f32], c: usize| Gating::ClampedSwiglu.apply(row[c], row[n / 2 + c]);
                y.chunks(n).flat_map(|row| (0..n / 2).map(move |c| join(row, c))).collect()
            }
        }
    }

    /// A whole batch is close to the reference, and its rows have the same bits in smaller companies.
    fn check(&self, rig: &mut Rig, rows: &[usize]) -> Result<()> {
        let (p, columns) = (self.p, self.columns());
        let whole = self.run(rig, 0, BATCH)?;
        tolerance::check(p.out, &self.reference(), &whole).map_err(|e| anyhow::anyhow!("{p:?}: {e}"))?;
        for &m in rows {
            let first = (BATCH - m) / 2;
            let got = self.run(rig, first, m).with_context(|| format!("{p:?}: {m} rows"))?;
            let want = &whole[first * columns..(first + m) * columns];
            same(want, &got).with_context(|| format!("{p:?}: {m} rows from {first}"))?;
        }
        rig.free(self.weight)?;
        self.bias_at.map_or(Ok(()), |at| rig.free(at))
    }
}

fn same(want: &[f32], got: &[f32]) -> Result<()> {
    ensure!(want.len() == got.len(), "{} values, want {}", got.len(), want.len());
    for (i, (w, g)) in want.iter().zip(got).enumerate() {
        ensure!(w.to_bits() == g.to_bits(), "element {i}: {g}, want {w}");
    }
    Ok(())
}

#[test]
fn rows_have_one_answer_close_to_the_reference() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for dtype in DTYPES {
        for &(n, k) in WEIGHTS {
            // Deep weights are slow here; each kernel sees them once.
            let rows = if n * k > 50_000 { &[1, 9, 17, 33, 65][..] } else { &ROWS };
            Case::new(&mut rig, problem(n, k, dtype))?.check(&mut rig, rows)?;
        }
    }
    Ok(())
}

#[test]
fn results_and_biases_of_every_dtype() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for dtype in DTYPES {
        for out in DTYPES {
            for (n, k) in [(37, 50), (64, 1024)] {
                let p = Problem { out, bias: true, ..problem(n, k, dtype) };
                Case::new(&mut rig, p)?.check(&mut rig, &[1, 33])?;
            }
        }
    }
    Ok(())
}

#[test]
fn glu_has_the_bits_of_its_parts() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (dtype, act) in DTYPES.into_iter().flat_map(|d| Activation::ALL.map(|a| (d, a))) {
        for (cols, k, bias) in
            [(1, 8, false), (16, 32, true), (23, 65, true), (64, 100, false), (70, 2048, false)]
        {
            let p = Problem { epilogue: Epilogue::Glu(act), bias, ..problem(2 * cols, k, dtype) };
            let fused = Case::new(&mut rig, p)?;
            // Every function leaves through the same tiles: one sees them all.
            let rows = match (k, act) {
                (1001.., Activation::Silu) => &[1, 65][..],
                (_, Activation::Silu) => &ROWS,
                (1001.., _) => &[],
                _ => &[1, 33],
            };
            fused.check(&mut rig, rows)?;
            // The same stored rows, so the same slices, as a plain weight.
            let order = stored_order(&p);
            let rows = |of: &[f32], width: usize| -> Vec<f32> {
                let zeros = vec![0.0; width];
                order
                    .iter()
                    .flat_map(|r| r.map_or(zeros.clone(), |r| of[r * width..(r + 1) * width].to_vec()))
                    .collect()
            };
            let plain = problem(order.len(), k, dtype);
            let sums = Case::of(&mut rig, plain, fused.x.clone(), rows(&fused.w, k))?.run(&mut rig, 0, 40)?;
            let bias = if bias { rows(&fused.bias, 1) } else { vec![-0.0; order.len()] };
            let fused = Case::new(&mut rig, p)?.run(&mut rig, 0, 40)?;
            let want: Vec<f32> = (0..40 * cols)
                .map(|i| {
                    let gate = i % cols / 16 * 32 + i % cols % 16;
                    let at = |f: usize| sums[i / cols * order.len() + f] + bias[f];
                    act.apply(at(gate)) * at(gate + 16)
                })
                .collect();
            same(&want, &fused).with_context(|| format!("{p:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn clamped_swiglu_bounds_both_halves() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for dtype in DTYPES {
        let p = Problem { epilogue: Epilogue::ClampedSwiglu, ..problem(40, 64, dtype) };
        // Wide enough that both bounds of both halves are met.
        let x = uniform(1, BATCH * p.k, dtype).into_iter().map(|v| v * 16.0).collect();
        let w = uniform(2, p.n * p.k, dtype);
        Case::of(&mut rig, p, x, w)?.check(&mut rig, &[1, 33])?;
    }
    Ok(())
}

#[test]
fn activations_follow_the_bias_and_are_rounded_once() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (dtype, act) in DTYPES.into_iter().flat_map(|d| Activation::ALL.map(|a| (d, a))) {
        for (n, k, bias) in [(37, 50, true), (64, 1024, false), (20, 33, true)] {
            let p = Problem { bias, ..problem(n, k, dtype) };
            let with = |out| Problem { epilogue: Epilogue::Act(act), out, ..p };
            Case::new(&mut rig, with(DType::F32))?.check(&mut rig, &[1, 9, 33, 65])?;
            let sums = Case::new(&mut rig, p)?.run(&mut rig, 0, 40)?;
            for out in DTYPES {
                let want: Vec<f32> = sums.iter().map(|s| out.round(act.apply(*s))).collect();
                let got = Case::new(&mut rig, with(out))?.run(&mut rig, 0, 40)?;
                same(&want, &got).with_context(|| format!("{:?}", with(out)))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_residual_is_added_before_the_rounding() -> Result<()> {
    let mut rig = Rig::chosen(true)?;
    for (dtype, n, k, bias) in [
        (DType::BF16, 48, 64, false),
        (DType::F16, 37, 50, true),
        (DType::BF16, 64, 2048, true),
        (DType::F32, 41, 33, false),
    ] {
        let p = Problem { bias, ..problem(n, k, dtype) };
        let residual = uniform(4, BATCH * n, dtype);
        let plain = Case::new(&mut rig, p)?;
        let fused = Case { residual: Some(residual), ..Case::new(&mut rig, Problem { out: dtype, ..p })? };
        for m in [1, 9, 100, BATCH] {
            let sums = plain.run(&mut rig, 0, m)?;
            let residual = fused.residual.iter().flatten();
            let want: Vec<f32> = sums.iter().zip(residual).map(|(s, r)| dtype.round(s + r)).collect();
            same(&want, &fused.run(&mut rig, 0, m)?).with_context(|| format!("{p:?}: {m} rows"))?;
        }
    }
    Ok(())
}

#[test]
fn slices_are_folded_left() -> Result<()> {
    // Four slices that sum to 2^24, 1, 1, -2^24: folded left the ones vanish.
    let (n, k) = (64, 2048);
    assert_eq!(lathe_numerics::gemm_slices(n, k), 4);
    let mut rig = Rig::chosen(true)?;
    for dtype in DTYPES {
        let (mut x, mut w) = (vec![0.0; BATCH * k], vec![0.0; n * k]);
        for row in x.chunks_mut(k) {
            (row[0], row[512], row[1024], row[1536]) = (1024.0, 1.0, 1.0, 1024.0);
        }
        (w[0], w[512], w[1024], w[1536]) = (16384.0, 1.0, 1.0, -16384.0);
        let case = Case::of(&mut rig, problem(n, k, dtype), x, w)?;
        for m in [1, 16, 32, 64, 128, BATCH] {
            let got = case.run(&mut rig, 0, m)?;
            assert!(got.iter().step_by(n).all(|y| *y == 0.0), "{dtype}: {m} rows");
        }
    }
    Ok(())
}

#[test]
fn nan_and_infinity_stay_in_their_rows() -> Result<()> {
    let (n, k) = (33, 40);
    let mut rig = Rig::chosen(true)?;
    for dtype in DTYPES {
        let clean = Case::new(&mut rig, problem(n, k, dtype))?;
        let mut x = clean.x.clone();
        x[5 * k + 3] = f32::NAN;
        x[9 * k + 39] = f32::INFINITY;
        let spoilt = Case::of(&mut rig, clean.p, x, clean.w.clone())?;
        for m in [14, 100, BATCH] {
            let (want, got) = (clean.run(&mut rig, 0, m)?, spoilt.run(&mut rig, 0, m)?);
            for (i, (w, g)) in want.iter().zip(&got).enumerate() {
                match i / n {
                    5 => assert!(g.is_nan()),
                    9 => assert!(!g.is_finite()),
                    row => assert_eq!(w.to_bits(), g.to_bits(), "{dtype}: row {row} of {m}"),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn tiles_of_real_models_have_the_bits_of_small_ones() -> Result<()> {
    let real = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (3072, 2048), (2048, 8192)];
    let mut tiles: Vec<Tile> = Vec::new();
    for (n, k) in real {
        for config in choose(&Problem { max_m: 8192, ..problem(n, k, DType::BF16) }) {
            let Body::Mma(tile) = config.body else { panic!("{config:?}") };
            if !tiles.contains(&tile) {
                tiles.push(tile);
            }
        }
    }
    let mut rig = Rig::chosen(true)?;
    let m = 300;
    for slices in [1, 2, 4] {
        // Features and rows that end within a tile of every size.
        let (n, k) = match slices {
            1 => (150, 200),
            2 => (50, 1024),
            _ => (50, 2048),
        };
        assert_eq!(lathe_numerics::gemm_slices(n, k), slices);
        let p = problem(n, k, DType::BF16);
        let (x, w) = (uniform(1, m * k, p.dtype), uniform(2, n * k, p.dtype));
        let mut case = Case::of(&mut rig, p, x, w)?;
        let want = case.run(&mut rig, 0, m)?;
        for tile in tiles.iter().filter(|t| t.slices == slices) {
            case.configs = Some(vec![Config { min: 1, max: p.max_m, body: Body::Mma(*tile) }]);
            let got = case.run(&mut rig, 0, m)?;
            same(&want, &got).with_context(|| format!("{tile:?}"))?;
        }
    }
    Ok(())
}
