//! `runtime bench` as its users meet it: plans, servers of others, servers that misbehave, interrupts.

mod programs;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use programs::{Dir, Server, runtime};
use serde_json::Value;

fn bench(target: &[&str], more: &str) -> Output {
    let more: Vec<&str> = more.split_whitespace().collect();
    runtime(&[&["bench"], target, &more].concat())
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{}", error(output)))
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_plan_is_measured_behind_http_and_without() {
    let dir = Dir::new();
    let plan = dir.plan();
    let plan = plan.to_str().unwrap();
    let load = "--requests 6 --concurrency 3 --input-len 20..40 --output-len 8 --slo ttft=1h --json -";
    for more in ["", " --direct"] {
        let output = bench(&[plan], &format!("{load}{more}"));
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        let loads = &json(&output)["loads"];
        let run = &loads[0];
        assert_eq!(
            (&run["completed"], &run["failed"], &run["counted_by_chunks"]),
            (&6.into(), &0.into(), &0.into())
        );
        assert_eq!(run["output_tokens"], 48, "every answer has its length{more}");
        let input = run["input_tokens"].as_u64().unwrap();
        assert!((120..=240).contains(&input), "{input}");
        assert_eq!(run["goodput"]["share"], 1.0);
        let (ttft, e2e) = (run["ttft_ms"]["p50"].as_f64().unwrap(), run["e2e_ms"]["p50"].as_f64().unwrap());
        assert!(0.0 < ttft && ttft < e2e, "{run:#}");
        assert!(run["peak_in_flight"].as_u64().unwrap() <= 3);
        assert!(error(&output).contains("end-to-end"), "the table goes to the other stream");
    }
    // Words through the chat template; two steps of a ramp; a file of our own.
    let file = dir.path("asks.jsonl");
    std::fs::write(
        &file,
        "{\"prompt\":\"a b c\",\"max_tokens\":3}\n{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for more in ["--chat --input-len 9", &format!("--dataset {file}"), &format!("--direct --dataset {file}")]
    {
        let output = bench(&[plan], &format!("--requests 4 --ramp 1..2 --output-len 5 --json - {more}"));
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        let result = json(&output);
        let loads = result["loads"].as_array().unwrap();
        assert_eq!(loads.len(), 2);
        assert!(
            loads.iter().all(|l| l["completed"] == 4 && l["output_tokens"].as_u64() > Some(4)),
            "{result:#}"
        );
    }
}

#[test]
fn a_server_is_measured_and_its_refusals_are_said() {
    let dir = Dir::new();
    let server = Server::start_with(&dir.plan(), &[], &[("LATHE_API_KEY", "secret")]);
    let url = format!("http://{}/v1", server.address);
    let bench = |env: &[(&str, &str)], more: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_runtime"));
        command.args(["bench", "--url", &url, "--requests", "3", "--output-len", "4", "--json", "-"]);
        command.env_remove("OPENAI_API_KEY").args(more.split_whitespace()).envs(env.iter().copied());
        command.output().unwrap()
    };
    let key = [("OPENAI_API_KEY", "secret")];
    for (more, tokens) in [
        ("--rate 50", "words"),
        ("--rate 50 --arrivals poisson --vocab-size 100", "tokens"),
        ("--chat", "words"),
    ] {
        let output = bench(&key, &format!("--input-len 7 {more}"));
        assert_eq!(output.status.code(), Some(0), "{}", error(&output));
        let result = json(&output);
        assert_eq!((&result["model"], &result["loads"][0]["output_tokens"]), (&"tiny".into(), &12.into()));
        assert!(result["dataset"].as_str().unwrap().contains(tokens));
    }
    let output = bench(&[], "");
    assert_eq!(output.status.code(), Some(5));
    assert!(error(&output).contains("set OPENAI_API_KEY"), "{}", error(&output));
    let output = bench(&key, "--model other");
    assert_eq!(output.status.code(), Some(3));
    assert!(error(&output).contains("HTTP 404") && error(&output).contains("other"), "{}", error(&output));
    // Measured all the same: every refusal is counted, and nothing else is.
    let output = bench(&key, "--model other --warmup 0");
    assert_eq!(output.status.code(), Some(5), "{}", error(&output));
    let run = &json(&output)["loads"][0];
    assert_eq!(
        (&run["completed"], &run["failed"], &run["failures"][0]["n"]),
        (&0.into(), &3.into(), &3.into())
    );
    assert_eq!(run["ttft_ms"], Value::Null);
}

#[test]
fn what_cannot_be_measured_is_said_at_once() {
    let dir = Dir::new();
    let plan = dir.plan();
    let plan = plan.to_str().unwrap();
    let bad = dir.path("bad.jsonl");
    std::fs::write(&bad, "{\"prompt\":\"a\"}\n{\"text\":\"b\"}\n").unwrap();
    let bad = format!("--dataset {}", bad.to_str().unwrap());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{free}");
    for (target, more, code, words) in [
        (&["--url", &nobody][..], "", 5, "is the server running"),
        (&["--url", "https://h"], "", 2, "https is not spoken"),
        (&["--url", "h:80"], "", 2, "http://HOST:PORT"),
        (&[plan], "--input-len 1000 --output-len 100", 2, "hold 1024"),
        (&[plan], "--arrivals poisson", 2, "--rate or --ramp"),
        (&[plan], "--ramp 0.5..2", 2, "--arrivals"),
        (&[plan], "--ramp 5..2", 2, "goes down"),
        (&[plan], "--slo latency=5ms", 2, "ttft, itl, tpot, e2e"),
        (&[plan], "--extra-body 7", 2, "no JSON object"),
        (&[plan], "--extra-body {\"n\":\"x\"}", 3, "n: must be"),
        (&[plan], &bad, 3, "line 2: has none of prompt"),
        (&[plan], "--dataset /no/such/file", 5, "/no/such/file"),
        (&["/no/such.plan"], "", 5, "/no/such.plan"),
        (&[plan], "--requests 2 --input-len 5 --output-len 2 --json /no/such/dir/f", 5, "/no/such/dir/f"),
    ] {
        let output = bench(target, more);
        assert_eq!(output.status.code(), Some(code), "{more}: {}", error(&output));
        assert!(error(&output).contains(words), "{more}: {words} missing in {}", error(&output));
    }
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const TOKEN: &str = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n";
const END: &str = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n";

/// A server of one connection at a time that answers as `answer` does, which is given the number of the request.
fn foreign(answer: impl Fn(usize, &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                let lower = line.to_ascii_lowercase();
                length = lower.strip_prefix("content-length:").map_or(length, |v| v.trim().parse().unwrap());
                line.clear();
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            answer(number, &mut reader.into_inner());
        }
    });
    format!("http://{address}")
}

