//! A server's life: keys, limits, clients that leave, drains, faults.

mod programs;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use programs::{Dir, Server, read_answer, read_events, runtime};
use serde_json::json;

const COMPLETIONS: &str = "/v1/completions";

/// A request that draws `n` tokens whatever the model thinks.
fn long(n: u32, stream: bool) -> serde_json::Value {
    json!({"prompt": [5, 6, 7], "max_tokens": n, "seed": 1, "ignore_eos": true, "stream": stream})
}

/// Flags under which the fixture takes seconds for what else takes milliseconds, so that tests of what happens
/// meanwhile never find it over.
const SLOW: [&str; 4] = ["--threads", "1", "--isa", "scalar"];

#[test]
fn keys_are_asked_for_everywhere_but_on_probes() {
    let dir = Dir::new();
    let (plan, file) = (dir.plan(), dir.path("keys"));
    std::fs::write(&file, "alpha\nbeta\n").unwrap();
    let args = ["--api-key-file", file.to_str().unwrap()];
    let server = Server::start_with(&plan, &args, &[("LATHE_API_KEY", "gamma")]);
    for path in ["/live", "/ready", "/health"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/v1/models/tiny", "/metrics", "/nothing"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    for path in [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let answer = server.post(path, &json!({}));
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    }
    for (key, status) in [("alpha", 200), ("beta", 200), ("gamma", 200), ("delta", 401)] {
        let header = format!("authorization: Bearer {key}\r\n");
        assert_eq!(server.request("GET", "/v1/models", &header, "").status, status, "{key}");
    }
}

#[test]
fn a_client_that_leaves_frees_its_blocks() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &[]);
    for stream in [true, false] {
        let mut connection = server.send("POST", COMPLETIONS, "", &long(1000, stream).to_string());
        if stream {
            read_events(&mut connection, 2);
        } else {
            while server.metric("num_requests_running") == 0.0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(server.metric("kv_cache_usage_perc") > 0.0);
        drop(connection);
        server.wait_idle();
    }
    let ended = server.get("/metrics").body;
    let aborted = ended.lines().find(|l| l.contains("finished_reason=\"abort\"")).unwrap();
    assert!(aborted.ends_with(" 2"), "{aborted}");
}

#[test]
fn a_full_queue_is_429_with_a_time_to_come_back() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &[&SLOW[..], &["--max-queue", "2"]].concat());
    let answer = server.post(COMPLETIONS, &json!({"prompt": "a", "n": 3}));
    assert_eq!(answer.status, 400, "can never be queued: {}", answer.body);
    // The batch holds 32; these fill it, two more wait, the next is refused.
    let mut held: Vec<_> = (0..16)
        .map(|_| {
            let mut body = long(1000, true);
            body["n"] = json!(2);
            let mut connection = server.send("POST", COMPLETIONS, "", &body.to_string());
            read_events(&mut connection, 1);
            connection
        })
        .collect();
    held.push(server.send("POST", COMPLETIONS, "", &long(1000, true).to_string()));
    held.push(server.send("POST", COMPLETIONS, "", &long(1000, true).to_string()));
    while server.metric("num_requests_waiting") < 2.0 {
        assert!(server.metric("num_requests_running") > 0.0, "the batch ended too early to show anything");
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = server.post(COMPLETIONS, &long(1, false));
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert_eq!(answer.header("retry-after"), Some("1"));
    drop(held);
    server.wait_idle();
    assert_eq!(server.post(COMPLETIONS, &long(1, false)).status, 200);
}

#[test]
fn a_request_that_takes_too_long_is_504() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &["--request-timeout", "1ms"]);
    let answer = server.post(COMPLETIONS, &long(1000, false));
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (504, Some("timeout_error")));
    server.wait_idle();
}

/// Bytes of an open connection up to its end.
fn rest(mut connection: TcpStream) -> String {
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &[&SLOW[..], &["--header-timeout", "300ms"]].concat());
    // A request that takes longer is not cut off.
    let mut running = server.send("POST", COMPLETIONS, "", &long(1000, true).to_string());
    read_events(&mut running, 1);
    let started = Instant::now();
    for (sent, answers) in
        [("", 0), ("GET /live HTTP/1.1\r\nhost: x\r\n", 0), ("GET /live HTTP/1.1\r\nhost: x\r\n\r\n", 1)]
    {
        let mut connection = TcpStream::connect(&server.address).unwrap();
        connection.write_all(sent.as_bytes()).unwrap();
        let began = Instant::now();
        let text = rest(connection);
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), answers, "{text}");
        assert!(began.elapsed() >= Duration::from_millis(250), "closed too early");
    }
    // One that dribbles is closed as well: the time is for the whole head.
    let mut connection = TcpStream::connect(&server.address).unwrap();
    let dribbled = (0..100).take_while(|_| {
        std::thread::sleep(Duration::from_millis(20));
        connection.write_all(b"GET ").is_ok()
    });
    assert!(dribbled.count() < 100, "a head of {:?} was waited for", started.elapsed());
    assert!(rest(running).ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
}

