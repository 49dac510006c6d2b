//! A question with its answer for `TEST`: the reference interpreter's logits for a few tokens.
//!
//! The arithmetic is the interpreter's, so the answer is the same on every machine. Only the rows of the embedding and
//! of the head that the question needs are read, so that no vocabulary-sized tensor is ever held.

pub mod excerpt;
pub mod question;
pub mod routers;

use lathe_ir::Graph;
use lathe_numerics::DType;
use lathe_plan::schema::SelfTest;

use crate::checkpoint::TensorSource;
use crate::error::{CompileError, Result};
use question::Question;
use routers::Routers;

/// Parameters above which only the first and the last layer are tested, by a program of their own. The interpreter takes
/// some 3 ns per parameter, writing the plan some 5 (two cores, 2026-11): a whole test stays below a second, and two
/// layers of sixteen within a tenth of the compilation.
pub const WHOLE_MODEL_LIMIT: u64 = 250_000_000;

/// Name of the program that the test runs where the decoder is too large.
pub const PROGRAM: &str = "self_test";

/// Tokens of the question.
const N_TOKENS: u32 = 4;
/// Columns of the logits that are compared at each position.
const N_IDS: u32 = 64;

/// Largest difference that an engine may show, as a part of the largest logit: what the published goldens allow for
/// f32; for the short types the roundings of every layer add up, at half an ulp each.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 0.05,
        DType::F16 => 0.01,
        DType::F32 | DType::I32 | DType::U32 => 2e-4,
    }
}

/// Asks `graph`, an imported graph or an excerpt of one. With experts the tokens are such that every router decides clearly,
/// fewer where no more are found; `None` where there is no such token.
///
/// # Errors
/// A tensor that cannot be read, or a graph that the interpreter cannot run.
pub fn ask(
    graph: &Graph,
    source: &dyn TensorSource,
    vocab_size: u32,
    dtype: DType,
) -> Result<Option<SelfTest>> {
    let spread = |n: u32| -> Vec<u32> {
        let n = n.min(vocab_size);
        (0..n).map(|i| (u64::from(i) * u64::from(vocab_size) / u64::from(n)) as u32).collect()
    };
    let routers = Routers::of(graph, tolerance(dtype));
    // Logits, and of how many leading tokens all routers decide.
    let answer = |token_ids: &[u32], ids: &[u32]| -> Result<(Vec<f32>, usize)> {
        let mut n_decided = token_ids.len();
        let question = Question::new(graph, source, token_ids, ids)?;
        let logits = question.answer_watched(&mut |start, name, value| {
            let decided = routers.decide(name, value).unwrap_or_default();
            let first = decided.iter().position(|decides| !decides);
            n_decided = first.map_or(n_decided, |row| n_decided.min(start + row));
        })?;
        if logits.len() != token_ids.len() * ids.len() {
            let what = "self-test: the result has other rows or columns than the vocabulary says";
            return Err(CompileError::Bug(what.into()));
        }
        Ok((logits, n_decided))
    };
    let (mut token_ids, ids) = (spread(N_TOKENS), spread(N_IDS));
    let (mut logits, n_decided) = answer(&token_ids, &ids)?;
    if n_decided < token_ids.len() {
        let wanted = token_ids.len();
        token_ids.truncate(n_decided);
        routers.extend(&mut token_ids, wanted, source, vocab_size)?;
        if token_ids.is_empty() {
            return Ok(None);
        }
        logits = answer(&token_ids, &ids)?.0;
    }
    let positions = (0..token_ids.len() as u32).collect();
    if let Some(at) = logits.iter().position(|x| !x.is_finite()) {
        let why = format!("the reference logit of id {} is {}", ids[at % ids.len()], logits[at]);
        return Err(CompileError::input("weights", why).remedy("look for nan or infinity in the checkpoint"));
    }
    let largest = logits.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    // A model of zeros answers zeros; its engine may still be asked whether it is within something.
    let tolerance = (tolerance(dtype) * largest).max(f32::EPSILON);
    Ok(Some(SelfTest { token_ids, positions, ids, logits, tolerance }))
}
