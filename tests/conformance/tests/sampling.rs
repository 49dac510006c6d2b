//! Device draws and log probabilities against the CPU's.
//!
//! `exact` is the device's definition (integer masses of 2^-45) written down again: the device must equal it always.
//! The CPU adds f64 instead, so it may differ where its decision lies within `TOLERANCE` of a border; that such draws
//! are at a border is asserted, and that they are rare.

use lathe_conformance::draws::{self, GREEDY};
use lathe_conformance::{Operands, Rig, bytes};
use lathe_device::{
    Answer, Arch, DevicePtr, DrawParams, MAX_LOGIT_BIAS, MAX_STOP_IDS, StepTable, Symbols, WANT_LOGITS,
    WANT_SCORE,
};
use lathe_emulator::CheckOptions;
use lathe_kernels::IsaPath;
use lathe_kernels::sampling::{Context, Scratch, TopLogprob, cuda, draw, logprobs};
use lathe_numerics::{exp, philox};

/// Share of all weight that the two ways to add may differ by: 2^18 weights, each rounded to 2^-45.
const TOLERANCE: f64 = 1.0 / (1u64 << 28) as f64;

/// A row to draw, and its slot's state.
#[derive(Clone)]
struct Row {
    logits: Vec<f32>,
    params: DrawParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    bias: Vec<(u32, f32)>,
    stops: Vec<u32>,
    mask: Option<Vec<u32>>,
}

impl Row {
    fn new(logits: Vec<f32>) -> Self {
        let params = DrawParams { position: 0, seed: 0, ..GREEDY };
        let (prompt, output, bias, stops) = (vec![], vec![], vec![], vec![]);
        Row { logits, params, prompt, output, bias, stops, mask: None }
    }

    fn with(logits: &[f32], change: impl FnOnce(&mut DrawParams)) -> Self {
        let mut row = Row::new(logits.to_vec());
        change(&mut row.params);
        row
    }

    /// The CPU's draw.
    fn cpu(&self) -> i32 {
        let cx = Context {
            position: self.params.position,
            bias: &self.bias,
            suppressed: &self.stops,
            prompt: &self.prompt,
            output: &self.output,
            allowed: self.mask.as_deref(),
        };
        let mut scratch = Scratch::new(self.logits.len());
        draw(IsaPath::detect(), &self.logits, &draws::cpu(&self.params), &cx, &mut scratch)
            .map_or(-1, |id| id as i32)
    }

    /// How often each id was generated; bit 31: it is in the prompt.
    fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.logits.len()];
        self.prompt.iter().for_each(|id| counts[*id as usize] = 1 << 31);
        self.output.iter().for_each(|id| counts[*id as usize] += 1);
        counts
    }

    fn adjusted(&self) -> Vec<f32> {
        let (p, mut x) = (&self.params, self.logits.clone());
        self.bias.iter().for_each(|(id, b)| x[*id as usize] += b);
        self.stops.iter().for_each(|id| x[*id as usize] = f32::NEG_INFINITY);
        let penalised =
            p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
        for (id, count) in self.counts().into_iter().enumerate() {
            if penalised && count > 0 {
                x[id] = if x[id] > 0.0 { x[id] / p.repetition_penalty } else { x[id] * p.repetition_penalty };
                let outputs = count & !(1 << 31);
                if outputs > 0 {
                    x[id] -= p.frequency_penalty * outputs as f32 + p.presence_penalty;
                }
            }
            if self.mask.as_ref().is_some_and(|m| m[id / 32] >> (id % 32) & 1 == 0) {
                x[id] = f32::NEG_INFINITY;
            }
        }
        x
    }

    /// The device's definition: the id, and how near a decision was to going the other way, as a share of all weight.
    fn exact(&self) -> (i32, f64) {
        let (p, x) = (&self.params, self.adjusted());
        let mut best: Option<usize> = None;
        for (id, v) in x.iter().enumerate() {
            if *v > best.map_or(f32::NEG_INFINITY, |b| x[b]) {
                best = Some(id);
            }
        }
        let Some(best) = best else { return (-1, 1.0) };
        let max = x[best];
        if p.temperature.is_nan() || p.temperature <= 0.0 || max == f32::INFINITY {
            return (best as i32, 1.0);
        }
        let weight = |v: f32| {
            let e = exp::exp((v - max) / p.temperature);
            if e >= p.min_p { e } else { 0.0 }
        };
        let weights: Vec<f32> = x.iter().map(|v| weight(*v)).collect();
        let mut live: Vec<usize> = (0..x.len()).filter(|id| weights[*id] > 0.0).collect();
        live.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
        if p.top_k > 0 {
            live.truncate(p.top_k as usize);
        }
        let mass = |id: usize| (f64::from(weights[id]) * (1u64 << 45) as f64).round_ties_even() as u128;
        let mut margin = 1.0f64;
        if p.top_p < 1.0 {
            let total: u128 = live.iter().map(|id| mass(*id)).sum();
            // top_p as a fraction of 2^64, which every f32 from 2^-40 to 1 is.
            let share = (f64::from(p.top_p.max(0.0)) * 2f64.powi(64)) as u128;
            let goal = (share * total).div_ceil(1 << 64).max(1);
            let (mut sum, mut keep) = (0u128, 0);
            while sum < goal && keep < live.len() {
                let after = sum + mass(live[keep]);
                margin = margin.min(after.abs_diff(goal) as f64 / total as f64);
                sum = after;
                keep += 1;
            }
            live.truncate(keep);
        }
        live.sort_unstable();
        let total: u128 = live.iter().map(|id| mass(*id)).sum();
        let u = u128::from((philox::uniform(p.seed, p.choice, p.position) * 16_777_216.0) as u32);
        let goal = u * total;
        let mut sum = 0u128;
        for id in live {
            sum += mass(id) << 24;
            let distance = sum.abs_diff(goal) as f64 / (total << 24) as f64;
            margin = margin.min(distance);
            if sum > goal {
                return (id as i32, margin);
            }
        }
        (best as i32, margin)
    }
}

