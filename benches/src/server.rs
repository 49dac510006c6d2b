//! `runtime serve` as a child process on a port of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A server that ends with this value.
pub struct Server(Child);

impl Server {
    /// Starts `program serve plan`; its first line says where it listens.
    pub fn start(program: &Path, plan: &Path) -> Result<Self> {
        let child = Command::new(program)
            .arg("serve")
            .arg(plan)
            .args(["--port", "0"])
            .env("LATHE_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Server(child))
    }

    /// Process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// `HOST:PORT`, once it listens. To be asked for once.
    pub fn address(&mut self) -> Result<String> {
        let mut url = String::new();
        BufReader::new(self.0.stdout.take().context("no pipe")?).read_line(&mut url)?;
        match url.trim().strip_prefix("http://") {
            Some(address) => Ok(address.to_owned()),
            None => bail!("runtime serve: printed {url:?} instead of its address"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
