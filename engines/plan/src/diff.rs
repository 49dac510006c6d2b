//! What differs between two plans, by meaning: a weight is found by its name wherever it lies, a launch by its text.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::inspect;
use crate::reader::Plan;
use crate::schema::{DeviceLaunch, Launch, Program, Weight, hex};

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is, e.g. `flags` or `weight embed row_major`.
    pub what: String,
    /// In the first plan; `None` where it is only in the second.
    pub a: Option<String>,
    /// In the second plan; `None` where it is only in the first.
    pub b: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        for (sign, side) in [('-', &self.a), ('+', &self.b)] {
            if let Some(text) = side {
                write!(f, "\n  {sign} {text}")?;
            }
        }
        Ok(())
    }
}

/// All differences, none where both plans do the same; offsets and the order of weights are no difference.
pub fn diff(a: &Plan, b: &Plan) -> Vec<Difference> {
    let mut out = Vec::new();
    card(&mut out, a, b);
    let text = |p: &Plan| p.text().chat_templates.iter().chain(&p.text().special_tokens).cloned().collect();
    let (ta, tb): (BTreeMap<_, _>, BTreeMap<_, _>) = (text(a), text(b));
    keyed(&mut out, "text", &ta, &tb, |s| format!("{s:?}"));
    one(&mut out, "clean_up_spaces", &a.text().clean_up_spaces, &b.text().clean_up_spaces);
    let hash = |p: &Plan| match p.tokenizer_json() {
        Some(json) => blake3::hash(json).to_hex().to_string(),
        None => "none".to_string(),
    };
    one(&mut out, "tokenizer", &hash(a), &hash(b));
    let programs = |p: &Plan| -> BTreeMap<String, Program> {
        p.programs().iter().map(|p| (key(p), p.clone())).collect()
    };
    let (pa, pb) = (programs(a), programs(b));
    for name in union(&pa, &pb) {
        match (pa.get(&name), pb.get(&name)) {
            (Some(x), Some(y)) => program(&mut out, &name, (x, a.weights()), (y, b.weights())),
            (x, y) => out.push(Difference {
                what: format!("program {name}"),
                a: x.map(|p| format!("{} launches", p.launches.len())),
                b: y.map(|p| format!("{} launches", p.launches.len())),
            }),
        }
    }
    let weights = |p: &Plan| -> BTreeMap<String, String> {
        let entry = |w: &Weight| {
            let facts = format!("{}{:?} {} bytes {}", w.dtype, w.shape, w.bytes, hex(&w.hash));
            (format!("{} {}", w.name, w.layout.name()), facts)
        };
        p.weights().iter().map(entry).collect()
    };
    keyed(&mut out, "weight", &weights(a), &weights(b), String::clone);
    let test = |p: &Plan| format!("{:?}", p.self_test());
    one(&mut out, "self-test", &test(a), &test(b));
    out
}

/// Every field of the card by its name, so that a field that is added later is compared too.
fn card(out: &mut Vec<Difference>, a: &Plan, b: &Plan) {
    let fields = |p: &Plan| -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        // A card is a struct of plain values, which always has a JSON form.
        flatten("", &serde_json::to_value(p.card()).unwrap_or_default(), &mut fields);
        fields
    };
    keyed(out, "card", &fields(a), &fields(b), String::clone);
}

fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            flatten(&name, value, out);
        }
    } else {
        out.insert(prefix.to_string(), value.to_string());
    }
}

fn key(p: &Program) -> String {
    format!("{} {} rank {}/{}", p.name, inspect::target(&p.target), p.rank, p.n_ranks)
}

type Side<'a> = (&'a Program, &'a [Weight]);

