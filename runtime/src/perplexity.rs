//! Perplexity of a text under a model: which tokens are scored in which window, and the sums over them.
//!
//! Windows slide as in the guide of Hugging Face transformers ("Perplexity of fixed-length models"): each has the full
//! context where it can, and scores the tokens that no earlier window has scored.

use std::ops::Range;

/// A stretch of the text that the model sees at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Tokens that it sees.
    pub seen: Range<usize>,
    /// Tokens that it scores, the last of those it sees. The first that it sees has no context and is never scored.
    pub scored: Range<usize>,
}

/// Windows of up to `context` tokens over `n` tokens, each `stride` after the one before. Both are at least 1.
pub fn windows(n: usize, context: usize, stride: usize) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut scored = 0;
    for start in (0..n).step_by(stride.max(1)) {
        let end = (start + context).min(n);
        if end > scored {
            windows.push(Window { seen: start..end, scored: scored.max(start + 1)..end });
            scored = end;
        }
        if end == n {
            break;
        }
    }
    windows
}

/// Sum of what was scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Negative log likelihood of all scored tokens, in nats.
    pub nats: f64,
    /// Scored tokens.
    pub n: usize,
}

impl Sum {
    /// Adds a token with natural log probability `logprob`.
    pub fn add(&mut self, logprob: f32) {
        self.nats -= f64::from(logprob);
        self.n += 1;
    }

    /// Exponential of the mean negative log likelihood; none of nothing.
    pub fn perplexity(&self) -> Option<f64> {
        (self.n > 0).then(|| (self.nats / self.n as f64).exp())
    }

    /// Bits that an arithmetic coder would spend per byte of a text of so many bytes.
    pub fn bits_per_byte(&self, bytes: usize) -> Option<f64> {
        (bytes > 0).then(|| self.nats / std::f64::consts::LN_2 / bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seen: Range<usize>, scored: Range<usize>) -> Window {
        Window { seen, scored }
    }

    #[test]
    fn windows_slide_as_the_guide_says() {
        assert_eq!(
            windows(10, 4, 2),
            [window(0..4, 1..4), window(2..6, 4..6), window(4..8, 6..8), window(6..10, 8..10),]
        );
        assert_eq!(windows(10, 4, 3), [window(0..4, 1..4), window(3..7, 4..7), window(6..10, 7..10)]);
        // Without overlap the first token of each window has no context.
        assert_eq!(windows(10, 4, 4), [window(0..4, 1..4), window(4..8, 5..8), window(8..10, 9..10)]);
        assert_eq!(windows(3, 8, 4), [window(0..3, 1..3)]);
        assert_eq!(windows(0, 8, 4), []);
    }

    #[test]
    fn overlapping_windows_score_every_token_but_the_first_once() {
        for (n, context, stride) in
            [(1000, 128, 64), (1000, 128, 127), (1001, 7, 1), (64, 64, 3), (129, 128, 100)]
        {
            let all: Vec<usize> = windows(n, context, stride).iter().flat_map(|w| w.scored.clone()).collect();
            assert_eq!(all, (1..n).collect::<Vec<_>>(), "{n} {context} {stride}");
            for w in windows(n, context, stride) {
                assert!(
                    w.seen.len() <= context && w.scored.start > w.seen.start && w.scored.end == w.seen.end
                );
            }
        }
    }

    #[test]
    fn sums_are_in_nats_and_bits() {
        let mut sum = Sum::default();
        assert_eq!(sum.perplexity(), None);
        for p in [0.5f32, 0.125] {
            sum.add(p.ln());
        }
        assert!((sum.perplexity().unwrap() - 4.0).abs() < 1e-6);
        assert!((sum.bits_per_byte(8).unwrap() - 0.5).abs() < 1e-6);
    }
}
