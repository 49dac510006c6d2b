//! A running server for tests: the built `runtime serve` on a free port, ended when dropped.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// A server process.
pub struct Server {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Server {
    /// Serves `plan` on a port that the system picks; returns when the server says where it listens.
    ///
    /// # Errors
    /// When it ends before that.
    pub fn start(plan: &Path, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(crate::program("runtime"))
            .arg("serve")
            .arg(plan)
            .args(["--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let address =
            line.trim().rsplit("http://").next().unwrap_or_default().trim_end_matches('/').to_owned();
        if line.is_empty() || address.is_empty() {
            let status = child.wait()?;
            anyhow::bail!("the server ended at once: {status}");
        }
        Ok(Server { child, address })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call on a child that is not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for the end and returns the exit code.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        Ok(self.child.wait()?.code())
    }

    /// One HTTP/1.1 request on its own connection: status and body.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\
             content-type: application/json\r\n{headers}\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split_whitespace().nth(1).context("no status line")?.parse()?;
        let body = answer.split_once("\r\n\r\n").context("no body")?.1.to_owned();
        Ok((status, body))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends a server that a failing test leaves behind; one that has ended already is no error.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
