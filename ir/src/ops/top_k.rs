//! `top_k(logits) {k, over}`: the `k` largest logits of a row and their softmax weights (arXiv 1701.06538).
//!
//! Ids stand by descending logit; of equal logits the lower id comes first; NaN comes after all numbers. With `m` the
//! largest logit, weight `j` is `exp(l_j - m) / sum`, all in f32, with `numerics::exp`. The sum goes `over` the `chosen`
//! (left to right in rank order; the weights add up to one) or over `all` (16 lanes and the contract's tree, as norms).

use std::fmt;
use std::str::FromStr;

use lathe_numerics::DType;
use lathe_numerics::contract::{TREE_LANES, tree16};
use lathe_numerics::exp::exp;

use crate::facts::{Dim, Facts};
use crate::interp::EvalCx;
use crate::op::{Args, AttrValue, Attrs, Operation};
use crate::tensor::Value;

/// What the softmax of a router is normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Over {
    /// Every logit: the weights of the chosen add up to less than one.
    All,
    /// The chosen logits.
    #[default]
    Chosen,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Over::All { "all" } else { "chosen" })
    }
}

impl FromStr for Over {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Over::All),
            "chosen" => Ok(Over::Chosen),
            _ => Err("expected all or chosen".into()),
        }
    }
}

impl AttrValue for Over {
    fn text(&self) -> String {
        self.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// `logits: f32[t, n]` gives ids `i32[t, k]` and weights `f32[t, k]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TopK {
    /// How many are chosen.
    pub k: usize,
    /// What the weights are normalised over.
    pub over: Over,
}

/// Ids of the `k` largest, in order.
fn largest(row: &[f32], k: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    let key = |i: usize| if row[i].is_nan() { None } else { Some(row[i]) };
    // Stable: equal logits stay in ascending order of ids.
    ids.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
    ids.truncate(k);
    ids
}

impl Operation for TopK {
    const NAME: &'static str = "top_k";

    fn attrs(&mut self, a: &mut Attrs) {
        a.required("k", &mut self.k);
        a.required("over", &mut self.over);
    }

    fn infer(&self, args: &Args<'_>) -> Result<Vec<Facts>, String> {
        args.expect(1, 1)?;
        let (dtype, shape) = args.float(0, "logits", 2)?;
        if dtype != DType::F32 {
            return Err(format!("logits are {dtype}, expected f32"));
        }
        let n = shape[1].as_const().ok_or("columns of logits are symbolic")?;
        if !(1..=n).contains(&self.k) {
            return Err(format!("k is {}, expected 1..={n}", self.k));
        }
        let shape = [shape[0].clone(), Dim::from(self.k)];
        Ok(vec![Facts::tensor(DType::I32, shape.clone()), Facts::tensor(DType::F32, shape)])
    }

    fn eval(&self, inputs: &[&Value], cx: &mut EvalCx<'_>) -> Result<Vec<Value>, String> {
        let logits = inputs[0].tensor()?;
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for row in logits.floats()?.chunks_exact(logits.row_len()) {
            let chosen = largest(row, self.k);
            let max = row[chosen[0]];
            let sum = match self.over {
                Over::Chosen => chosen.iter().fold(0.0, |sum, &i| sum + exp(row[i] - max)),
                Over::All => {
                    let mut lanes = [0.0; TREE_LANES];
                    row.iter().enumerate().for_each(|(i, l)| lanes[i % TREE_LANES] += exp(l - max));
                    tree16(&lanes)
                }
            };
            weights.extend(chosen.iter().map(|&i| exp(row[i] - max) / sum));
            ids.extend(chosen.into_iter().map(|i| i as i32));
        }
        Ok(vec![cx.finish_ints(0, ids), cx.finish(1, weights)])
    }

    fn is_rowwise(&self, _input: usize) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::testing::{eval_all, floats, try_eval};

    fn run(row: &[f32], k: usize, over: Over) -> (Vec<i32>, Vec<f32>) {
        let got = eval_all(TopK { k, over }, &[&floats(DType::F32, [1, row.len()], row)]);
        (got[0].ints().unwrap().to_vec(), got[1].floats().unwrap().to_vec())
    }

    #[test]
    fn ranks_by_logit_then_id() {
        let nan = f32::NAN;
        assert_eq!(run(&[1.0, 3.0, nan, 3.0, -1.0], 4, Over::Chosen).0, [1, 3, 0, 4]);
        assert_eq!(run(&[nan, nan, f32::NEG_INFINITY], 3, Over::Chosen).0, [2, 0, 1]);
    }

    #[test]
    fn weights_are_normalised_over_what_is_asked() {
        let row = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 0.0];
        let (ids, chosen) = run(&row, 2, Over::Chosen);
        let (_, all) = run(&row, 2, Over::All);
        assert_eq!(ids, [2, 1]);
        for (got, want) in chosen.iter().chain(&all).zip([4.0 / 6.0, 2.0 / 6.0, 0.5, 0.25]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let x = floats(DType::F32, [1, 2], &[0.0; 2]);
        assert_eq!(try_eval(TopK { k: 3, over: Over::All }, &[&x]).unwrap_err(), "k is 3, expected 1..=2");
    }
}
