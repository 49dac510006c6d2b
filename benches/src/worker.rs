//! Our engine behind the line protocol of `peer.rs`: loads once, then runs one case per line of standard input.

use std::io::{BufRead, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lathe_api::{
    Engine, SampleRow, SamplingParams, SeqStep, Slot, SlotState, StepOutput, StepPlan, TokenSource, Wanted,
};
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_kernels::Isa;
use lathe_plan::Plan;

use crate::cases::{Case, Extra};
use crate::machine::{Roof, WAYS};
use crate::peer::{Hello, Timing};
use crate::trace::Trace;

/// An engine with the buffers of its steps.
struct Bench {
    engine: CpuEngine,
    step: StepPlan,
    out: StepOutput,
    last: Vec<u32>,
    /// Cases whose prompts lie in the cache.
    kept: Vec<Case>,
}

impl Bench {
    fn load(plan: Arc<Plan>, threads: usize, isa: Option<Isa>) -> Result<Self> {
        let engine = CpuEngine::load(plan, &CpuOptions { threads, isa, ..CpuOptions::default() })?;
        engine.warm()?;
        let info = engine.info();
        let (t, s) = (info.max_num_tokens as usize, info.max_batch as usize);
        let blocks = s * info.max_seq_len.div_ceil(info.block_tokens) as usize;
        let step = StepPlan::with_capacity(t, s, s, blocks, info.groups.len());
        let out = StepOutput::with_capacity(s);
        Ok(Bench { engine, step, out, last: Vec::with_capacity(s), kept: vec![] })
    }

    fn fits(&self, case: &Case) -> Result<()> {
        let info = self.engine.info();
        ensure!(
            case.sequences <= info.max_batch
                && case.prompt + case.new <= info.max_seq_len
                && case.sequences <= info.places(case.prompt + case.new),
            "the case does not fit the plan's limits: {case:?}"
        );
        Ok(())
    }

    /// One step in which each of `sequences` has `q_len` rows up to position `kv_len` and its last row is sampled:
    /// rows of its prompt, or its last token.
    fn step(&mut self, case: &Case, sequences: Range<u32>, q_len: u32, kv_len: u32) -> Result<()> {
        let info = self.engine.info();
        let room = case.prompt + case.new;
        // Nothing else reaches the pool's end.
        let base = if case.extra == Extra::Kept { info.places(room) - case.sequences } else { 0 };
        self.step.clear();
        for (i, s) in (0..).zip(sequences) {
            if kv_len <= case.prompt {
                let rows = case.prompt(s).take(kv_len as usize).skip((kv_len - q_len) as usize);
                self.step.tokens.extend(rows.map(TokenSource::Literal));
            } else {
                self.step.tokens.push(TokenSource::Literal(self.last[s as usize]));
            }
            self.step.positions.extend(kv_len - q_len..kv_len);
            let (blocks_start, blocks_len) = self.step.push_own_blocks(info, base + s, room, kv_len - q_len);
            self.step.seqs.push(SeqStep {
                slot: Slot(s),
                q_start: i * q_len,
                q_len,
                kv_len,
                blocks_start,
                blocks_len,
                adapter: None,
            });
            if kv_len >= case.prompt {
                self.step.rows.push(SampleRow {
                    row: (i + 1) * q_len - 1,
                    slot: Slot(s),
                    position: kv_len,
                    wanted: Wanted::Sample,
                    params: SamplingParams::default(),
                    top_logprobs: None,
                    suppress_stops: false,
                });
            }
        }
        let ticket = self.engine.submit(&self.step)?;
        self.engine.sample(ticket, None)?;
        self.engine.collect(ticket, &mut self.out)?;
        for (row, out) in self.step.rows.iter().zip(&self.out.rows) {
            self.last[row.slot.0 as usize] = out.token.id;
        }
        Ok(())
    }

    /// All prompts in as few steps as the plan's largest one allows.
    fn prompts(&mut self, case: &Case) -> Result<()> {
        let most = self.engine.info().max_num_tokens;
        if case.prompt > most {
            for s in 0..case.sequences {
                for start in (0..case.prompt).step_by(most as usize) {
                    let end = case.prompt.min(start + most);
                    self.step(case, s..s + 1, end - start, end)?;
                }
            }
            return Ok(());
        }
        let together = most / case.prompt;
        for s in (0..case.sequences).step_by(together as usize) {
            self.step(case, s..case.sequences.min(s + together), case.prompt, case.prompt)?;
        }
        Ok(())
    }

    fn run(&mut self, case: &Case, trace: Option<&Trace>) -> Result<Timing> {
        self.fits(case)?;
        self.last.clear();
        self.last.resize(case.sequences as usize, 0);
        for s in 0..case.sequences {
            self.engine.bind(Slot(s), SlotState::default())?;
        }
        let show = |what: &str| trace.map_or(Ok(()), |t| t.take(&mut std::io::stderr().lock(), what));
        show("before")?;
        let start = Instant::now();
        if !self.kept.contains(case) {
            self.prompts(case)?;
        }
        if case.extra == Extra::Kept && !self.kept.contains(case) {
            self.kept.push(*case);
        }
        let prefill_s = start.elapsed().as_secs_f64();
        show(&format!("prefill {}x{}, {:.1} ms", case.sequences, case.prompt, prefill_s * 1e3))?;
        let mut reads = (case.extra == Extra::Reads).then(Reads::new);
        let mut decode_s = 0.0;
        for i in 1..=case.new {
            let start = Instant::now();
            self.step(case, 0..case.sequences, 1, case.prompt + i)?;
            decode_s += start.elapsed().as_secs_f64();
            if let Some(reads) = &mut reads {
                reads.next(self.engine.info().threads);
            }
        }
        show(&format!("{} steps of {}, {:.1} ms", case.new, case.sequences, decode_s * 1e3))?;
        let read_gb_s = reads.map(|r| r.fastest());
        Ok(Timing { prefill_s, decode_s, last: self.last.clone(), read_gb_s })
    }
}

/// Bytes of one reading between steps: some milliseconds, far beyond any cache.
const READ_BYTES: usize = 256 << 20;

/// Readings of memory in all ways by turns.
struct Reads {
    roof: Roof,
    /// Seconds and readings by way.
    ways: [(f64, u32); WAYS],
    turn: usize,
}

impl Reads {
    fn new() -> Self {
        Reads { roof: Roof::new(READ_BYTES), ways: [(0.0, 0); WAYS], turn: 0 }
    }

    fn next(&mut self, threads: usize) {
        let way = &mut self.ways[self.turn % WAYS];
        way.0 += self.roof.read(self.turn % WAYS, threads);
        way.1 += 1;
        self.turn += 1;
    }

    /// GB/s of the fastest way, over all its readings.
    fn fastest(&self) -> f64 {
        self.ways.iter().map(|(s, n)| self.roof.bytes() * f64::from(*n) / s / 1e9).fold(0.0, f64::max)
    }
}

/// Serves cases until standard input ends.
pub fn serve(plan: &Path, threads: usize, isa: Option<Isa>, trace: Option<&Trace>) -> Result<()> {
    let start = Instant::now();
    let plan = Arc::new(Plan::open(plan)?);
    let mut bench = Bench::load(plan.clone(), threads, isa)?;
    let load_s = start.elapsed().as_secs_f64();
    let reply = |json: String| -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{json}")?;
        Ok(out.flush()?)
    };
    reply(serde_json::to_string(&Hello {
        name: "lathe".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        build: bench.engine.info().path.clone(),
        load_s,
    })?)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let case = Case::parse(&line).with_context(|| format!("not a case: {line}"))?;
        reply(serde_json::to_string(&bench.run(&case, trace)?)?)?;
    }
    Ok(())
}