fn program(out: &mut Vec<Difference>, name: &str, (a, wa): Side<'_>, (b, wb): Side<'_>) {
    let at = |what: &str| format!("program {name}: {what}");
    one(out, &at("symbols"), &format!("{:?}", a.symbols), &format!("{:?}", b.symbols));
    one(out, &at("arena bytes"), &a.arena_bytes, &b.arena_bytes);
    one(out, &at("scratch bytes"), &a.scratch_bytes, &b.scratch_bytes);
    one(out, &at("cache groups"), &format!("{:?}", a.cache_groups), &format!("{:?}", b.cache_groups));
    let buffers = |p: &Program| -> BTreeMap<String, String> {
        p.buffers
            .iter()
            .map(|b| (b.name.clone(), format!("{}[{}, {}]", b.dtype, inspect::expr(&b.rows), b.cols)))
            .collect()
    };
    keyed(out, &at("buffer"), &buffers(a), &buffers(b), String::clone);
    let modules = |p: &Program| -> BTreeMap<String, String> {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for m in &p.modules {
            let facts = by_name.entry(m.name.clone()).or_default();
            facts.push(inspect::code(m));
            facts.extend(inspect::kernels(m));
        }
        by_name.into_iter().map(|(name, facts)| (name, facts.join("; "))).collect()
    };
    keyed(out, &at("module"), &modules(a), &modules(b), String::clone);
    let launches = |p: &Program, w: &[Weight]| -> Vec<String> {
        let text = |l: &Launch| {
            let device = l.device.iter().map(|d| format!("\n      {}", device_launch(d, p)));
            inspect::launch(l, p, w) + &device.collect::<String>()
        };
        p.launches.iter().map(text).collect()
    };
    in_order(out, &at("launch"), &launches(a, wa), &launches(b, wb));
    let sampling = |p: &Program| -> Vec<String> { p.sampling.iter().map(|d| device_launch(d, p)).collect() };
    in_order(out, &at("sampling launch"), &sampling(a), &sampling(b));
}

/// By the name of its module, which keeps it when others come before it.
fn device_launch(d: &DeviceLaunch, p: &Program) -> String {
    let module = p.modules.get(d.module as usize).map_or("", |m| m.name.as_str());
    inspect::device_launch(d, module)
}