/// What a step left on the device.
struct Outcome {
    answers: Vec<Answer>,
    drawn: Vec<i32>,
    counts: Vec<Vec<u32>>,
}

struct Device {
    rig: Rig,
}

impl Device {
    fn new(check: bool) -> Self {
        Device { rig: Rig::chosen(check).unwrap() }
    }

    /// Checked, without launches that start early: the checker cannot tell whether several readers of a word, of whom
    /// it remembers one, were all of the launch before.
    fn in_order() -> Self {
        let sm_90 = Arch { major: 9, minor: 0 };
        Device { rig: Rig::emulated(sm_90, Some(CheckOptions::default()), None).unwrap() }
    }

    /// One step: row r has the slot that its parameters say, whose state is that of the slot's first row.
    fn step(&mut self, rows: &[Row], n_slots: usize) -> Outcome {
        let rig = &mut self.rig;
        let (r, vocab) = (rows.len(), rows[0].logits.len());
        let words = vocab.div_ceil(32);
        let mut counts = vec![0u32; n_slots * vocab];
        let mut bias = vec![0u32; n_slots * MAX_LOGIT_BIAS * 2];
        let mut stops = vec![0u32; n_slots * MAX_STOP_IDS];
        let mut masks = vec![0u32; r * words];
        let mut params = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let slot = row.params.slot as usize;
            counts[slot * vocab..][..vocab].copy_from_slice(&row.counts());
            for (j, (id, b)) in row.bias.iter().enumerate() {
                let at = (slot * MAX_LOGIT_BIAS + j) * 2;
                (bias[at], bias[at + 1]) = (*id, b.to_bits());
            }
            stops[slot * MAX_STOP_IDS..][..row.stops.len()].copy_from_slice(&row.stops);
            if let Some(mask) = &row.mask {
                masks[i * words..][..words].copy_from_slice(mask);
            }
            params.push(DrawParams {
                n_bias: row.bias.len() as u32,
                n_stops: row.stops.len() as u32,
                masked: u32::from(row.mask.is_some()),
                ..row.params
            });
        }
        let logits: Vec<f32> = rows.iter().flat_map(|row| row.logits.iter().copied()).collect();
        let logits = rig.f32s("logits", &logits).unwrap();
        let mut table = |name, bytes: &[u8]| rig.buffer(name, bytes).unwrap();
        let mut tables: Vec<(StepTable, DevicePtr)> = vec![
            (StepTable::DrawParams, table("params", &bytes::of_draw_params(&params))),
            (StepTable::Masks, table("masks", &bytes::of_u32(&masks))),
            (StepTable::Counts, table("counts", &bytes::of_u32(&counts))),
            (StepTable::Bias, table("bias", &bytes::of_u32(&bias))),
            (StepTable::Stops, table("stops", &bytes::of_u32(&stops))),
        ];
        tables.push((StepTable::Scores, rig.empty("scores", r * vocab * 4).unwrap()));
        tables.push((StepTable::Answers, rig.empty("answers", r * size_of::<Answer>()).unwrap()));
        tables.push((StepTable::Drawn, rig.empty("drawn", r * 4).unwrap()));
        let launches = cuda::launches(&cuda::Problem { vocab, max_batch: n_slots, max_rows: r }).unwrap();
        let step = Symbols {
            tokens: r as u32,
            sequences: n_slots as u32,
            rows: r as u32,
            decode: true,
            sm_count: 4,
        };
        let operands = Operands { inputs: vec![logits], outputs: vec![], tables: tables.clone() };
        rig.run(&launches, step, &operands).unwrap();
        let at = |table| tables.iter().find(|(t, _)| *t == table).unwrap().1;
        let answers = bytes::to_answers(&rig.read(at(StepTable::Answers), r * size_of::<Answer>()).unwrap());
        let drawn = rig.read_i32(at(StepTable::Drawn), r).unwrap();
        let counts = bytes::to_u32(&rig.read(at(StepTable::Counts), n_slots * vocab * 4).unwrap());
        for (_, at) in tables {
            rig.free(at).unwrap();
        }
        rig.free(logits).unwrap();
        Outcome { answers, drawn, counts: counts.chunks(vocab).map(<[u32]>::to_vec).collect() }
    }

    /// One step of rows in slots of their own, held against `exact` and the CPU; how many draws the CPU saw otherwise.
    fn check(&mut self, rows: &mut [Row]) -> usize {
        rows.iter_mut().enumerate().for_each(|(i, row)| row.params.slot = i as i32);
        let outcome = self.step(rows, rows.len());
        let mut others = 0;
        for (i, row) in rows.iter().enumerate() {
            let (id, margin) = row.exact();
            let (answer, cpu) = (&outcome.answers[i], row.cpu());
            let p = &row.params;
            assert_eq!(answer.id, id, "row {i}: {p:?}");
            assert_eq!(outcome.drawn[i], id, "row {i}");
            if cpu != id {
                assert!(margin <= TOLERANCE, "row {i}: device {id}, cpu {cpu}, margin {margin}: {p:?}");
                others += 1;
            }
            let mut counts = row.counts();
            if id >= 0 {
                counts[id as usize] += 1;
            }
            assert_eq!(outcome.counts[i], counts, "row {i}");
            check_logprobs(row, answer);
        }
        others
    }
}

