//! Planning: what is refused, what each stage is told, and that macros and source agree.

use lathe_numerics::Activation;

use super::*;
use crate::cuda::HEADERS;
use crate::rope_append;

const P: Problem = Problem {
    m: Symbol::Tokens,
    max_m: 2048,
    n: 4096,
    k: 4096,
    dtype: DType::BF16,
    out: DType::F32,
    epilogue: Epilogue::Store,
    bias: false,
};

fn define<'a>(stage: &'a Stage, name: &str) -> &'a str {
    &stage.source.defines.iter().find(|d| d.0 == name).unwrap().1
}

#[test]
fn refusals_name_what_is_wrong() {
    assert!(launches(&P).is_ok());
    let wrong = [
        Problem { n: 0, ..P },
        Problem { k: 0, ..P },
        Problem { max_m: 0, ..P },
        Problem { n: usize::MAX, ..P },
        Problem { k: 1 << 40, ..P },
        Problem { n: 1 << 28, k: 1 << 20, max_m: 1 << 20, ..P },
        Problem { dtype: DType::I32, ..P },
        Problem { out: DType::I32, ..P },
        Problem { n: 15, epilogue: Epilogue::Glu(Activation::Silu), ..P },
    ];
    for p in wrong {
        assert!(launches(&p).is_err(), "{p:?}");
    }
    let f32 = Problem { dtype: DType::F32, ..P };
    assert!(launches_of(&P, &choose(&f32)).is_err() && launches_of(&f32, &choose(&P)).is_err());
    assert!(add_launches(&P).is_ok());
    assert!(add_launches(&Problem { epilogue: Epilogue::Glu(Activation::Silu), ..P }).is_err());
}

#[test]
fn one_range_is_always() {
    let stages = |max_m| launches(&Problem { max_m, ..P }).unwrap().stages;
    assert_eq!(stages(7)[0].when, When::Always);
    let two: Vec<When> = stages(9).iter().map(|s| s.when).collect();
    let range = |min, max| When::Range { symbol: Symbol::Tokens, min, max };
    assert_eq!(two, [range(1, 8), range(9, 9)]);
}

#[test]
fn arguments_follow_the_operands() {
    let args = |l: Result<Launches, _>| l.unwrap().stages[0].args.clone();
    let (none, m) = (Arg::U64(0), Arg::Symbol(Symbol::Tokens));
    let [x, w, two, three, y] = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Input(3), Arg::Output(0)];
    let bias = Problem { bias: true, ..P };
    assert_eq!(args(launches(&P)), [x, w, none, none, y, m]);
    assert_eq!(args(launches(&bias)), [x, w, two, none, y, m]);
    assert_eq!(args(add_launches(&P)), [x, w, none, two, y, m]);
    assert_eq!(args(add_launches(&bias)), [x, w, two, three, y, m]);
}

#[test]
fn stages_say_what_the_problem_is() {
    let p = Problem {
        n: 26,
        k: 33,
        epilogue: Epilogue::Glu(Activation::Silu),
        out: DType::F16,
        dtype: DType::F16,
        ..P
    };
    for s in launches(&p).unwrap().stages {
        assert_eq!((define(&s, "ROWS"), define(&s, "COLUMNS"), define(&s, "K")), ("32", "13", "33"));
        assert_eq!((define(&s, "EPILOGUE"), define(&s, "SLICES")), ("lathe::Glu<lathe::silu_portable>", "1"));
        assert_eq!((define(&s, "ELEMENT"), define(&s, "OUT")), ("lathe::f16", "lathe::f16"));
        assert_eq!(s.cost, Cost { fixed_bytes: 2 * 3 * 512, row_bytes: 66 + 26, row_flops: 2 * 26 * 33 });
    }
    let s = &launches(&Problem { dtype: DType::F32, bias: true, ..p }).unwrap().stages[1];
    assert_eq!(s.cost.fixed_bytes, 4 * 32 * 33 + 4 * 32);
    assert_eq!((define(s, "PER_THREAD"), s.shared_bytes, s.block), ("4", 0, 256));
}

#[test]
fn every_macro_is_used() {
    let header = HEADERS.iter().find(|h| h.0 == "gemm.cuh").unwrap().1;
    for dtype in [DType::BF16, DType::F32] {
        let stage = &launches(&Problem { dtype, ..P }).unwrap().stages[0];
        let lines = stage.source.text.lines().chain(header.lines());
        let code: Vec<&str> = lines.map(|l| l.split("//").next().unwrap_or_default()).collect();
        for (name, _) in &stage.source.defines {
            let words = |line: &&'static str| line.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(code.iter().flat_map(words).any(|word| word == *name), "{dtype}: {name} is not used");
        }
    }
}

/// The qkv projection of a layer with its norm and rotation.
fn qkv(k: usize, head_dim: usize, rotary_dim: usize) -> (Problem, Fused) {
    let rope = rope_append::cuda::Problem {
        heads: 32,
        kv_heads: 8,
        head_dim,
        rotary_dim,
        norm: None,
        dtype: DType::BF16,
        kv_dtype: DType::BF16,
        block: 32,
        block_bytes: 1 << 22,
    };
    (Problem { n: 48 * head_dim, k, ..P }, Fused { norm: Some(1e-5), tail: Tail::RopeAppend(rope) })
}

/// The gate and up projections of a layer with their norm.
const GATE_UP: (Problem, Fused) = (
    Problem { n: 28672, epilogue: Epilogue::Glu(Activation::Silu), ..P },
    Fused { norm: Some(1e-5), tail: Tail::None },
);

