//! What went wrong, why and what to do, on one screen.

use std::error::Error;
use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme};

use crate::Exit;

/// A fault as the user sees it.
#[derive(Debug)]
pub struct Diagnostic {
    exit: Exit,
    what: String,
    why: Option<Box<dyn Error + Send + Sync>>,
    remedy: Option<String>,
}

impl Diagnostic {
    /// A fault that ends the program with `exit`; `what` names the thing first.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Diagnostic { exit, what: what.into(), why: None, remedy: None }
    }

    /// Adds the reason.
    #[must_use]
    pub fn why(mut self, why: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The code that the program ends with.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Writes the report to standard error: with colours on a terminal, plain elsewhere.
    pub fn report(&self) -> Exit {
        use std::io::IsTerminal;
        let theme = if !std::io::stderr().is_terminal() {
            GraphicalTheme::none()
        } else if std::env::var_os("NO_COLOR").is_some() {
            GraphicalTheme::unicode_nocolor()
        } else {
            GraphicalTheme::unicode()
        };
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(theme).with_width(110);
        if handler.render_report(&mut text, self).is_err() {
            text = self.to_string();
        }
        eprintln!("{}", text.trim_end());
        self.exit
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Diagnostic {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.why.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(match self.exit {
            Exit::Ok => "ok",
            Exit::Bug => "bug",
            Exit::Usage => "usage",
            Exit::Input => "input",
            Exit::Fit => "does not fit",
            Exit::Io => "input/output",
            Exit::Differs => "differs",
            Exit::Interrupted => "interrupted",
        }))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.remedy.as_ref().map(|r| Box::new(r) as Box<dyn fmt::Display>)
    }
}

#[cfg(test)]
mod tests {
    use miette::Diagnostic as _;

    use super::*;

    #[test]
    fn report_holds_what_why_and_remedy() {
        let d = Diagnostic::new(Exit::Input, "config.json: rope_type yarn is not supported")
            .why("supported: default, linear, llama3")
            .remedy("use a checkpoint without it");
        let mut text = String::new();
        GraphicalReportHandler::new_themed(GraphicalTheme::none()).render_report(&mut text, &d).unwrap();
        for part in ["rope_type yarn", "supported: default", "use a checkpoint", "input"] {
            assert!(text.contains(part), "{part} missing in {text}");
        }
        assert_eq!(d.exit(), Exit::Input);
        assert!(d.help().is_some());
    }
}
