//! The whole demo plan: logits beside the CPU engine's, greedy answers, one answer alone and in company, the same bits with
//! and without graphs.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lathe_api::Engine;
use lathe_compiler::self_test::tolerance;
use lathe_cuda::CudaOptions;
use lathe_numerics::DType;
use lathe_tests::answers::mixed;
use lathe_tests::drive::{self, Answer, Conditions, Request, run as drive_run, token};
use serde_json::{Map, Value, json};

use crate::Bench;
use crate::requests::logits;

/// The largest id of a row of logits, and how far the second is below it.
fn best(row: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    (order[0], row[order[0]] - row[order[1]])
}

fn all(engine: &mut dyn Engine, requests: &[Request], conditions: &Conditions) -> Result<Vec<Answer>> {
    let order: Vec<usize> = (0..requests.len()).rev().collect();
    Ok(drive_run(engine, requests, &order, conditions)?.0)
}

fn alone(engine: &mut dyn Engine, requests: &[Request]) -> Result<Vec<Answer>> {
    let one = |r: &Request| {
        let (mut answers, _) = drive_run(engine, std::slice::from_ref(r), &[0], &Conditions::default())?;
        Ok(answers.remove(0))
    };
    requests.iter().map(one).collect()
}

fn same(a: &[Answer], b: &[Answer]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}

/// # Errors
/// The engines', and the first thing that is not as it must be; what was found before stays in the file.
pub fn run(bench: &Bench, found: &mut Map<String, Value>) -> Result<()> {
    let plan = bench.plan("demo");
    let started = Instant::now();
    let mut device = bench.engine(&plan, &CudaOptions::default())?;
    found.insert("load_s".into(), json!(started.elapsed().as_secs_f64()));
    found.insert("path".into(), json!(device.info().path));
    let mut cpu = drive::load(&plan, if bench.emulator { 2 } else { 8 }, None)?;
    let mut wrong = Vec::new();

    let vocab = device.info().vocab_size as usize;
    let n = if bench.emulator { 12 } else { 400 };
    let ids: Vec<u32> = (0..n).map(|i| token(i, vocab as u32)).collect();
    let (want, got) = (logits(&mut cpu, &ids)?, logits(&mut device, &ids)?);
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst =
        want.iter().zip(&got).fold(0f32, |m, (w, g)| if g.is_nan() { g.abs() } else { m.max((w - g).abs()) });
    let allowed = tolerance(DType::BF16) * largest;
    let rows = || want.chunks(vocab).zip(got.chunks(vocab));
    let agree = rows().filter(|(w, g)| best(w).0 == best(g).0).count();
    let clear = rows().filter(|(w, g)| best(w).1 > 4.0 * allowed && best(w).0 != best(g).0).count();
    found.insert(
        "logits".into(),
        json!({
            "positions": n, "largest": largest, "worst_difference": worst, "allowed": allowed,
            "same_best_id": agree, "other_best_id_beyond_doubt": clear,
        }),
    );
    if !(worst <= allowed && clear == 0 && got.iter().all(|x| x.is_finite())) {
        wrong.push("logits");
    }

    let greedy: Vec<Request> = (0..if bench.emulator { 2 } else { 16 })
        .map(|i| Request {
            prompt: (0..5 + 9 * i).map(|p| token(i * 1000 + p, vocab as u32)).collect(),
            max_new: if bench.emulator { 3 } else { 48 },
            ..Request::default()
        })
        .collect();
    let (by_cpu, by_device) = (alone(&mut cpu, &greedy)?, alone(&mut device, &greedy)?);
    let equal = by_cpu.iter().zip(&by_device).filter(|(a, b)| a.tokens == b.tokens).count();
    let prefix =
        |(a, b): (&Answer, &Answer)| a.tokens.iter().zip(&b.tokens).take_while(|(a, b)| a == b).count();
    let prefixes: Vec<usize> = by_cpu.iter().zip(&by_device).map(prefix).collect();
    found.insert("greedy".into(), json!({ "requests": greedy.len(), "same_as_cpu": equal, "tokens_before_the_first_difference": prefixes }));

    let mut requests: Vec<Request> = mixed().into_iter().take(if bench.emulator { 3 } else { 64 }).collect();
    if bench.emulator {
        for r in &mut requests {
            r.prompt.truncate(20);
            r.max_new = r.max_new.min(2);
        }
    }
    let want = alone(&mut device, &requests)?;
    let mut company = Vec::new();
    for (name, conditions) in [
        ("all at once", Conditions::default()),
        ("chunks of 7", Conditions { chunk: Some(7), arrivals_per_step: 3, ..Conditions::default() }),
        ("few blocks", Conditions { n_blocks: Some(17), ..Conditions::default() }),
    ] {
        let got = all(&mut device, &requests, &conditions)?;
        company.push(json!({ "how": name, "requests": requests.len(), "same_as_alone": same(&want, &got) }));
        if same(&want, &got) != requests.len() {
            wrong.push("one answer");
        }
    }
    found.insert("company".into(), json!(company));
    drop(device);

    let mut direct = bench.engine(&plan, &CudaOptions { graphs: false, ..CudaOptions::default() })?;
    let got = alone(&mut direct, &requests)?;
    found.insert(
        "without_graphs".into(),
        json!({ "requests": requests.len(), "same_bits": same(&want, &got) }),
    );
    if same(&want, &got) != requests.len() {
        wrong.push("graphs and direct launches");
    }
    drop(direct);

    let on = if bench.emulator { "emulator" } else { "cuda" };
    let plan = plan.to_str().context("the plan's path is not text")?;
    let said = Command::new(bench.kit.join("bin/runtime")).args(["check", plan, "--device", on]).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(4000).collect::<String>();
    found.insert(
        "runtime_check".into(),
        json!({ "code": said.status.code(), "said": text(&said.stdout), "log": text(&said.stderr) }),
    );
    if !said.status.success() {
        wrong.push("runtime check");
    }
    ensure!(wrong.is_empty(), "not as it must be: {wrong:?}");
    Ok(())
}