fn check_logprobs(row: &Row, answer: &Answer) {
    let p = &row.params;
    for i in answer.n_top as usize..20 {
        assert!(answer.top_ids[i] == -1 && answer.top_logprobs[i].is_nan());
    }
    if p.n_top < 0 || p.want == WANT_LOGITS {
        assert!(answer.logprob.is_nan() && answer.rank == 0 && answer.n_top == 0);
        return;
    }
    let mut top = [TopLogprob::default(); 20];
    let want = logprobs(IsaPath::detect(), &row.logits, answer.id as u32, &mut top[..p.n_top as usize]);
    let near =
        |got: f32, want: f32| got == want || (got - want).abs() < 1e-4 || got.is_nan() && want.is_nan();
    assert!(near(answer.logprob, want.logprob), "logprob {} {}: {p:?}", answer.logprob, want.logprob);
    assert_eq!((answer.rank, answer.n_top as usize), (want.rank, want.n_top), "{p:?}");
    for (i, t) in top[..want.n_top].iter().enumerate() {
        assert_eq!(answer.top_ids[i], t.id as i32, "alternative {i}: {p:?}");
        assert!(near(answer.top_logprobs[i], t.logprob), "{} {}", answer.top_logprobs[i], t.logprob);
    }
}

/// A stream of choices.
struct Dice {
    seed: u64,
    n: u32,
}

impl Dice {
    fn unit(&mut self) -> f32 {
        self.n += 1;
        philox::uniform(self.seed, 1, self.n)
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    fn below(&mut self, n: usize) -> usize {
        ((f64::from(self.unit()) * n as f64) as usize).min(n - 1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn ids(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab) as u32).collect()
    }

    /// Logits with a few high ones, like a model's; sometimes coarse, so that many are equal, or with odd values.
    fn logits(&mut self, vocab: usize) -> Vec<f32> {
        let (scale, coarse) = (self.between(0.5, 12.0), self.one_in(3));
        let seed = self.seed * 1000 + u64::from(self.n);
        let mut x: Vec<f32> = (0..vocab)
            .map(|i| {
                let u = philox::uniform(seed, 0, i as u32).max(1e-7);
                let v = (-u.ln()).powf(1.3) * scale * 0.5 - 8.0;
                if coarse { v.round() } else { v }
            })
            .collect();
        if self.one_in(6) {
            let odd = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, -f32::MAX];
            for value in odd {
                let id = self.below(vocab);
                x[id] = value;
            }
        }
        x
    }

