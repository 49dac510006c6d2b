//! The built programs, driven from outside: a plan from a fixture, a server, plain HTTP/1.1.
#![allow(dead_code)] // each test program uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const RUNTIME: &str = env!("CARGO_BIN_EXE_runtime");

/// Positions of one sequence in the plan that tests serve.
pub const MAX_SEQ_LEN: usize = 1024;

pub struct Dir(pub tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Dir(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A plan of the sharded Llama-3.2-like fixture, named `tiny.plan`: random weights, real tokenizer and template.
    pub fn plan(&self) -> PathBuf {
        self.compile("tiny.plan", &[])
    }

    /// A plan of the same fixture with more flags.
    pub fn compile(&self, name: &str, flags: &[&str]) -> PathBuf {
        let plan = self.path(name);
        let compile = Path::new(RUNTIME).with_file_name("compile");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let fixtures =
            std::env::var_os("LATHE_FIXTURES").map_or_else(|| root.join("target/fixtures"), PathBuf::from);
        let model = fixtures.join("llama32-sharded");
        assert!(compile.is_file() && model.is_dir(), "run ./tools/test: compile or fixtures are missing");
        let output = Command::new(compile)
            .arg("--model")
            .arg(model)
            .args(flags)
            .args(["--max-seq-len", &MAX_SEQ_LEN.to_string(), "-o"])
            .arg(&plan)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        plan
    }
}

/// Runs a command of `runtime` to its end, without settings from the environment.
pub fn runtime(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(RUNTIME);
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LATHE_") {
            command.env_remove(name);
        }
    }
    command
}

pub struct Server {
    child: Child,
    pub address: String,
    log: Option<std::thread::JoinHandle<String>>,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The JSON of each event but the last, which must be `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "the stream ends with an empty line: {}", self.body);
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.body);
        events.iter().map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

impl Server {
    pub fn start(plan: &Path, args: &[&str]) -> Self {
        Self::start_with(plan, args, &[])
    }

    pub fn start_with(plan: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = command(&["serve", plan.to_str().unwrap(), "--port", "0"])
            .args(args)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        // Read all the time, or a long log would block the server.
        let log = std::thread::spawn(move || {
            let mut text = String::new();
            drop(stderr.read_to_string(&mut text));
            text
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").unwrap_or_default().to_owned();
        if address.is_empty() {
            child.wait().unwrap();
            panic!("the server did not start: {}", log.join().unwrap());
        }
        Server { child, address, log: Some(log) }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on a child that is not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Exit code and log, within a minute.
    pub fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().unwrap().code();
        (code, self.log.take().unwrap().join().unwrap())
    }

    /// Sends a request and leaves the connection open.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        read_answer(self.send(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "", &body.to_string())
    }

    /// As `post`, of a request that must succeed.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// A metric without labels of its own.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|l| l.starts_with(&format!("vllm:{name}{{")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until no sequence runs and no block is held.
    pub fn wait_idle(&self) {
        let started = Instant::now();
        while self.metric("num_requests_running") + self.metric("kv_cache_usage_perc") > 0.0 {
            assert!(started.elapsed() < Duration::from_secs(5), "blocks are still held");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that a failed test leaves behind; one that has ended is no error.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads to the end of the connection and takes chunked bodies apart.
pub fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("no head");
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
    let mut rest = &bytes[at + 4..];
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let line = rest.windows(2).position(|w| w == b"\r\n").expect("a chunk is cut off");
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            if size == 0 {
                break;
            }
            body.extend_from_slice(&rest[line + 2..line + 2 + size]);
            rest = &rest[line + 2 + size + 2..];
        }
    } else {
        body.extend_from_slice(rest);
    }
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: String::from_utf8(body).unwrap() }
}

/// Reads from a streamed answer until `n` events came.
pub fn read_events(stream: &mut TcpStream, n: usize) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches("data: ").count() < n {
        let got = stream.read(&mut buffer).unwrap();
        assert!(got > 0, "the stream ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..got]));
    }
    text
}
