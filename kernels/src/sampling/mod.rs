//! From one row of raw logits to one token: what every sampling parameter means.
//!
//! Order: logit bias, suppressed ids, repetition / presence / frequency penalties, allowed mask, temperature, min_p,
//! top_k, top_p, then a draw by inverse CDF in ascending id order with `numerics::philox::uniform(seed, choice,
//! position)`. Ties of logits go to the lower id everywhere. NaN counts as minus infinity. Everything is a function of
//! the row, the request and the position; the same on every ISA.

use lathe_numerics::contract::TREE_LANES;
use lathe_numerics::philox;

use crate::{IsaPath, lanes};

#[cfg(feature = "cuda")]
pub mod cuda;
mod logprobs;
pub mod reference;
#[cfg(test)]
mod tests;

pub use logprobs::{Logprobs, TopLogprob, logprobs};

/// Parameters of one draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// 0 or less takes the largest logit.
    pub temperature: f32,
    /// Keep this many of the largest logits; 0 is off.
    pub top_k: u32,
    /// Keep the shortest prefix, by descending logit, whose share reaches this; 1 or more is off.
    pub top_p: f32,
    /// Drop ids less likely than this times the likeliest; 0 is off.
    pub min_p: f32,
    /// Of ids seen in prompt or output: positive logits are divided by this, others multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from ids seen in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// Index of the choice among `n`.
    pub choice: u32,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            choice: 0,
        }
    }
}

/// A row's state beside its logits. Ids outside the vocabulary are ignored everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Absolute position of the token to draw.
    pub position: u32,
    /// Added to logits.
    pub bias: &'a [(u32, f32)],
    /// Ids that may not be drawn (min_tokens).
    pub suppressed: &'a [u32],
    /// Prompt ids, with repetitions.
    pub prompt: &'a [u32],
    /// Generated ids, with repetitions.
    pub output: &'a [u32],
    /// Bit `id % 32` of word `id / 32` allows an id; ids past the end are not allowed.
    pub allowed: Option<&'a [u32]>,
}

/// Buffers of one drawing thread.
pub struct Scratch {
    logits: Vec<f32>,
    weights: Vec<f32>,
    buckets: Vec<u16>,
    counts: Vec<u32>,
    border: Vec<u32>,
    n_in: Vec<u32>,
    sum_in: Vec<f64>,
}

