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
    /// Memory is read at full speed after every step, so that both rates are of the same moments; our worker's alone.
    pub reads: bool,
}

/// Decoding beside the machine's read bandwidth.
pub const ROOFLINE: Case = Case { name: "roofline", sequences: 1, prompt: 512, new: 64, reads: true };

/// One sequence, 8 and 32.
pub const CASES: [Case; 3] = [
    Case { name: "1 sequence", sequences: 1, prompt: 512, new: 64, reads: false },
    Case { name: "8 sequences", sequences: 8, prompt: 32, new: 32, reads: false },
    Case { name: "32 sequences", sequences: 32, prompt: 32, new: 32, reads: false },
];

impl Case {
    /// The line that a worker reads.
    pub fn line(&self) -> String {
        let reads = if self.reads { " reads" } else { "" };
        format!("{} {} {}{reads}\n", self.sequences, self.prompt, self.new)
    }

    /// `sequences prompt new [reads]`.
    pub fn parse(line: &str) -> Option<Case> {
        let (line, reads) = match line.trim_end().strip_suffix(" reads") {
            Some(line) => (line, true),
            None => (line, false),
        };
        let mut numbers = line.split_whitespace().map(|w| w.parse::<u32>().ok().filter(|n| *n > 0));
        let (sequences, prompt, new) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(Case { name: "asked", sequences, prompt, new, reads })
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
