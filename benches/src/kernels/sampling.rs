//! Drawing one token from one row of logits, on one thread.

use std::hint::black_box;

use anyhow::Result;
use lathe_kernels::sampling::{Context, Params, Scratch, TopLogprob, draw, logprobs};

use super::Cx;

const VOCABULARY: u32 = 128_256;

/// All ways to draw, and logprobs.
pub fn measure(cx: &mut Cx) -> Result<()> {
    let path = cx.path;
    let row: Vec<f32> =
        (0..VOCABULARY).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6 - 8.0).collect();
    let mut scratch = Scratch::new(row.len());
    let context = Context::default();
    let base = Params { temperature: 0.8, ..Params::default() };
    for (name, params) in [
        ("greedy", Params::default()),
        ("temperature", base),
        ("top_k 50", Params { top_k: 50, ..base }),
        ("top_p 0.95", Params { top_p: 0.95, ..base }),
        ("top_k 50, top_p 0.95, min_p", Params { top_k: 50, top_p: 0.95, min_p: 0.01, ..base }),
    ] {
        cx.row(format!("sampling {name}"), None, None, 1, || {
            black_box(draw(path, &row, &params, &context, &mut scratch));
        })?;
    }
    let mut top = [TopLogprob::default(); 20];
    cx.row("logprobs, top 20".into(), None, None, 1, || {
        black_box(logprobs(path, &row, 7, &mut top));
    })
}