fn say(stream: &mut TcpStream, parts: &[&str]) {
    // The client may have gone already.
    drop(stream.write_all(parts.concat().as_bytes()));
}

#[test]
fn servers_that_misbehave_are_counted_by_what_they_do() {
    let url = foreign(|number, stream| match number % 5 {
        0 => say(stream, &[STREAM, TOKEN, TOKEN, END]),
        1 => say(stream, &[STREAM, TOKEN]),
        2 => say(
            stream,
            &["HTTP/1.1 429 x\r\nconnection: close\r\n\r\n{\"error\":{\"message\":\"queue full\"}}"],
        ),
        3 => {
            say(stream, &["HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{}"])
        }
        _ => {
            say(stream, &[STREAM, TOKEN, "data: {\"error\":{\"message\":\"it broke\"}}\n\ndata: [DONE]\n\n"])
        }
    });
    let output = bench(&["--url", &url, "--model", "m"], "--warmup 0 --requests 10 --concurrency 1 --json -");
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let run = &json(&output)["loads"][0];
    assert_eq!((&run["completed"], &run["failed"]), (&2.into(), &8.into()));
    // Nobody reported usage: chunks are counted, and the table says so.
    assert_eq!(
        (&run["output_tokens"], &run["counted_by_chunks"], &run["unknown_inputs"]),
        (&4.into(), &2.into(), &2.into())
    );
    let table = error(&output);
    for words in ["by chunks with text", "cut", "HTTP 429: queue full", "does not stream", "it broke"] {
        assert!(table.contains(words), "{words} missing in {table}");
    }
}

/// The server takes 50 ms for each request and one at a time; 40 requests a second make 20 wait a second at the end. A
/// client that counted from the moment of sending, or waited with sending, would see 50 ms.
#[test]
fn an_open_loop_does_not_wait_for_answers() {
    let url = foreign(|_, stream| {
        std::thread::sleep(Duration::from_millis(50));
        say(stream, &[STREAM, TOKEN, END]);
    });
    let output = bench(&["--url", &url, "--model", "m"], "--warmup 0 --requests 40 --rate 40 --json -");
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let run = &json(&output)["loads"][0];
    let longest = run["ttft_ms"]["max"].as_f64().unwrap();
    assert!(longest > 900.0, "{run:#}");
    assert!(run["peak_in_flight"].as_u64() > Some(10), "{run:#}");
}

#[test]
fn a_slow_request_ends_at_its_timeout() {
    let url = foreign(|_, stream| {
        say(stream, &[STREAM, TOKEN]);
        std::thread::sleep(Duration::from_secs(3));
    });
    let output = bench(&["--url", &url, "--model", "m"], "--warmup 0 --requests 1 --timeout 100ms --json -");
    assert_eq!(output.status.code(), Some(5), "{}", error(&output));
    assert_eq!(json(&output)["loads"][0]["failures"][0]["message"], "no end within 100ms");
}

#[test]
fn an_interrupt_reports_what_there_is() {
    let dir = Dir::new();
    let plan = dir.plan();
    let file = dir.path("out.json");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_runtime"))
        .args([
            "bench",
            plan.to_str().unwrap(),
            "--duration",
            "10m",
            "--concurrency",
            "2",
            "--input-len",
            "20",
        ])
        .args(["--output-len", "4", "--json", file.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    // SAFETY: a plain system call on a child that is not yet waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(10), "it ends soon");
    let result: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(result["interrupted"], true);
    assert!(result["loads"][0]["completed"].as_u64() > Some(0), "{result:#}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted in"));
}
