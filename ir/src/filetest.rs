//! Tests as text files: a command, a graph, and what should come of it.
//!
//! ```text
//! // test: pass fuse-glu
//! graph @mlp(...) ... {
//!   ...
//! }
//! //> expected text, written by BLESS=1
//! ```
//!
//! Commands: `parse` (the graph prints as it stands), `verify` (faults exactly as announced by `// error: text` on their
//! lines; also for parse errors), and any other, which the caller's hook runs on the verified graph: the outcome is
//! verified, printed, read back, and compared with the `//> ` lines. A hook's error is expected as `//> error: text`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::IrError;
use crate::graph::Graph;
use crate::text::parse;
use crate::verify::{faults, verify};

/// Runs the command (its words) on a graph.
pub type Hook<'a> = &'a dyn Fn(&[&str], &mut Graph) -> Result<(), String>;

const HEAD: &str = "// test: ";
const EXPECT: &str = "//>";
const ERROR: &str = "// error: ";

/// A hook for crates without commands of their own.
///
/// # Errors
/// Always: names the command.
pub fn no_commands(words: &[&str], _graph: &mut Graph) -> Result<(), String> {
    Err(format!("unknown command {}", words.join(" ")))
}

/// Runs every `*.ir` file below `folder` in order of path and returns how many there were. With `BLESS=1` in the
/// environment expectations are rewritten.
///
/// # Errors
/// All failures, one paragraph each; also a folder without tests.
pub fn run_folder(folder: &Path, hook: Hook<'_>) -> Result<usize, String> {
    let bless = std::env::var_os("BLESS").is_some_and(|v| v == "1");
    let mut files = Vec::new();
    collect(folder, &mut files).map_err(|e| format!("{}: {e}", folder.display()))?;
    files.sort();
    let failures: Vec<String> = files
        .iter()
        .filter_map(|file| run_file(file, hook, bless).err().map(|why| format!("{}: {why}", file.display())))
        .collect();
    match (files.is_empty(), failures.is_empty()) {
        (true, _) => Err(format!("{}: no *.ir files", folder.display())),
        (false, true) => Ok(files.len()),
        (false, false) => Err(failures.join("\n\n")),
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "ir") {
            files.push(path);
        }
    }
    Ok(())
}

fn run_file(path: &Path, hook: Hook<'_>, bless: bool) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    match check(&text, hook)? {
        None => Ok(()),
        Some(wanted) if bless => fs::write(path, wanted).map_err(|e| e.to_string()),
        Some(wanted) => Err(format!(
            "the outcome differs; BLESS=1 rewrites the file. {}",
            first_difference(&text, &wanted)
        )),
    }
}

/// Runs one test text. `None` if it holds, the corrected text if an expectation differs.
///
/// # Errors
/// Failures that blessing cannot mend.
pub fn check(text: &str, hook: Hook<'_>) -> Result<Option<String>, String> {
    let head = text.lines().next().and_then(|l| l.strip_prefix(HEAD));
    let words: Vec<&str> =
        head.ok_or_else(|| format!("the first line is not {HEAD:?}"))?.split_whitespace().collect();
    match words[..] {
        ["parse"] if !text.contains(ERROR) => {
            let printed = reload(&parse(text).map_err(|e| e.to_string())?)?;
            let lines: Vec<&str> = text.lines().take_while(|l| l.starts_with("//")).collect();
            let wanted = format!("{}\n{printed}", lines.join("\n"));
            Ok((wanted != text).then_some(wanted))
        }
        ["parse" | "verify"] => check_errors(text).map(|()| None),
        [] => Err("no command".into()),
        _ => check_command(text, &words, hook),
    }
}

/// Prints a graph after checking that the text reads back to itself.
fn reload(g: &Graph) -> Result<String, String> {
    let printed = g.to_string();
    let again =
        parse(&printed).map_err(|e| format!("printed text does not parse: {e}\n{printed}"))?.to_string();
    if again == printed {
        Ok(printed)
    } else {
        Err(format!("print, parse, print differ:\n{printed}\n{again}"))
    }
}

fn check_errors(text: &str) -> Result<(), String> {
    let found: Vec<(u32, String)> = match parse(text) {
        Ok(g) => faults(&g).into_iter().map(|f| (f.line, format!("{}: {}", f.subject, f.reason))).collect(),
        Err(IrError::Parse { line, reason, .. }) => vec![(line, reason)],
        Err(other) => return Err(other.to_string()),
    };
    let announced: Vec<(u32, &str)> = text
        .lines()
        .enumerate()
        .flat_map(|(i, l)| l.split(ERROR).skip(1).map(move |text| (i as u32 + 1, text.trim())))
        .collect();
    let fits = |(fl, f): &(u32, String), (al, a): &(u32, &str)| fl == al && f.contains(a);
    if let Some((line, fault)) = found.iter().find(|f| !announced.iter().any(|a| fits(f, a))) {
        return Err(format!("line {line}: not announced: {fault}"));
    }
    match announced.iter().find(|a| !found.iter().any(|f| fits(f, a))) {
        Some((line, text)) => Err(format!("line {line}: announced, but did not happen: {text}")),
        None => Ok(()),
    }
}

fn check_command(text: &str, words: &[&str], hook: Hook<'_>) -> Result<Option<String>, String> {
    let mut g = parse(text).map_err(|e| e.to_string())?;
    verify(&g).map_err(|e| e.to_string())?;
    let outcome = match hook(words, &mut g) {
        Ok(()) => {
            let printed = reload(&g)?;
            verify(&g).map_err(|e| format!("after {}: {e}\n{printed}", words.join(" ")))?;
            printed
        }
        Err(why) => format!("error: {why}\n"),
    };
    let mut wanted: String =
        text.lines().filter(|l| !l.starts_with(EXPECT)).map(|l| format!("{l}\n")).collect();
    for line in outcome.lines() {
        wanted.push_str(&format!("{EXPECT} {line}\n"));
    }
    Ok((wanted != text).then_some(wanted))
}

fn first_difference(is: &str, wanted: &str) -> String {
    let (mut a, mut b) = (is.lines(), wanted.lines());
    let mut line = 1;
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => line += 1,
            (None, None) => return "Line ends differ.".into(),
            (x, y) => {
                let (x, y) = (x.unwrap_or("(end)"), y.unwrap_or("(end)"));
                return format!("Line {line} in the file:\n  {x}\noutcome:\n  {y}");
            }
        }
    }
}
