//! `runtime chat`: a conversation in the terminal.

use std::io::{BufRead, IsTerminal};

use clap::ArgMatches;
use lathe_diagnostics::{Diagnostic, Exit};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::console::print;
use super::faults::{self, Outcome};
use super::generate::Drawing;
use super::load::EngineSettings;
use super::session::{Session, executor};
use super::{knobs, path, resolve};
use crate::generation::Generation;
use crate::http::Conversation;

/// Talks until `/exit` or the end of input.
pub fn run(matches: &ArgMatches) -> Outcome<Exit> {
    let settings = resolve(matches, &[knobs::ENGINE], None)?;
    let session = Session::open(&path(matches, "plan"), &EngineSettings::new(&settings)?)?;
    if !session.model.text.has_chat_template() {
        return Err(Diagnostic::new(Exit::Input, "chat template: the plan has none")
            .remedy("compile a checkpoint with a chat template, or use runtime generate"));
    }
    let drawing = Drawing::new(matches, &session.model)?;
    let system = matches.get_one::<String>("system").map(|s| json!({"role": "system", "content": s}));
    let mut terminal = Terminal {
        session,
        drawing,
        start: system.into_iter().collect(),
        messages: Vec::new(),
        is_terminal: std::io::stdin().is_terminal(),
    };
    terminal.messages = terminal.start.clone();
    executor()?.block_on(terminal.talk())?;
    terminal.session.close()?;
    Ok(Exit::Ok)
}

struct Terminal {
    session: Session,
    drawing: Drawing,
    start: Vec<Value>,
    messages: Vec<Value>,
    is_terminal: bool,
}

impl Terminal {
    async fn talk(&mut self) -> Outcome<()> {
        let mut interrupts = signal(SignalKind::interrupt()).map_err(faults::io("signal handlers"))?;
        let mut lines = read_lines();
        if self.is_terminal {
            eprintln!("/reset forgets the conversation, /exit ends, Ctrl-C stops an answer");
        }
        loop {
            if self.is_terminal {
                print("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = interrupts.recv() => {
                    eprintln!("\n(/exit or Ctrl-D ends)");
                    continue;
                }
            };
            match line.as_deref().map(str::trim) {
                None | Some("/exit") => return Ok(()),
                Some("") => {}
                Some("/reset") => self.messages = self.start.clone(),
                Some(text) => self.answer(text, &mut interrupts).await?,
            }
        }
    }

    /// Answers one line. What is wrong with the conversation is said and forgotten; only an engine that failed ends
    /// the program.
    async fn answer(&mut self, text: &str, interrupts: &mut Signal) -> Outcome<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let model = self.session.model.clone();
        let job = Conversation::new(self.messages.clone())
            .encode(&model)
            .map_err(|e| e.to_string())
            .and_then(|ids| self.drawing.job(ids, &model).map_err(|e| e.message));
        let job = match job {
            Ok(job) => job,
            Err(why) => {
                eprintln!("{why} (/reset forgets the conversation)");
                self.messages.pop();
                return Ok(());
            }
        };
        let mut generation =
            Generation::start(&self.session.handle, &model, &job).await.map_err(faults::generation)?;
        let mut answer = String::new();
        loop {
            let piece = tokio::select! {
                piece = generation.next() => piece.map_err(faults::generation)?,
                _ = interrupts.recv() => None,
            };
            let Some(piece) = piece else { break };
            print(&piece.text)?;
            answer.push_str(&piece.text);
        }
        print("\n")?;
        self.messages.push(json!({"role": "assistant", "content": answer}));
        Ok(())
    }
}

/// Lines of standard input, read in a thread of their own so that Ctrl-C is never stuck behind them.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            // Both ends only mean that the program is ending.
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
