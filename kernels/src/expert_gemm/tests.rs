//! `expert_gemm` against `gemm` with one expert's weight and one row, by bits, over groupings, splits and paths.

use lathe_numerics::{Activation, DType};

use super::*;
use crate::gemm::tests::{Packed, interleaved_order, plain_order};
use crate::testing::{Buffer, DTYPES, SPLITS, run, values};
use crate::top_k::{GroupChoices, GroupChoicesArgs};

/// Order and starts of choices.
fn group(ids: &[i32], experts: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut order, mut starts) = (vec![0; ids.len()], vec![0; experts + 1]);
    let view = |v: &mut Vec<i32>| {
        // SAFETY: the views live no longer than the vectors, and only this kernel uses them.
        unsafe { Dst::raw(DType::I32, v.as_mut_ptr().cast(), v.len() * 4) }.unwrap()
    };
    let args = GroupChoicesArgs { ids, experts, order: view(&mut order), starts: view(&mut starts) };
    run(&GroupChoices::new(args).unwrap(), SPLITS[0]);
    (order, starts)
}

struct Case {
    experts: usize,
    share: usize,
    n: usize,
    k: usize,
    epilogue: Epilogue,
    bias: bool,
    ids: Vec<i32>,
}

impl Case {
    fn check(&self, path: IsaPath, dtype: DType) {
        let Case { experts, share, n, k, epilogue, .. } = *self;
        let (choices, rows) = (self.ids.len(), stored_rows(n, epilogue));
        let x = Buffer::new(dtype, &values(1, choices / share * k, dtype));
        let w = Buffer::new(dtype, &values(2, experts * n * k, dtype));
        let one_order = match epilogue {
            Epilogue::Store => plain_order(n),
            _ => interleaved_order(n / 2),
        };
        let stored = |e: usize| one_order.iter().map(move |r| r.map(|r| r + e * n)).collect::<Vec<_>>();
        let weight = Packed::new(&w, k, &(0..experts).flat_map(stored).collect::<Vec<_>>());
        let bias = self.bias.then(|| values(3, experts * rows, DType::F32));
        let columns = epilogue.columns(n);

        // Every choice as a GEMM of one row with its expert's weight.
        let mut want = vec![0; choices * columns];
        for (choice, id) in self.ids.iter().enumerate() {
            let e = *id as usize;
            let own = Packed::new(&w, k, &stored(e));
            let row = Buffer::new(dtype, &x.f32()[choice / share * k..][..k]);
            let mut y = Buffer::zeros(dtype, columns);
            let gemm = Gemm::new(GemmArgs {
                path,
                x: row.src(),
                x_stride: k,
                m: 1,
                n,
                k,
                weight: own.src(),
                bias: bias.as_ref().map(|b| &b[e * rows..(e + 1) * rows]),
                out: y.dst(),
                out_stride: columns,
                epilogue,
            });
            run(&gemm.unwrap(), SPLITS[0]);
            want[choice * columns..][..columns].copy_from_slice(&y.bits());
        }

        let (order, starts) = group(&self.ids, experts);
        for split in SPLITS {
            let mut y = Buffer::zeros(dtype, choices * columns);
            let args = ExpertGemmArgs {
                path,
                x: x.src(),
                share,
                order: &order,
                starts: &starts,
                n,
                k,
                weight: weight.src(),
                bias: bias.as_deref(),
                out: y.dst(),
                epilogue,
            };
            // SAFETY: a grouping has every choice once.
            let kernel = unsafe { ExpertGemm::new(args) }.unwrap();
            run(&kernel, split);
            assert!(y.bits() == want, "{path:?} {dtype} {n}x{k} {epilogue:?} {split:?}");
        }
    }
}

#[test]
fn rows_have_the_bits_of_their_experts_gemm() {
    let spread = |choices: usize, experts: usize, step: usize| {
        (0..choices).map(|c| ((c * step + c / 7) % experts) as i32).collect::<Vec<_>>()
    };
    let cases = [
        Case {
            experts: 4,
            share: 2,
            n: 48,
            k: 33,
            epilogue: Epilogue::Store,
            bias: true,
            ids: spread(14, 4, 3),
        },
        Case { experts: 3, share: 1, n: 16, k: 64, epilogue: Epilogue::Store, bias: false, ids: vec![2; 40] },
        Case {
            experts: 8,
            share: 4,
            n: 40,
            k: 96,
            epilogue: Epilogue::Glu(Activation::Silu),
            bias: true,
            ids: spread(120, 8, 5),
        },
        Case {
            experts: 2,
            share: 1,
            n: 64,
            k: 1024,
            epilogue: Epilogue::Store,
            bias: false,
            ids: spread(31, 2, 1),
        },
        Case {
            experts: 5,
            share: 1,
            n: 32,
            k: 16,
            epilogue: Epilogue::Glu(Activation::Silu),
            bias: false,
            ids: vec![4],
        },
    ];
    for path in IsaPath::all() {
        for dtype in DTYPES {
            cases.iter().for_each(|c| c.check(path, dtype));
        }
    }
}

#[test]
fn wrong_groupings_and_shapes_are_refused() {
    let (x, w) = (vec![0.0_f32; 64], vec![0.0_f32; 2 * 16 * 8]);
    let build = |order: &[i32], starts: &[i32], n: usize| {
        let mut out = vec![0.0_f32; 64];
        let args = ExpertGemmArgs {
            path: IsaPath::detect(),
            x: x.as_slice().into(),
            share: 2,
            order,
            starts,
            n,
            k: 8,
            weight: w.as_slice().into(),
            bias: None,
            out: out.as_mut_slice().into(),
            epilogue: Epilogue::Store,
        };
        // SAFETY: orders of this test that repeat a choice are never run.
        unsafe { ExpertGemm::new(args) }.map(drop)
    };
    assert_eq!(build(&[1, 0], &[0, 1, 2], 16), Ok(()));
    assert!(build(&[1, 2], &[0, 1, 2], 16).is_err());
    assert!(build(&[1, -1], &[0, 1, 2], 16).is_err());
    assert!(build(&[1, 0], &[0, 2, 1], 16).is_err());
    assert!(build(&[1, 0], &[-1, 1, 2], 16).is_err());
    assert!(build(&[1, 0], &[0, 1, 3], 16).is_err());
    assert!(build(&[1, 0], &[0], 16).is_err());
    assert!(build(&[1, 0], &[0, 1, 2, 2], 16).is_err());
    let why = build(&[1, 0], &[0, 1, 2], 24).unwrap_err().to_string();
    assert_eq!(why, "expert_gemm: unsupported: 24 stored rows of an expert; they are a multiple of 16");
}
