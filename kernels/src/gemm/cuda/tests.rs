//! Planning: what is refused, what each stage is told, and that macros and source agree.

use super::*;
use crate::cuda::HEADERS;

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
        Problem { n: 15, epilogue: Epilogue::SiluMul, ..P },
    ];
    for p in wrong {
        assert!(launches(&p).is_err(), "{p:?}");
    }
    let f32 = Problem { dtype: DType::F32, ..P };
    assert!(launches_of(&P, &choose(&f32)).is_err() && launches_of(&f32, &choose(&P)).is_err());
    assert!(add_launches(&P).is_ok());
    assert!(add_launches(&Problem { epilogue: Epilogue::SiluMul, ..P }).is_err());
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
    let p = Problem { n: 26, k: 33, epilogue: Epilogue::SiluMul, out: DType::F16, dtype: DType::F16, ..P };
    for s in launches(&p).unwrap().stages {
        assert_eq!((define(&s, "ROWS"), define(&s, "COLUMNS"), define(&s, "K")), ("32", "13", "33"));
        assert_eq!((define(&s, "EPILOGUE"), define(&s, "SLICES")), ("lathe::SiluMul", "1"));
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
