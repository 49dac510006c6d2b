//! An engine that fails ends everything loudly: faults injected into the real engine, under the real server.

mod programs;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use lathe_api::{Engine, EngineError, EngineInfo, Slot, SlotState, StepOutput, StepPlan, Ticket, TokenMasks};
use lathe_cpu::{CpuEngine, CpuOptions};
use lathe_plan::Plan;
use lathe_runtime::backend::{Backend, Health};
use lathe_runtime::engine_thread::{Policy, start};
use lathe_runtime::http::{Keys, Options, Server, listen};
use lathe_runtime::metrics::Metrics;
use lathe_runtime::model::{Model, Text};
use lathe_runtime::sampling::SamplingDefaults;
use programs::Dir;

/// The real engine until a step count is reached; then a device error or a panic.
struct Faulty {
    engine: CpuEngine,
    steps_left: u32,
    panics: bool,
}

impl Engine for Faulty {
    fn info(&self) -> &EngineInfo {
        self.engine.info()
    }

    fn bind(&mut self, slot: Slot, state: SlotState<'_>) -> Result<(), EngineError> {
        self.engine.bind(slot, state)
    }

    fn submit(&mut self, step: &StepPlan) -> Result<Ticket, EngineError> {
        if self.steps_left == 0 {
            assert!(!self.panics, "injected panic");
            return Err(EngineError::Failed("injected fault".into()));
        }
        self.steps_left -= 1;
        self.engine.submit(step)
    }

    fn sample(&mut self, ticket: Ticket, masks: Option<TokenMasks<'_>>) -> Result<(), EngineError> {
        self.engine.sample(ticket, masks)
    }

    fn collect(&mut self, ticket: Ticket, out: &mut StepOutput) -> Result<(), EngineError> {
        self.engine.collect(ticket, out)
    }

    fn logits(&self) -> &[f32] {
        self.engine.logits()
    }
}

/// Status and body of one request on its own connection.
fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn fails_loudly(panics: bool, reason: &str) {
    let dir = Dir::new();
    let plan = Arc::new(Plan::open(&dir.plan()).unwrap());
    let engine = CpuEngine::load(plan.clone(), &CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap();
    let max_seq_len = engine.info().max_seq_len;
    let metrics = Arc::new(Metrics::new(max_seq_len));
    let faulty = Faulty { engine, steps_left: 5, panics };
    let policy = Policy { max_queue: 64, chunk_limit: None, warm: false };
    let (handle, thread) = start(Box::new(faulty), policy, metrics.clone()).unwrap();
    let server = Arc::new(Server {
        backend: Box::new(handle.clone()),
        model: Arc::new(Model {
            name: "tiny".into(),
            text: Text(None),
            defaults: SamplingDefaults::from(plan.card()),
            max_seq_len,
            created: 0,
        }),
        metrics,
        keys: Keys::new(None, None).unwrap(),
        options: Options::default(),
    });

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(listen(listener, server, std::future::pending()));

    assert_eq!(request(address, "GET", "/ready", "").0, 200);
    // Several under way when the fault comes: each gets its error, none hangs.
    let body = r#"{"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": true}"#;
    let stream = body.replace("200,", "200, \"stream\": true,");
    std::thread::scope(|scope| {
        let whole: Vec<_> =
            (0..3).map(|_| scope.spawn(|| request(address, "POST", "/v1/completions", body))).collect();
        let streamed = scope.spawn(|| request(address, "POST", "/v1/completions", &stream));
        for answer in whole {
            let (status, text) = answer.join().unwrap();
            // 503 where it came after the fault.
            assert!(status == 500 || status == 503, "{text}");
        }
        let (_, text) = streamed.join().unwrap();
        assert!(text.contains("\"error\"") && !text.contains("\"finish_reason\":\"length\""), "{text}");
    });
    assert!(matches!(handle.health(), Health::Failed(why) if why.contains(reason)));
    for probe in ["/live", "/ready", "/health"] {
        assert_eq!(request(address, "GET", probe, "").0, 503, "{probe}");
    }
    assert!(request(address, "POST", "/v1/completions", body).0 >= 500);
    thread.join().unwrap();
}

#[test]
fn a_device_error_fails_every_request_and_every_probe() {
    fails_loudly(false, "injected fault");
}

#[test]
fn a_panic_in_the_engine_does_the_same() {
    fails_loudly(true, "injected panic");
}