    fn row(&mut self, vocab: usize) -> Row {
        let mut row = Row::new(self.logits(vocab));
        let p = &mut row.params;
        p.seed = u64::from(self.seed as u32) << 32 | u64::from(self.n);
        p.position = self.below(100_000) as u32;
        p.choice = self.below(4) as u32;
        p.temperature = if self.one_in(8) { 0.0 } else { self.between(0.05, 2.5) };
        if self.one_in(2) {
            p.top_k = [1, 2, 20, 50, 400, 5000][self.below(6)];
        }
        if self.one_in(2) {
            p.top_p = [0.0, 0.05, 0.5, 0.9, 0.95, 0.999][self.below(6)];
        }
        if self.one_in(3) {
            p.min_p = [0.001, 0.05, 0.3, 1.0, 1.5][self.below(5)];
        }
        if self.one_in(2) {
            p.n_top = self.below(21) as i32;
        }
        if self.one_in(3) {
            p.repetition_penalty = self.between(0.8, 1.6);
            if self.one_in(2) {
                p.presence_penalty = self.between(-1.0, 1.0);
                p.frequency_penalty = self.between(-0.5, 0.5);
            }
        }
        let (n_prompt, n_output) = (self.below(60), self.below(60));
        row.prompt = self.ids(n_prompt, vocab);
        row.output = self.ids(n_output, vocab);
        if self.one_in(4) {
            // With repetitions, which add up in their order.
            row.bias =
                self.ids(12, vocab.min(40)).into_iter().map(|id| (id, self.between(-5.0, 5.0))).collect();
        }
        if self.one_in(4) {
            row.stops = self.ids(6, vocab.min(40));
        }
        if self.one_in(5) {
            let keep = self.between(0.0, 1.0);
            let mut word = || (0..32).fold(0u32, |w, bit| w | u32::from(self.unit() < keep) << bit);
            row.mask = Some((0..vocab.div_ceil(32)).map(|_| word()).collect());
        }
        row
    }
}

#[test]
fn random_rows_draw_what_the_cpu_draws() {
    let mut device = Device::new(false);
    let mut others = 0;
    for (vocab, rows) in [(1, 20), (2, 40), (31, 120), (611, 300), (5000, 120), (20_001, 24)] {
        let mut dice = Dice { seed: vocab as u64, n: 0 };
        let mut rows: Vec<Row> = (0..rows).map(|_| dice.row(vocab)).collect();
        for chunk in rows.chunks_mut(60) {
            others += device.check(chunk);
        }
    }
    // 624 draws.
    assert!(others <= 1, "{others} draws differ from the CPU's");
}

#[test]
fn a_real_vocabulary() {
    let mut device = Device::new(false);
    let mut dice = Dice { seed: 128_256, n: 0 };
    let mut rows: Vec<Row> = (0..12).map(|_| dice.row(128_256)).collect();
    rows[0].params.temperature = 0.0;
    rows[1] = Row::with(&rows[1].logits, |p| (p.temperature, p.top_p, p.n_top) = (0.7, 0.95, 20));
    rows[2] = Row::with(&rows[2].logits, |p| (p.temperature, p.top_k) = (1.0, 50));
    rows[3] = Row::with(&rows[3].logits, |p| p.temperature = 1.0);
    assert!(device.check(&mut rows) <= 1);
}

#[test]
fn a_checked_run_finds_nothing_to_report() {
    let mut device = Device::new(true);
    for vocab in [31, 612] {
        let mut dice = Dice { seed: 9, n: 0 };
        let mut rows: Vec<Row> = (0..16).map(|_| dice.row(vocab)).collect();
        assert!(device.check(&mut rows) <= 1);
    }
}

#[test]
fn corners() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let all = |x: &[f32]| -> Vec<Row> {
        let hot = |p: &mut DrawParams| (p.temperature, p.seed, p.n_top) = (0.8, 3, 20);
        let with = |f: &dyn Fn(&mut DrawParams)| {
            Row::with(x, |p| {
                hot(p);
                f(p);
            })
        };
        vec![
            Row::with(x, |p| p.n_top = 5),
            with(&|_| ()),
            with(&|p| p.top_k = 2),
            with(&|p| p.top_p = 0.5),
            with(&|p| p.min_p = nan),
            with(&|p| p.top_p = nan),
            with(&|p| p.temperature = nan),
            with(&|p| p.temperature = inf),
            with(&|p| p.temperature = 1e-30),
            with(&|p| (p.temperature, p.top_k, p.top_p) = (1e-40, 3, 0.3)),
            with(&|p| (p.top_k, p.top_p, p.min_p) = (3, 1e-30, 0.1)),
            with(&|p| (p.repetition_penalty, p.presence_penalty) = (0.0, inf)),
        ]
    };
    let mut device = Device::new(false);
    for x in [
        vec![nan; 9],
        vec![-inf; 9],
        vec![nan, -inf, -3.0, nan, -3.0, -inf, nan, 0.0, -0.0],
        vec![1.0, inf, 2.0, inf, nan, -inf, 0.0, 0.0, 0.0],
        vec![0.0, -0.0, 0.0, -0.0, 0.0, -0.0, -0.0, 0.0, -1.0],
        vec![2.5; 9],
        vec![9e4, -f32::MAX, 9e4, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    ] {
        let mut rows = all(&x);
        rows.iter_mut().for_each(|row| row.prompt = vec![1, 3]);
        assert_eq!(device.check(&mut rows), 0);
    }
}

