//! What a comparison needs and makes once: the peers' environments, the models of all sides.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// This crate's folder.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folder of made things: `$LATHE_CACHE/peers`, else the user's cache.
pub fn dir() -> Result<PathBuf> {
    let root = match std::env::var_os("LATHE_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => match std::env::var_os("XDG_CACHE_HOME") {
            Some(dir) => PathBuf::from(dir).join("lathe"),
            None => PathBuf::from(std::env::var_os("HOME").context("neither LATHE_CACHE nor HOME is set")?)
                .join(".cache/lathe"),
        },
    };
    let dir = root.join("peers");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

fn run(mut command: Command) -> Result<()> {
    eprintln!("{command:?}");
    // Standard output is for results.
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// config.json of a shape by its name in shapes/.
pub fn config(shape: &str) -> Result<PathBuf> {
    let path = folder().join("shapes").join(format!("{shape}.json"));
    ensure!(path.exists(), "shape {shape}: there is no {}", path.display());
    Ok(path)
}

/// A peer's Python: that of `$LATHE_LLAMA_VENV` or `$LATHE_VLLM_VENV` as it is, else one that is made here.
pub fn python(peer: &str) -> Result<PathBuf> {
    let venv = match std::env::var_os(format!("LATHE_{}_VENV", peer.to_uppercase())) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let dir = dir()?.join(format!("venv-{peer}"));
            let mut setup = Command::new(folder().join("peers/setup.sh"));
            setup.arg(peer).arg(&dir);
            run(setup)?;
            dir
        }
    };
    let python = venv.join("bin/python");
    ensure!(python.exists(), "{}: no Python there", python.display());
    Ok(python)
}

/// A peer's worker.
pub fn script(name: &str) -> PathBuf {
    folder().join("peers").join(name)
}

/// A folder with the config.json of a shape.
pub fn config_folder(shape: &str) -> Result<PathBuf> {
    let dir = dir()?.join(shape);
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(config(shape)?, dir.join("config.json"))?;
    Ok(dir)
}

/// llama.cpp's file of a shape.
pub fn gguf(shape: &str, python: &Path) -> Result<PathBuf> {
    let out = dir()?.join(format!("{shape}.gguf"));
    if !out.exists() {
        let mut make = Command::new(python);
        make.arg(folder().join("peers/make_gguf.py")).arg(config(shape)?).arg(&out);
        run(make)?;
    }
    Ok(out)
}

/// One of our programs, built beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{}: not built; cargo build --release -p lathe-compiler -p lathe-runtime",
        path.display()
    );
    Ok(path)
}

/// Our plan of a shape; made again when `compile` is newer, or when this build cannot read it.
pub fn plan(shape: &str) -> Result<PathBuf> {
    let compile = program("compile")?;
    let out = dir()?.join(format!("{shape}.plan"));
    let modified = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    if modified(&out) < modified(&compile) || lathe_plan::Plan::open(&out).is_err() {
        let mut make = Command::new(compile);
        make.arg("--config").arg(config(shape)?).args(["--synthetic-weights", "1", "--tokenizer", "none"]);
        make.arg("-o").arg(&out);
        run(make)?;
    }
    Ok(out)
}
