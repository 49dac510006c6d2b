//! The commands beside `serve`, and the settings.

mod programs;

use programs::{Dir, Server, runtime};
use serde_json::{Value, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn generate_says_what_the_server_says() {
    let dir = Dir::new();
    let plan = dir.plan();
    let path = plan.to_str().unwrap();
    let flags = ["--max-tokens", "12", "--seed", "3", "--temperature", "0.9", "--logprobs", "2"];
    let run = |more: &[&str]| runtime(&[&["generate", path][..], &flags, more].concat());
    let output = run(&["--prompt", "Hello", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let server = Server::start(&plan, &[]);
    let answer = server.ask(
        "/v1/completions",
        &json!({"prompt": "Hello", "max_tokens": 12, "seed": 3, "temperature": 0.9, "logprobs": 2}),
    );
    assert_eq!(answer["choices"][0]["text"], result["text"]);
    assert_eq!(answer["choices"][0]["finish_reason"], result["finish_reason"]);
    assert_eq!(answer["usage"], result["usage"]);
    // As f32, which both stand for: one is written with its own digits, the other with those of an f64.
    let bits = |v: &Value| (v.as_f64().unwrap() as f32).to_bits();
    let first = &result["logprobs"][0]["token"]["logprob"];
    assert_eq!(bits(&answer["choices"][0]["logprobs"]["token_logprobs"][0]), bits(first));
    // As text, and from ids.
    assert_eq!(text(&run(&["--prompt", "Hello"]).stdout), format!("{}\n", result["text"].as_str().unwrap()));
    let ids =
        result["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
    let again: Value = serde_json::from_slice(&run(&["--token-ids", &ids, "--json"]).stdout).unwrap();
    assert_eq!(again["ids"], result["ids"]);
}

#[test]
fn chat_remembers_until_reset() {
    use std::io::Write;
    let dir = Dir::new();
    let plan = dir.plan();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_runtime"))
        .args(["chat", plan.to_str().unwrap(), "--temperature", "0", "--max-tokens", "8", "--ignore-eos"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"one\nthree\n/reset\none\n/exit\nnever\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    // The same server through HTTP, turn by turn.
    let server = Server::start(&plan, &[]);
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "temperature": 0, "max_tokens": 8, "ignore_eos": true});
        server.ask("/v1/chat/completions", &body)["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let user = |t: &str| json!({"role": "user", "content": t});
    let first = ask(json!([user("one")]));
    let second = ask(json!([user("one"), {"role": "assistant", "content": first}, user("three")]));
    assert_eq!(text(&output.stdout), format!("{first}\n{second}\n{first}\n"));
}

#[test]
fn an_interrupt_stops_one_answer_only() {
    use std::io::{Read, Write};
    let dir = Dir::new();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_runtime"))
        // As slow as it gets, so that the answer is still running when the signal comes.
        .args(["chat", dir.plan().to_str().unwrap(), "--ignore-eos", "--isa", "scalar", "--threads", "1"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"one\n").unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    // SAFETY: a plain system call on a child that is not yet waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    stdin.write_all(b"/exit\n").unwrap();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.len() < 3000, "{} bytes: the answer went on to its end", rest.len());
}

#[test]
fn check_passes_on_a_whole_plan_and_names_what_is_broken() {
    let dir = Dir::new();
    let plan = dir.plan();
    let check = |path: &std::path::Path, more: &[&str]| {
        let output = runtime(&[&["check", path.to_str().unwrap()][..], more].concat());
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    for more in [&[][..], &["--isa", "scalar", "--threads", "1"]] {
        let (code, out, err) = check(&plan, more);
        assert_eq!(code, 0, "{err}");
        for part in ["fits", "memory", "kv pool", "weights are intact", "self-test passed"] {
            assert!(out.contains(part), "{part} missing in {out}");
        }
    }
    let (_, out, _) = check(&plan, &["--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["self_test"]["logits"].as_u64() > Some(0), "{report}");

    let whole = std::fs::read(&plan).unwrap();
    let broken = dir.path("broken.plan");
    let mut bytes = whole.clone();
    bytes[5000] ^= 1;
    std::fs::write(&broken, &bytes).unwrap();
    let (code, _, err) = check(&broken, &[]);
    assert!(code == 3 && err.contains("broken.plan"), "a weight's byte: {code} {err}");
    std::fs::write(&broken, b"GGUF rest of a file that is something else").unwrap();
    let (code, _, err) = check(&broken, &[]);
    assert!(code == 3 && err.contains("GGUF"), "{code} {err}");
    let (code, _, err) = check(&dir.path("absent.plan"), &[]);
    assert!(code == 5 && err.contains("absent.plan"), "{code} {err}");
    let (code, _, err) = check(&plan, &["--kv-memory", "1KiB"]);
    assert!(code == 4 && err.contains("--kv-memory"), "{code} {err}");
    let (code, _, err) = check(&plan, &["--threads", "none"]);
    assert!(code == 2 && err.contains("threads"), "{code} {err}");
}

#[test]
fn inspect_and_diff_print_results_only() {
    let dir = Dir::new();
    let plan = dir.plan();
    let path = plan.to_str().unwrap();
    let output = runtime(&["inspect", path]);
    assert!(output.status.success() && text(&output.stdout).contains("LlamaForCausalLM"));
    let value: Value = serde_json::from_slice(&runtime(&["inspect", path, "--json"]).stdout).unwrap();
    assert!(value.is_object());
    let same = runtime(&["diff", path, path]);
    assert_eq!((same.status.code(), text(&same.stdout)), (Some(0), String::new()));
}

#[test]
fn settings_come_from_flag_then_environment_then_file() {
    let dir = Dir::new();
    let plan = dir.plan();
    let file = dir.path("serve.toml");
    std::fs::write(&file, "served-model-name = \"from-file\"\nmax-queue = 7\nthreads = 1\n").unwrap();
    let args = ["--config", file.to_str().unwrap(), "--threads", "2"];
    let server =
        Server::start_with(&plan, &args, &[("LATHE_SERVED_MODEL_NAME", "from-env"), ("LATHE_THREADS", "1")]);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "from-env");
    server.signal(libc::SIGTERM);
    let (_, log) = server.end();
    for line in [
        r#"name="served-model-name" value="from-env" source=environment"#,
        r#"name="max-queue" value="7" source=file"#,
        r#"name="threads" value="2" source=flag"#,
        r#"name="drain-timeout" value="30s" source=default"#,
    ] {
        assert!(log.contains(line), "{line} missing in {log}");
    }
    std::fs::write(&file, "prot = 1\n").unwrap();
    let output = runtime(&["serve", plan.to_str().unwrap(), "--config", file.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("prot"), "{said}");
}

#[test]
fn usage_faults_are_exit_2() {
    let dir = Dir::new();
    let plan = dir.plan();
    let path = plan.to_str().unwrap();
    for args in [
        &["serve"][..],
        &["no-such-command"],
        &["generate", path],
        &["generate", path, "--prompt", "a", "--temperature", "hot"],
        &["generate", path, "--prompt", "a", "--top-p", "7"],
        &["generate", path, "--token-ids", "1,x"],
        &["generate", path, "--token-ids", "99999"],
        &["serve", path, "--port", "99999"],
    ] {
        let output = runtime(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
    let version = text(&runtime(&["--version"]).stdout);
    assert!(
        version.starts_with("runtime 0.1.0 (commit ") && version.contains("plan format 1.1"),
        "{version}"
    );
}