#[test]
fn connections_beyond_the_limit_wait() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &["--max-connections", "2"]);
    let mut held: Vec<_> = (0..2).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    // Both are accepted for sure when they have been answered.
    for connection in &mut held {
        connection.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
    }
    let mut third = server.send("GET", "/live", "", "");
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let kind = third.read(&mut [0; 1]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind}");
    held.pop();
    third.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(read_answer(third).status, 200);
    for (flag, value) in
        [("--max-connections", "0"), ("--header-timeout", "0s"), ("--header-timeout", "soon")]
    {
        let refused = runtime(&["serve", dir.path("tiny.plan").to_str().unwrap(), flag, value]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!((refused.status.code(), text.contains(&flag[2..])), (Some(2), true), "{text}");
    }
}

#[test]
fn sigterm_drains_and_exits_0() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &SLOW);
    let mut body = long(1000, true);
    body["n"] = json!(8);
    let mut running = server.send("POST", COMPLETIONS, "", &body.to_string());
    read_events(&mut running, 1);
    server.signal(libc::SIGTERM);
    let started = Instant::now();
    while server.get("/ready").status == 200 {
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(server.get("/live").status, 200);
    let refused = server.post(COMPLETIONS, &long(1, false));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("shutting_down")));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut running, &mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "it was cut off");
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("drained"), "{log}");
}

#[test]
fn a_drain_ends_at_its_timeout_or_at_a_second_signal() {
    let dir = Dir::new();
    let plan = dir.plan();
    for (second, code) in [(false, Some(0)), (true, Some(130))] {
        let timeout = if second { "60s" } else { "100ms" };
        let args: Vec<&str> = SLOW.iter().copied().chain(["--drain-timeout", timeout]).collect();
        let server = Server::start(&plan, &args);
        let mut body = long(1000, true);
        body["n"] = json!(32);
        let mut running = server.send("POST", COMPLETIONS, "", &body.to_string());
        read_events(&mut running, 1);
        server.signal(libc::SIGTERM);
        if second {
            while server.get("/ready").status == 200 {}
            server.signal(libc::SIGTERM);
        }
        let (got, log) = server.end();
        assert_eq!(got, code, "{log}");
        let said = if second { "second signal" } else { "drain timeout" };
        assert!(log.contains(said), "{log}");
    }
}

#[test]
fn a_busy_port_is_exit_5() {
    let dir = Dir::new();
    let plan = dir.plan();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = runtime(&["serve", plan.to_str().unwrap(), "--port", &port]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains(&port) && said.contains("--port"), "{said}");
}

#[test]
fn a_plan_that_is_cut_while_served_ends_the_server() {
    let dir = Dir::new();
    let plan = dir.plan();
    let server = Server::start(&plan, &[]);
    let file = std::fs::OpenOptions::new().write(true).open(&plan).unwrap();
    file.set_len(4096).unwrap();
    let (code, log) = server.end();
    assert_eq!(code, Some(5), "{log}");
    assert!(log.contains("truncated") && log.contains("tiny.plan"), "{log}");
}

#[test]
fn the_log_has_a_line_per_request_and_no_prompt() {
    let dir = Dir::new();
    let server = Server::start(&dir.plan(), &["--log-format", "json"]);
    let body = json!({"prompt": "secretive words", "max_tokens": 3, "ignore_eos": true}).to_string();
    let answer = server.request("POST", COMPLETIONS, "x-request-id: r-1\r\n", &body);
    assert_eq!(answer.status, 200);
    read_answer(server.send("POST", COMPLETIONS, "x-request-id: r-2\r\n", "{\"model\":\"secretive\"}"));
    server.signal(libc::SIGTERM);
    let (_, log) = server.end();
    assert!(!log.contains("secretive"), "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |id: &str| lines.iter().find(|l| l["id"] == id).unwrap_or_else(|| panic!("no {id} in {log}"));
    let line = of("r-1");
    assert_eq!((&line["status"], &line["completion_tokens"]), (&json!(200), &json!(3)));
    assert_eq!(line["route"], COMPLETIONS);
    assert!(line["ttft_ms"].as_f64().unwrap() <= line["duration_ms"].as_f64().unwrap());
    assert_eq!(of("r-2")["status"], 404);
}

#[test]
fn ready_comes_soon() {
    let dir = Dir::new();
    let plan = dir.plan();
    drop(Server::start(&plan, &[]));
    // Best of three: a machine with other work may stall any one start.
    let best = (0..3)
        .map(|_| {
            let started = Instant::now();
            let server = Server::start(&plan, &[]);
            assert_eq!(server.get("/ready").status, 200);
            started.elapsed()
        })
        .min();
    assert!(best.unwrap() < Duration::from_millis(300), "{best:?}");
}