#[test]
fn nothing_allowed_draws_nothing() {
    let mut device = Device::new(true);
    let x: Vec<f32> = (0..700).map(|i| (i % 7) as f32).collect();
    let mut rows =
        vec![Row::new(x.clone()), Row::with(&x, |p| (p.temperature, p.n_top) = (1.0, 3)), Row::new(x)];
    rows[0].mask = Some(vec![0; 22]);
    rows[1].mask = Some(vec![0; 22]);
    rows[2].mask = Some(vec![u32::MAX; 22]);
    assert_eq!(device.check(&mut rows), 0);
    assert_eq!(rows[0].exact().0, -1);
    assert_eq!(rows[2].exact().0, 6);
}

/// More equal logits than a list of candidates holds, so that the cut is narrowed by key and then by id.
#[test]
fn cuts_through_thousands_of_ties() {
    let mut device = Device::new(false);
    for (vocab, top) in [(6000, 1), (20_000, 3)] {
        let mut x = vec![1.0f32; vocab];
        x[..top].fill(2.0);
        x[vocab - 1] = 2.0;
        let mut rows = Vec::new();
        for (seed, k) in [2, top as u32 + 1, 1500, 4097, vocab as u32 - 1].into_iter().enumerate() {
            for p in [1.0, 0.37, 0.9999] {
                rows.push(Row::with(&x, |d| {
                    (d.temperature, d.top_k, d.top_p, d.seed, d.n_top) = (3.0, k, p, seed as u64, 20);
                }));
            }
        }
        // Far below the maximum, where one bin holds everything.
        let mut low = x.clone();
        low[77] = 60.0;
        rows.push(Row::with(&low, |d| (d.temperature, d.top_k, d.n_top) = (1.0, 3000, 20)));
        rows.push(Row::with(&low, |d| (d.temperature, d.top_p) = (30.0, 0.8)));
        assert_eq!(device.check(&mut rows), 0);
    }
}

#[test]
fn scores_logits_and_rows_of_one_slot() {
    let mut device = Device::in_order();
    let x: Vec<f32> = (0..300).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
    let slot = |slot: i32, f: &dyn Fn(&mut DrawParams)| {
        Row::with(&x, |p| {
            p.slot = slot;
            p.repetition_penalty = 1.5;
            f(p);
        })
    };
    let mut rows = vec![
        slot(1, &|_| ()),
        slot(0, &|p| (p.want, p.score_id, p.n_top) = (WANT_SCORE, 123, 4)),
        slot(1, &|p| p.n_top = 0),
        slot(0, &|p| (p.want, p.n_top) = (WANT_LOGITS, 4)),
        slot(1, &|p| (p.temperature, p.seed) = (1.0, 8)),
        slot(2, &|p| (p.want, p.score_id) = (WANT_SCORE, 5)),
    ];
    for row in &mut rows {
        row.output = vec![3, 3];
    }
    let outcome = device.step(&rows, 3);
    // Each row of slot 1 saw the counts before the step.
    for r in [0, 2, 4] {
        assert_eq!(outcome.answers[r].id, rows[r].exact().0);
    }
    assert_eq!(outcome.answers[0].id, outcome.answers[2].id);
    let mut counts = rows[0].counts();
    [0, 2, 4].iter().for_each(|r| counts[outcome.answers[*r].id as usize] += 1);
    assert_eq!(outcome.counts, [rows[0].counts(), counts, rows[0].counts()]);
    let ids: Vec<i32> = outcome.answers.iter().map(|a| a.id).collect();
    assert_eq!([ids[1], ids[3], ids[5]], [123, -1, 5]);
    assert_eq!(outcome.drawn, [ids[0], -1, ids[2], -1, ids[4], -1]);
    rows.iter().zip(&outcome.answers).for_each(|(row, answer)| check_logprobs(row, answer));
}
