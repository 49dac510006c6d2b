//! An engine in a process of its own: it says hello when it is loaded, then answers each case's line with one of times.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cases::Case;

/// First line of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Engine.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Instruction sets and options of its build.
    pub build: String,
    /// From start to loaded, file cache as it was.
    pub load_s: f64,
}

/// Answer to a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// The step of all prompts, first tokens drawn.
    pub prefill_s: f64,
    /// All steps after it.
    pub decode_s: f64,
    /// Last token of each sequence.
    pub last: Vec<u32>,
    /// Where the case asked for it: GB/s of the fastest way to read memory, between the steps.
    #[serde(default)]
    pub read_gb_s: Option<f64>,
}

/// A running worker; ended when dropped.
pub struct Peer {
    /// What it said.
    pub hello: Hello,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts a worker and waits until it is loaded.
    pub fn start(mut command: Command) -> Result<Self> {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {text}"))?;
        let input = child.stdin.take().context("no pipe")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let hello = serde_json::from_str(&line).with_context(|| format!("{text}: said {line:?}"))?;
        Ok(Peer { hello, child, input, output })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Runs a case and waits for it.
    pub fn run(&mut self, case: &Case) -> Result<Timing> {
        self.ask(&case.line())
    }

    /// vLLM alone: GFLOP/s of torch's bf16 product of two `n` x `n` matrices.
    pub fn matmul(&mut self, n: usize) -> Result<f64> {
        #[derive(Deserialize)]
        struct Rate {
            gflop_s: f64,
        }
        Ok(self.ask::<Rate>(&format!("matmul {n}\n"))?.gflop_s)
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        self.input.write_all(question.as_bytes())?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("{}: said {line:?}", self.hello.name))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