impl Scratch {
    /// Buffers for rows of up to `vocab` logits: all that `draw` will ever need.
    pub fn new(vocab: usize) -> Self {
        Scratch {
            logits: vec![0.0; vocab],
            weights: vec![0.0; vocab],
            buckets: vec![0; vocab],
            counts: vec![0; vocab],
            border: Vec::with_capacity(vocab),
            n_in: vec![0; BUCKETS],
            sum_in: vec![0.0; BUCKETS],
        }
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub const fn bytes(vocab: usize) -> usize {
        vocab * (4 + 4 + 2 + 4 + 4) + BUCKETS * (4 + 8)
    }
}

/// Buckets of scaled logits below the maximum, `1 / BUCKETS_PER_NAT` wide; the last one holds all that is lower.
const BUCKETS: usize = 4096;
const BUCKETS_PER_NAT: f32 = 64.0;
/// In `counts`: seen in the prompt. The rest counts output occurrences.
const IN_PROMPT: u32 = 1 << 31;
/// Weights summed as one piece when the draw looks for its place.
const PIECE: usize = 1024;

/// Draws a token; `None` when no id is allowed with a logit above minus infinity.
///
/// # Panics
/// When `row` is longer than the scratch was made for.
pub fn draw(path: IsaPath, row: &[f32], params: &Params, cx: &Context, s: &mut Scratch) -> Option<u32> {
    assert!(row.len() <= s.logits.len());
    let plain = cx.bias.is_empty() && cx.suppressed.is_empty() && cx.allowed.is_none() && !penalised(params);
    let row = if plain {
        row
    } else {
        s.logits[..row.len()].copy_from_slice(row);
        adjust(&mut s.logits[..row.len()], &mut s.counts[..row.len()], params, cx);
        &s.logits[..row.len()]
    };
    let (best, max) = path.run(
        #[inline(always)]
        || argmax(row),
    )?;
    // Not above zero, or NaN: greedy. An infinite logit leaves nothing to weigh.
    if params.temperature.is_nan() || params.temperature <= 0.0 || max == f32::INFINITY {
        return Some(best);
    }
    let weights = &mut s.weights[..row.len()];
    path.run(
        #[inline(always)]
        || weigh(row, max, params, weights),
    );
    let top_k = params.top_k > 0 && (params.top_k as usize) < row.len();
    let top_p = params.top_p < 1.0;
    if top_k || top_p {
        let buckets = &mut s.buckets[..row.len()];
        let scale = BUCKETS_PER_NAT / params.temperature;
        path.run(
            #[inline(always)]
            || {
                for (b, x) in buckets.iter_mut().zip(row) {
                    let at = (max - x) * scale;
                    // NaN (from a NaN logit) fails the comparison and lands last.
                    *b = if at < (BUCKETS - 1) as f32 { at as i32 as u16 } else { (BUCKETS - 1) as u16 };
                }
            },
        );
        if top_k {
            keep_top_k(params.top_k as usize, row, weights, buckets, &mut s.n_in, &mut s.border);
        }
        if top_p {
            keep_top_p(params.top_p, row, weights, buckets, &mut s.sum_in, &mut s.border);
        }
    }
    let u = philox::uniform(params.seed, params.choice, cx.position);
    Some(
        path.run(
            #[inline(always)]
            || pick(weights, u),
        )
        .unwrap_or(best),
    )
}

fn penalised(p: &Params) -> bool {
    p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
}

fn adjust(logits: &mut [f32], counts: &mut [u32], params: &Params, cx: &Context) {
    for (id, bias) in cx.bias {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x += bias;
        }
    }
    for id in cx.suppressed {
        if let Some(x) = logits.get_mut(*id as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
    if penalised(params) {
        for id in cx.prompt.iter().chain(cx.output) {
            if let Some(c) = counts.get_mut(*id as usize) {
                *c = 0;
            }
        }
        for id in cx.prompt {
            if let Some(c) = counts.get_mut(*id as usize) {
                *c = IN_PROMPT;
            }
        }
        for id in cx.output {
            if let Some(c) = counts.get_mut(*id as usize) {
                *c += 1;
            }
        }
        for id in cx.prompt.iter().chain(cx.output) {
            let id = *id as usize;
            let Some(c) = counts.get_mut(id) else { continue };
            let count = std::mem::take(c);
            if count == 0 {
                continue;
            }
            let x = &mut logits[id];
            let r = params.repetition_penalty;
            *x = if *x > 0.0 { *x / r } else { *x * r };
            let outputs = count & !IN_PROMPT;
            if outputs > 0 {
                *x -= params.frequency_penalty * outputs as f32 + params.presence_penalty;
            }
        }
    }
    if let Some(mask) = cx.allowed {
        for (id, x) in logits.iter_mut().enumerate() {
            let word = mask.get(id / 32).copied().unwrap_or(0);
            if word >> (id % 32) & 1 == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
    }
}

/// The lowest id of the largest logit above minus infinity.
#[inline(always)]
fn argmax(row: &[f32]) -> Option<(u32, f32)> {
    let mut maxima = [f32::NEG_INFINITY; 4 * TREE_LANES];
    let (chunks, tail) = row.as_chunks::<{ 4 * TREE_LANES }>();
    for c in chunks {
        for (m, x) in maxima.iter_mut().zip(c) {
            *m = if *x > *m { *x } else { *m };
        }
    }
    let max = maxima.iter().chain(tail).fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    if max == f32::NEG_INFINITY {
        return None;
    }
    let id = find(row, max)?;
    Some((id as u32, max))
}

/// First index whose value equals `x`.
#[inline(always)]
fn find(row: &[f32], x: f32) -> Option<usize> {
    let mut base = 0;
    for c in row.chunks(64) {
        if c.iter().fold(false, |any, v| any | (*v == x)) {
            return c.iter().position(|v| *v == x).map(|i| base + i);
        }
        base += c.len();
    }
    None
}

/// `exp((x - max) / temperature)`; zero for ids below min_p.
#[inline(always)]
fn weigh(row: &[f32], max: f32, params: &Params, weights: &mut [f32]) {
    let (t, min_p) = (params.temperature, params.min_p);
    for (w, x) in weights.iter_mut().zip(row) {
        let e = lanes::exp((x - max) / t);
        *w = if e >= min_p { e } else { 0.0 };
    }
}

/// Zeroes the weights of all ids but the `k` first by (logit descending, id ascending).
fn keep_top_k(
    k: usize,
    row: &[f32],
    weights: &mut [f32],
    buckets: &[u16],
    n_in: &mut [u32],
    border: &mut Vec<u32>,
) {
    n_in.fill(0);
    for (b, w) in buckets.iter().zip(&*weights) {
        n_in[usize::from(*b)] += u32::from(*w > 0.0);
    }
    let (mut kept, mut cut) = (0, 0);
    while cut < BUCKETS && kept + n_in[cut] as usize <= k {
        kept += n_in[cut] as usize;
        cut += 1;
    }
    if cut == BUCKETS {
        return;
    }
    split_at_bucket(cut, row, weights, buckets, border);
    for id in &border[k - kept..] {
        weights[*id as usize] = 0.0;
    }
}

/// Zeroes the weights of all ids after the prefix, by (logit descending, id ascending), that reaches `p` of the total.
fn keep_top_p(
    p: f32,
    row: &[f32],
    weights: &mut [f32],
    buckets: &[u16],
    sum_in: &mut [f64],
    border: &mut Vec<u32>,
) {
    sum_in.fill(0.0);
    for (b, w) in buckets.iter().zip(&*weights) {
        if *w > 0.0 {
            sum_in[usize::from(*b)] += f64::from(*w);
        }
    }
    let want = f64::from(p) * sum_in.iter().sum::<f64>();
    let (mut kept, mut cut) = (0.0, 0);
    while cut < BUCKETS && kept + sum_in[cut] < want {
        kept += sum_in[cut];
        cut += 1;
    }
    if cut == BUCKETS {
        return;
    }
    split_at_bucket(cut, row, weights, buckets, border);
    // The likeliest id always stays.
    let mut first = cut == 0 || kept == 0.0;
    for id in border.iter() {
        let w = &mut weights[*id as usize];
        if kept >= want && !first {
            *w = 0.0;
        } else {
            kept += f64::from(*w);
            first = false;
        }
    }
}

/// Zeroes the weights of buckets after `cut`; collects the live ids of bucket `cut` in order.
fn split_at_bucket(cut: usize, row: &[f32], weights: &mut [f32], buckets: &[u16], border: &mut Vec<u32>) {
    border.clear();
    for (id, (w, b)) in weights.iter_mut().zip(buckets).enumerate() {
        let b = usize::from(*b);
        if b > cut {
            *w = 0.0;
        } else if b == cut && *w > 0.0 {
            border.push(id as u32);
        }
    }
    // A weight above zero has a finite logit, so this order is total.
    border.sort_unstable_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
}

/// The id at which the running sum, in ascending id order, passes `u` of the total; sums in pieces, f64.
#[inline(always)]
fn pick(weights: &[f32], u: f32) -> Option<u32> {
    let piece_sum = |piece: &[f32]| {
        let mut sums = [0.0f64; TREE_LANES];
        let (chunks, tail) = piece.as_chunks::<TREE_LANES>();
        for c in chunks {
            for l in 0..TREE_LANES {
                sums[l] += f64::from(c[l]);
            }
        }
        for (s, w) in sums.iter_mut().zip(tail) {
            *s += f64::from(*w);
        }
        sums.iter().sum::<f64>()
    };
    let mut total = 0.0;
    for piece in weights.chunks(PIECE) {
        total += piece_sum(piece);
    }
    let goal = f64::from(u) * total;
    let (mut sum, mut last) = (0.0, None);
    for (i, piece) in weights.chunks(PIECE).enumerate() {
        let after = sum + piece_sum(piece);
        if after > goal {
            for (j, w) in piece.iter().enumerate() {
                if *w > 0.0 {
                    sum += f64::from(*w);
                    last = Some((i * PIECE + j) as u32);
                    if sum > goal {
                        return last;
                    }
                }
            }
            // Only rounding between the two orders of adding leads here.
            return last;
        }
        sum = after;
    }
    last
}
