//! The work that every engine does: prompts in one step, then one greedy token per sequence and step.

/// Sequences of `prompt` ids that are prefilled together and then decoded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Name in tables.
    pub name: &'static str,
    /// Sequences.
    pub sequences: u32,
    /// Ids of each prompt.
    pub prompt: u32,
    /// Tokens of each sequence after the first, which comes of the prompt's own step.
    pub new: u32,
    /// What is asked beside.
    pub extra: Extra,
}

/// What a case asks beside its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Nothing.
    None,
    /// Memory is read at full speed after every step, so that both rates are of the same moments; our worker's alone.
    Reads,
    /// The prompts are run once per engine; later runs decode after what the cache holds of them.
    Kept,
}

impl Extra {
    /// Each with its word in a line.
    const WORDS: [(&str, Extra); 3] = [("", Extra::None), (" reads", Extra::Reads), (" kept", Extra::Kept)];
}

/// Decoding beside the machine's read bandwidth.
pub const ROOFLINE: Case = Case { name: "roofline", sequences: 1, prompt: 512, new: 64, extra: Extra::Reads };

/// Names of cases in tables.
pub const ONE: &str = "1 sequence";
/// Short prompts.
pub const EIGHT: &str = "8 sequences";
/// Short prompts.
pub const MANY: &str = "32 sequences";
/// One prompt that fills nearly all 4,096 positions.
pub const LONG: &str = "1 long";
/// As many as a server runs, each in the middle of a conversation.
pub const MANY_LONG: &str = "32 long";

/// One sequence, 8 and 32, with short and long contexts.
pub const CASES: [Case; 5] = [
    Case { name: ONE, sequences: 1, prompt: 512, new: 64, extra: Extra::None },
    Case { name: EIGHT, sequences: 8, prompt: 32, new: 32, extra: Extra::None },
    Case { name: MANY, sequences: 32, prompt: 32, new: 32, extra: Extra::None },
    Case { name: LONG, sequences: 1, prompt: 4032, new: 32, extra: Extra::None },
    Case { name: MANY_LONG, sequences: 32, prompt: 1024, new: 16, extra: Extra::Kept },
];

impl Case {
    /// The line that a worker reads.
    pub fn line(&self) -> String {
        let extra = Extra::WORDS.iter().find(|w| w.1 == self.extra).map_or("", |w| w.0);
        format!("{} {} {}{extra}\n", self.sequences, self.prompt, self.new)
    }

    /// `sequences prompt new [reads|kept]`.
    pub fn parse(line: &str) -> Option<Case> {
        let line = line.trim_end();
        let with = |(word, extra): &(&str, Extra)| Some((line.strip_suffix(word)?, *extra));
        let (line, extra) = Extra::WORDS.iter().rev().find_map(with)?;
        let mut numbers = line.split_whitespace().map(|w| w.parse::<u32>().ok().filter(|n| *n > 0));
        let (sequences, prompt, new) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(Case { name: "asked", sequences, prompt, new, extra })
    }

    /// Prompt ids of sequence `s`; the same for every engine. Below 31,100, which every shape here has.
    pub fn prompt(&self, s: u32) -> impl Iterator<Item = u32> {
        (0..self.prompt).map(move |i| ((i + s * 101) * 7919 + 13) % 31_000 + 100)
    }
}

#[cfg(test)]
mod tests {
    use super::{CASES, Case, ROOFLINE};

    #[test]
    fn lines_are_read_back() {
        for case in CASES.into_iter().chain([ROOFLINE]) {
            let read = Case::parse(&case.line()).unwrap();
            assert_eq!(Case { name: case.name, ..read }, case);
        }
        for bad in ["", "1 2", "1 2 3 4", "0 1 1", "x 1 1", "1 1 1 writes", "reads"] {
            assert_eq!(Case::parse(bad), None, "{bad}");
        }
    }
}