/// Common lines at both ends are left out; what is between is listed as it stands.
fn in_order(out: &mut Vec<Difference>, what: &str, la: &[String], lb: &[String]) {
    let head = la.iter().zip(lb).take_while(|(x, y)| x == y).count();
    let tail = la[head..].iter().rev().zip(lb[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (ma, mb) = (&la[head..la.len() - tail], &lb[head..lb.len() - tail]);
    for i in 0..ma.len().max(mb.len()) {
        let (x, y) = (ma.get(i), mb.get(i));
        if x != y {
            out.push(Difference { what: format!("{what} {}", head + i), a: x.cloned(), b: y.cloned() });
        }
    }
}

fn one<T: PartialEq + fmt::Display>(out: &mut Vec<Difference>, what: &str, a: &T, b: &T) {
    if a != b {
        out.push(Difference { what: what.to_string(), a: Some(a.to_string()), b: Some(b.to_string()) });
    }
}

fn keyed<T: PartialEq>(
    out: &mut Vec<Difference>,
    what: &str,
    a: &BTreeMap<String, T>,
    b: &BTreeMap<String, T>,
    show: impl Fn(&T) -> String,
) {
    for name in union(a, b) {
        let (x, y) = (a.get(&name), b.get(&name));
        if x != y {
            out.push(Difference { what: format!("{what} {name}"), a: x.map(&show), b: y.map(&show) });
        }
    }
}

fn union<T>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Vec<String> {
    let mut names: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Param;
    use crate::testing::{
        assemble, small_cuda_plan, small_cuda_tables, small_cuda_weights, small_plan, small_tables,
        small_weights,
    };
    use crate::writer::{Tables, WeightSpec, place};

    fn edited(specs: Vec<WeightSpec>, edit: impl FnOnce(&mut Tables)) -> Plan {
        let (weights, data_bytes) = place(specs).unwrap();
        let mut tables = small_tables(&weights);
        edit(&mut tables);
        let mut file = assemble(&tables, &weights, data_bytes).unwrap();
        crate::testing::reseal(&mut file);
        Plan::from_bytes(file).unwrap()
    }

    fn lines(b: &Plan) -> Vec<String> {
        let a = Plan::from_bytes(small_plan().unwrap()).unwrap();
        diff(&a, b).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_plan_differs_in_nothing() {
        assert_eq!(lines(&edited(small_weights(), |_| ())), Vec::<String>::new());
    }

    #[test]
    fn differences_are_named() {
        let b = edited(small_weights(), |t| {
            t.card.flags[1] = "5".into();
            t.card.generation.top_k = Some(7);
            t.programs[0].launches[1].params[0].1 = Param::Float(1e-6);
            t.text.special_tokens.pop();
            t.tokenizer = None;
        });
        let tokenizer = small_tables(b.weights()).tokenizer.map(|t| blake3::hash(&t).to_hex().to_string());
        let tokenizer = tokenizer.unwrap();
        assert_eq!(
            lines(&b)[..4],
            [
                "card flags\n  - [\"--max-batch\",\"4\",\"--max-num-tokens\",\"8\",\"--max-seq-len\",\"64\"]\n  + \
                 [\"--max-batch\",\"5\",\"--max-num-tokens\",\"8\",\"--max-seq-len\",\"64\"]",
                "card generation.top_k\n  - null\n  + 7",
                "text eos_token\n  - \"</s>\"",
                &format!("tokenizer\n  - {tokenizer}\n  + none"),
            ]
        );
        assert_eq!(
            lines(&b)[4..],
            ["program decoder cpu rank 0/1: launch 1\n  - h = rms_norm(x, @norm.0) {eps=1e-5} # h\n  + h = \
              rms_norm(x, @norm.0) {eps=1e-6} # h"]
        );
    }

    #[test]
    fn device_code_and_its_launches_are_compared() {
        let a = Plan::from_bytes(small_cuda_plan().unwrap()).unwrap();
        let (weights, data_bytes) = place(small_cuda_weights()).unwrap();
        let mut tables = small_cuda_tables(&weights);
        let p = &mut tables.programs[0];
        p.modules[0].entries[0].registers = 41;
        p.launches[1].device[0].block = 64;
        p.sampling[0].args.pop();
        let mut file = assemble(&tables, &weights, data_bytes).unwrap();
        crate::testing::reseal(&mut file);
        let b = Plan::from_bytes(file).unwrap();
        let found: Vec<_> = diff(&a, &b).into_iter().map(|d| (d.what, d.b.unwrap_or_default())).collect();
        let name = |what: &str| format!("program decoder sm_80 rank 0/1: {what}");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].0, name("module rows"));
        assert!(
            found[0].1.ends_with("rows: 41 registers, 0 bytes spilled, 16 bytes of stack, 1024 bytes shared")
        );
        assert_eq!(found[1].0, name("launch 1"));
        assert_eq!(
            found[1].1,
            "h = rms_norm(x, @norm.0) {eps=1e-5} # h\n      rows:rows [t, 1, 1] x 64 (input 0, input 1, output 0, t)"
        );
        let drawn = "sampler:rows [r, 1, 1] x 128 (input 0, 40, $scores, $counts, $draw_params)";
        assert_eq!(found[2], (name("sampling launch 0"), drawn.to_string()));
    }

    #[test]
    fn launches_that_come_between_move_nothing() {
        let b = edited(small_weights(), |t| {
            let again = t.programs[0].launches[1].clone();
            t.programs[0].launches.insert(1, again);
        });
        assert_eq!(
            lines(&b),
            ["program decoder cpu rank 0/1: launch 2\n  + h = rms_norm(x, @norm.0) {eps=1e-5} # h"]
        );
    }
}
