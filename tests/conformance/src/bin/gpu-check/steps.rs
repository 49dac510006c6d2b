//! Whole models of made-up weights: load, memory, prefill, decode steps by batch.

use std::time::{Duration, Instant};

use anyhow::Result;
use lathe_api::{Engine, Slot, SlotState, StepOutput, StepPlan, TokenSource, Wanted};
use lathe_cuda::CudaOptions;
use lathe_tests::drive::token;
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::requests::part;
use crate::timing::Times;

/// What is run of a plan.
struct Sizes {
    prompt: u32,
    steps: u32,
    batches: &'static [u32],
}

/// Prefills one sequence per slot, a chunk of one sequence per step; seconds per step with its tokens.
fn prefill(engine: &mut dyn Engine, n: u32, prompt: u32, room: u32) -> Result<Vec<(usize, f64)>> {
    let info = engine.info().clone();
    let mut out = StepOutput::default();
    let mut times = Vec::new();
    for slot in 0..n {
        engine.bind(Slot(slot), SlotState::default())?;
        for start in (0..prompt).step_by(info.max_num_tokens as usize) {
            let end = prompt.min(start + info.max_num_tokens);
            let ids = (start..end).map(|p| token(u64::from(slot * prompt + p), info.vocab_size));
            let tokens: Vec<TokenSource> = ids.map(TokenSource::Literal).collect();
            let mut step = StepPlan::with_capacity(0, 0, 0, 0, engine.info().groups.len());
            part(engine, &mut step, slot, room, start, &tokens, Wanted::Sample);
            let started = Instant::now();
            let ticket = engine.submit(&step)?;
            engine.sample(ticket, None)?;
            engine.collect(ticket, &mut out)?;
            times.push((tokens.len(), started.elapsed().as_secs_f64()));
        }
    }
    Ok(times)
}

/// Decode steps of slots `0..batch` from position `start`; with `ahead` a step is submitted before the one before is
/// collected. Seconds from one step's answers to the next one's.
fn decode(
    engine: &mut dyn Engine,
    batch: u32,
    start: u32,
    steps: u32,
    room: u32,
    ahead: bool,
) -> Result<Times> {
    let mut out = StepOutput::default();
    let (mut seconds, mut before, mut last) = (Vec::new(), None, Instant::now());
    for i in 0..steps {
        let mut step = StepPlan::with_capacity(0, 0, 0, 0, engine.info().groups.len());
        for slot in 0..batch {
            let source = if i == 0 { TokenSource::Literal(slot) } else { TokenSource::Row(slot) };
            part(engine, &mut step, slot, room, start + i, &[source], Wanted::Sample);
        }
        let ticket = engine.submit(&step)?;
        engine.sample(ticket, None)?;
        if let Some(before) = before.replace(ticket).filter(|_| ahead) {
            engine.collect(before, &mut out)?;
        }
        if !ahead {
            engine.collect(ticket, &mut out)?;
            before = None;
        }
        seconds.push(last.elapsed().as_secs_f64());
        last = Instant::now();
    }
    if let Some(before) = before {
        engine.collect(before, &mut out)?;
    }
    // The first steps fill the pipe.
    Times::new(seconds.split_off(2.min(seconds.len().saturating_sub(1))))
}

/// Waits for a plan that is still being made: `making` beside it says that one is.
fn wait_for(bench: &Bench, name: &str) {
    let plan = bench.plan(name);
    while !plan.is_file() && plan.with_file_name("making").exists() && !bench.out_of_time() {
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn model(bench: &Bench, name: &str, sizes: &Sizes) -> Result<Value> {
    wait_for(bench, name);
    let started = Instant::now();
    let mut engine = bench.engine(&bench.plan(name), &CudaOptions::default())?;
    let load_s = started.elapsed().as_secs_f64();
    let info = engine.info().clone();
    let line =
        |l: &lathe_api::MemoryLine| json!({ "name": l.name, "bytes": l.bytes, "measured": l.measured });
    let memory: Vec<Value> = info.memory.lines.iter().map(line).collect();
    let free_bytes = engine.free_bytes()?;
    let room = sizes.prompt + sizes.steps * 2 * sizes.batches.len() as u32;
    let fits = info.places(room).min(info.max_batch);
    let slots = sizes.batches.iter().copied().filter(|b| *b <= fits).max().unwrap_or(1);

    let prefills = prefill(&mut engine, slots, sizes.prompt, room)?;
    let tokens: usize = prefills.iter().map(|(tokens, _)| tokens).sum();
    let seconds: f64 = prefills.iter().map(|(_, seconds)| seconds).sum();
    let by_step = Times::new(prefills.iter().map(|(_, seconds)| *seconds).collect())?;
    let mut decodes = Vec::new();
    let mut start = sizes.prompt;
    for batch in sizes.batches.iter().copied().filter(|b| *b <= slots) {
        for ahead in [false, true] {
            let times = decode(&mut engine, batch, start, sizes.steps, room, ahead)?;
            start += sizes.steps;
            let mut row = times.report();
            row["batch"] = json!(batch);
            row["context"] = json!(start);
            row["steps_ahead"] = json!(u32::from(ahead));
            row["tokens_per_s"] = json!(f64::from(batch) / times.median());
            decodes.push(row);
        }
    }
    Ok(json!({
        "load_s": load_s, "path": info.path, "memory": memory, "free_bytes_after_load": free_bytes,
        "n_blocks": info.groups.iter().map(|g| g.n_blocks).collect::<Vec<_>>(),
        "prefill": { "tokens": tokens, "tokens_per_s": tokens as f64 / seconds, "step": by_step.report(),
            "prompt": sizes.prompt },
        "decode": decodes,
    }))
}

/// Plans that are there: `tools/gpu-check` says which were made.
///
/// # Errors
/// The first model's that failed; the others are in the file.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    let sizes = Sizes { prompt: 1024, steps: 32, batches: &[1, 8, 32, 128] };
    let tiny = Sizes { prompt: 9, steps: 3, batches: &[1, 2] };
    let names: &[&str] = if bench.emulator { &["demo"] } else { &["demo", "160m", "1b", "8b"] };
    let mut first = None;
    for name in names {
        if bench.out_of_time() {
            found.insert((*name).into(), json!({ "error": "not begun: the time was up" }));
            continue;
        }
        let demo = Sizes { prompt: 256, ..sizes };
        let of = if bench.emulator {
            &tiny
        } else if *name == "demo" {
            &demo
        } else {
            &sizes
        };
        let value = model(bench, name, of).unwrap_or_else(|error| {
            let text = format!("{error:#}");
            first.get_or_insert(error.context(*name));
            json!({ "error": text })
        });
        found.insert((*name).into(), value);
    }
    first.map_or(Ok(()), Err)
}