/// Largest row counts of the launches that do all at once.
fn few_rows((p, f): (Problem, Fused)) -> Vec<u32> {
    few::stages(&p, &f).unwrap().iter().map(|(max, _)| *max).collect()
}

#[test]
fn as_many_rows_are_one_launch_as_shared_memory_holds() {
    assert_eq!(few_rows(qkv(1024, 128, 128)), [1, 8, 16, 32]);
    assert_eq!(few_rows(qkv(2048, 64, 64)), [1, 8, 16]);
    assert_eq!(few_rows(qkv(4096, 128, 128)), [1, 4, 8]);
    assert_eq!(few_rows(qkv(8192, 128, 128)), [1, 4]);
    for whole in [qkv(4096, 80, 80), qkv(4096, 128, 64), qkv(4104, 128, 128)] {
        assert_eq!(few_rows(whole), [0; 0]);
    }
    let (p, f) = qkv(4096, 128, 128);
    assert_eq!(few_rows((Problem { dtype: DType::F32, ..p }, f)), [0; 0]);
    assert_eq!(few_rows((Problem { max_m: 3, ..p }, f)), [1, 3]);
    assert_eq!(few_rows((p, Fused { norm: None, ..f })), [8, 16, 32]);
    assert_eq!(few_rows(GATE_UP), [1, 4, 8]);
    assert_eq!(
        few_rows((Problem { n: 128_256, epilogue: Epilogue::Store, ..GATE_UP.0 }, GATE_UP.1)),
        [1, 4, 8]
    );
    // In place, x may be the residual.
    assert_eq!(few_rows((p, Fused { tail: Tail::Add, ..f })), [0; 0]);
}

#[test]
fn every_row_count_has_its_launches() {
    let (p, f) = qkv(4096, 128, 128);
    for (max_m, m, n) in [(2048, 4, 1), (2048, 5, 1), (2048, 8, 1), (2048, 9, 3), (2048, 2048, 3), (8, 8, 1)]
    {
        let all = fused_launches(&Problem { max_m, ..p }, &f).unwrap();
        let holds = |s: &&Stage| match s.when {
            When::Range { min, max, .. } => (min..=max).contains(&m),
            _ => true,
        };
        assert_eq!(all.stages.iter().filter(holds).count(), n, "{m} of {max_m}");
        assert_eq!(all.workspaces.len(), if max_m > 8 { 2 } else { 0 });
    }
    let stage = &fused_launches(&Problem { bias: true, ..p }, &f).unwrap().stages[1];
    let inputs: Vec<&Arg> = stage.args.iter().filter(|a| matches!(a, Arg::Input(_))).collect();
    let order = [0, 2, 3, 1, 4, 5, 6].map(Arg::Input);
    assert_eq!(inputs, order.iter().collect::<Vec<_>>());
    assert_eq!((define(stage, "HELD_ROWS"), define(stage, "NORM_THREADS")), ("4", "512"));
    // x, q, keys and values, and a row of the rotation's table; no sums.
    assert_eq!(stage.cost.row_bytes, 2 * 4096 + 2 * 48 * 128 + 4 * 128);
    assert!(fused_launches(&Problem { epilogue: Epilogue::Glu(Activation::Silu), ..p }, &f).is_err());
}

#[test]
fn blocks_that_norm_are_few() {
    for (max, stage) in few::stages(&GATE_UP.0, &GATE_UP.1).unwrap() {
        let Extent::Sum { terms, .. } = &stage.grid[0] else { panic!("{:?}", stage.grid) };
        assert!(terms[0].times <= 264 && stage.block == 256, "{max}: {stage:?}");
    }
}

#[test]
fn rings_of_held_rows_keep_enough_bytes_under_way() {
    // Two such blocks fit a multiprocessor of a large device, and twice this is what it needs (choose.rs).
    for k in [1024, 2048, 4096, 5120, 8192] {
        for (max, stage) in few::stages(&qkv(k, 128, 128).0, &qkv(k, 128, 128).1).unwrap() {
            let number = |name| define(&stage, name).parse::<usize>().unwrap();
            let stages = number("STAGES") - 1;
            let bytes = stages * number("PARALLEL") * number("TILE_FEATURES") * number("DEPTH") * 2;
            assert!(bytes >= 20 << 10 && stage.shared_bytes as usize <= MAX_SHARED, "{k}, {max}: {bytes}");
        }
    }
}

#[test]
fn grids_cover_rows_and_features() {
    for (max_m, m) in [(2048, 1), (2048, 8), (2048, 100), (2048, 2048), (3, 3)] {
        let p = Problem { max_m, n: 4100, ..P };
        let held: Vec<_> = launches(&p)
            .unwrap()
            .stages
            .into_iter()
            .filter(|s| match s.when {
                When::Range { min, max, .. } => (min..=max).contains(&m),
                _ => true,
            })
            .collect();
        let [stage] = &held[..] else { panic!("{} launches at {m} rows", held.len()) };
        let Extent::Sum { constant: 0, terms } = &stage.grid[0] else { panic!("{:?}", stage.grid) };
        let (features, tokens): (u32, u32) =
            (define(stage, "TILE_FEATURES").parse().unwrap(), define(stage, "TILE_TOKENS").parse().unwrap());
        assert_eq!((terms[0].per, terms[0].times), (tokens, 4100u32.div_ceil(features)));
    }
}
