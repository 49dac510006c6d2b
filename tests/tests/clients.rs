//! Real clients against the real server, and the demo model's scores.

use std::path::{Path, PathBuf};
use std::process::Command;

use lathe_tests::server::Server;
use lathe_tests::{drive, fixture, root};
use serde_json::{Value, json};

fn demo_plan(dir: &tempfile::TempDir) -> PathBuf {
    let plan = dir.path().join("demo.plan");
    let model = root().join("tools/demo-model");
    drive::compile(&["--model", model.to_str().unwrap(), "--target", "cpu,sm_80"], &plan).unwrap();
    plan
}

/// Runs the openai package against a plan's server; an empty list is all checks.
fn openai(plan: &Path, model: &str, checks: &[&str]) {
    let server = Server::start(plan, &[]).unwrap();
    let python = std::env::var_os("LATHE_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python)
        .arg(root().join("tests/clients/openai_client.py"))
        .args([&format!("http://{}/v1", server.address), model])
        .args(checks)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_openai_package_is_served() {
    let dir = tempfile::tempdir().unwrap();
    openai(&demo_plan(&dir), "demo", &[]);
}

/// A checkpoint as Llama 3.2 is published, random weights: what does not depend on what it says.
#[test]
fn a_llama_3_2_checkpoint_goes_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("llama.plan");
    drive::compile(&["--model", fixture("llama32-like").to_str().unwrap()], &plan).unwrap();
    let checks = [
        "models_are_listed",
        "max_tokens_end_with_length",
        "prompts_may_be_lists",
        "many_concurrent_streams",
    ];
    openai(&plan, "llama", &checks);
}

/// Exact match on held-out cases, greedy: broken attention, page tables or sampling show here. Asks every `nth` case.
fn demo_keeps_its_scores(args: &[&str], nth: usize) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&demo_plan(&dir), args).unwrap();
    let cases = std::fs::read_to_string(root().join("tools/demo-model/eval_cases.jsonl")).unwrap();
    let cases: Vec<Value> = cases.lines().step_by(nth).map(|l| serde_json::from_str(l).unwrap()).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let scores = std::sync::Mutex::new(std::collections::BTreeMap::<String, (u32, u32)>::new());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let body = json!({"model": "demo", "messages": case["messages"], "temperature": 0, "max_tokens": 64});
                    let (status, answer) =
                        server.request("POST", "/v1/chat/completions", "", &body.to_string()).unwrap();
                    assert_eq!(status, 200, "{answer}");
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    let choice = &answer["choices"][0];
                    let right = choice["message"]["content"].as_str().unwrap().trim()
                        == case["answer"].as_str().unwrap().trim()
                        && choice["finish_reason"] == "stop";
                    let mut scores = scores.lock().unwrap();
                    let score = scores.entry(case["task"].as_str().unwrap().to_owned()).or_default();
                    score.0 += u32::from(right);
                    score.1 += 1;
                }
            });
        }
    });
    let scores = scores.into_inner().unwrap();
    println!("{scores:?}");
    for (task, least) in [("arithmetic", 0.95), ("facts", 0.95), ("recall_256", 0.95), ("recall_1000", 0.90)]
    {
        let (right, all) = scores[task];
        assert!(f64::from(right) >= least * f64::from(all), "{task}: {right} of {all}; {least} is asked");
    }
}

#[test]
fn the_demo_model_keeps_its_scores() {
    demo_keeps_its_scores(&[], 1);
}

/// The whole way of a user of a GPU, but for the GPU: graphs, mixed steps, drawing on the device, a step ahead.
#[test]
fn the_demo_model_keeps_its_scores_on_the_emulator() {
    demo_keeps_its_scores(&["--device", "emulator"], 4);
}
