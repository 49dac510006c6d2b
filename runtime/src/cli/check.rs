//! `runtime check`: will this plan run here, is it whole, does it compute what it should?

use clap::ArgMatches;
use lathe_diagnostics::{Diagnostic, Exit, format_bytes};
use lathe_plan::Plan;
use serde_json::{Value, json};

use super::console::print;
use super::direct::each_logits;
use super::faults::{self, Outcome};
use super::load::{self, EngineSettings};
use super::{knobs, path, resolve};

/// Program that stands in for the decoder where the whole model would make the test too long.
const SELF_TEST_PROGRAM: &str = "self_test";

/// Checks fit, hashes, tokenizer and self-test.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve(matches, &[knobs::ENGINE], None)?;
    let engine_settings = EngineSettings::new(&settings)?;
    let as_json = matches.get_flag("json");
    let say = |line: String| if as_json { Ok(()) } else { print(&format!("{line}\n")) };
    let plan = load::plan(&path(matches, "plan"))?;
    let card = plan.card();
    say(format!("plan      {} ({}), {}", card.name, card.architecture, format_bytes(plan.file_bytes())))?;
    let report = load::memory_report(&plan, &engine_settings);
    for line in report.iter().map(ToString::to_string).collect::<String>().lines() {
        say(format!("memory    {line}"))?;
    }
    let engine = load::engine(&plan, &engine_settings)?;
    let info = engine.info().clone();
    drop(engine);
    if let Some(report) = report.filter(|r| r.allocated() < info.memory.allocated()) {
        let (taken, said) = (format_bytes(info.memory.allocated()), format_bytes(report.allocated()));
        return Err(Diagnostic::new(
            Exit::Bug,
            format!("memory: the engine took {taken}, the report says {said}"),
        ));
    }
    for line in info.memory.lines.iter().filter(|l| l.measured) {
        say(format!("measured  {} {}", line.name, format_bytes(line.bytes)))?;
    }
    say(format!("fits      path {}, {} threads", info.path, info.threads))?;
    let blocks = info.groups.iter().map(|g| match g.window {
        None => g.n_blocks.to_string(),
        Some(window) => format!("{} (window {window})", g.n_blocks),
    });
    let blocks = blocks.collect::<Vec<_>>().join(" and ");
    say(format!(
        "limits    {} sequences, {} tokens a step, {} tokens a sequence, {blocks} KV blocks of {}",
        info.max_batch, info.max_num_tokens, info.max_seq_len, info.block_tokens
    ))?;
    plan.verify_weights(|_| {}).map_err(faults::plan)?;
    say(format!("hashes    {} weights are intact", plan.weights().len()))?;
    let text = load::text(&plan)?.0;
    say(match &text {
        Some(text) => {
            let chat = if text.has_chat_template() { "a chat template" } else { "no chat template" };
            format!("text      {} tokens, {chat}", text.n_tokens())
        }
        None => "text      no tokenizer: token ids only".to_owned(),
    })?;
    let outcome = self_test(&plan, &engine_settings)?;
    match &outcome {
        Some(result) => say(format!(
            "self-test passed: {} logits, largest difference {:.3e}, allowed {:.3e}",
            result.n_logits, result.largest, result.tolerance
        )),
        None => say("self-test none in this plan".to_owned()),
    }?;
    if as_json {
        let lines = info.memory.lines.iter();
        let memory: Vec<Value> = lines
            .map(|l| json!({"name": l.name, "bytes": l.bytes, "mapped": l.mapped, "measured": l.measured}))
            .collect();
        let result = json!({
            "name": card.name, "path": info.path, "threads": info.threads, "memory": memory,
            "allocated_bytes": info.memory.allocated(), "weights": plan.weights().len(), "tokenizer": text.is_some(),
            "self_test": outcome.map(|r| json!({
                "logits": r.n_logits, "largest_difference": r.largest, "tolerance": r.tolerance,
            })),
        });
        print(&format!("{result}\n"))?;
    }
    Ok(Exit::Ok)
}

struct Passed {
    n_logits: usize,
    largest: f32,
    tolerance: f32,
}

/// Answers the plan's question with the real engine.
///
/// # Errors
/// The answer is off, which is a fault of the plan's bytes or of this build.
fn self_test(plan: &std::sync::Arc<Plan>, settings: &EngineSettings) -> Outcome<Option<Passed>> {
    let Some(test) = plan.self_test() else { return Ok(None) };
    let mut settings = settings.clone();
    if plan.program(SELF_TEST_PROGRAM).is_some() {
        settings.program = SELF_TEST_PROGRAM;
    }
    let mut engine = load::engine(plan, &settings)?;
    let (mut largest, mut worst) = (0.0f32, None);
    each_logits(engine.as_mut(), &test.token_ids, |position, row| {
        let Some(at) = test.positions.iter().position(|p| *p as usize == position) else { return };
        let expected = test.logits.chunks(test.ids.len().max(1)).nth(at).unwrap_or_default();
        for (&id, &want) in test.ids.iter().zip(expected) {
            let got = row.get(id as usize).copied().unwrap_or(f32::NAN);
            let difference = (got - want).abs();
            // A NaN is the worst difference of all, and every comparison with it is false.
            if difference.is_nan() || difference > largest {
                largest = if difference.is_nan() { f32::INFINITY } else { difference };
                worst = Some((position, id, got, want));
            }
        }
    })
    .map_err(faults::engine)?;
    match worst {
        Some((position, id, got, want)) if largest > test.tolerance => Err(Diagnostic::new(
            Exit::Bug,
            format!("self-test: logit {id} at position {position} is {got}, not {want}"),
        )
        .why(format!("path {}, allowed difference {:e}", engine.info().path, test.tolerance))
        .remedy("try --isa scalar; if that passes, report this machine's CPU model")),
        _ => Ok(Some(Passed { n_logits: test.logits.len(), largest, tolerance: test.tolerance })),
    }
}
