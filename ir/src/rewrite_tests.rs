//! Tests of patches and the driver with small rules, and of the fused ops against what they stand for.

use proptest::prelude::*;

use crate::arbitrary::{Decoder, compare, decoders, random_weights};
use crate::driver::{Cx, Precision, Rule, drive};
use crate::entity::NodeId;
use crate::error::IrError;
use crate::graph::Graph;
use crate::op::Operation;
use crate::ops::{Activate, Add, AddRmsNorm, GatherRows, Linear, Op, RmsNorm, SliceCols};
use crate::patch::Patch;
use crate::text::parse;
use crate::weight::WeightExpr;

type Proposal<'g> = Result<Option<Patch<'g>>, IrError>;

const FUSE_ADD_NORM: Rule =
    Rule { name: "fuse-add-norm", precision: Precision::Exact, root: RmsNorm::NAME, apply: fuse_add_norm };

fn fuse_add_norm<'g>(g: &'g Graph, node: NodeId, _cx: &Cx) -> Proposal<'g> {
    let (Op::RmsNorm(norm), Some(sum)) = (g.op(node), g.producer(g.input_of(node, 0))) else {
        return Ok(None);
    };
    let Op::Add(_) = g.op(sum) else { return Ok(None) };
    let (x, residual) = (g.input_of(sum, 0), g.input_of(sum, 1));
    if g.facts(residual) != g.facts(g.output_of(sum)) {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let fused = patch.add_all(AddRmsNorm { eps: norm.eps }, &[x, residual, g.input_of(node, 1)])?;
    patch.replace(g.output_of(sum), fused[0])?;
    patch.replace(g.output_of(node), fused[1])?;
    Ok(Some(patch))
}

const MERGE_TWINS: Rule = Rule {
    name: "merge-twins",
    precision: Precision::Numeric { bound: 1e-6 },
    root: Linear::NAME,
    apply: merge_twins,
};

/// Merges a linear without bias and the next one on the same operand.
fn merge_twins<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Proposal<'g> {
    let x = g.input_of(node, 0);
    let mates: Vec<NodeId> = cx.uses.of(x).iter().copied().filter(|&n| g.op(n) == g.op(node)).collect();
    let [a, b, ..] = mates[..] else { return Ok(None) };
    let weights = [a, b].map(|n| g.as_weight(g.input_of(n, 1)));
    let [Some(wa), Some(wb)] = weights else { return Ok(None) };
    if a != node || [a, b].iter().any(|&n| g.node(n).inputs.len() != 2) {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let name = format!("{}.{}", g.weight_name(wa), g.weight_name(wb));
    let w = patch.weight(&name, WeightExpr::Concat(vec![wa, wb]))?;
    let both = patch.add(g.op(node).clone(), &[x, w])?;
    patch.name(both, "twins");
    let mut start = 0;
    for n in [a, b] {
        let len = g.facts(g.output_of(n)).shape()[1].as_const().unwrap();
        let part = patch.add(SliceCols { start, len }, &[both])?;
        patch.replace(g.output_of(n), part)?;
        start += len;
    }
    patch.mark_exact();
    Ok(Some(patch))
}

const GATHER_EARLY: Rule =
    Rule { name: "gather-early", precision: Precision::Exact, root: GatherRows::NAME, apply: gather_early };

fn gather_early<'g>(g: &'g Graph, node: NodeId, cx: &Cx) -> Proposal<'g> {
    let (x, rows) = (g.input_of(node, 0), g.input_of(node, 1));
    let Some(before) = g.producer(x).filter(|_| cx.uses.only_user(x) == Some(node)) else { return Ok(None) };
    let inputs = &g.node(before).inputs;
    let by_row: Vec<bool> = (0..inputs.len()).map(|i| g.op(before).is_rowwise(i)).collect();
    if by_row.iter().zip(inputs).any(|(r, &v)| !r && g.as_weight(v).is_none()) || !by_row.contains(&true) {
        return Ok(None);
    }
    let mut patch = Patch::new(g);
    let mut gathered = Vec::new();
    for (&v, by_row) in inputs.iter().zip(by_row) {
        gathered.push(if by_row { patch.add(GatherRows {}, &[v, rows])? } else { v });
    }
    let at = g.node(before).outputs.iter().position(|&v| v == x).unwrap();
    let out = patch.add_all(g.op(before).clone(), &gathered)?[at];
    patch.replace(g.output_of(node), out)?;
    Ok(Some(patch))
}

const ALL: [&Rule; 3] = [&FUSE_ADD_NORM, &MERGE_TWINS, &GATHER_EARLY];

const SMALL: &str = "graph @g(%x: f32[t, 4], %r: f32[t, 4]) where t in 1..=8 {
  weight @a : f32[2, 4]
  weight @b : f32[3, 4]
  weight @n : f32[4]
  %sum = add %x, %r : f32[t, 4]
  %early = activation %sum {act = silu} : f32[t, 4]
  %y = rms_norm %sum, @n {eps = 1e-5} : f32[t, 4]
  %p = linear %y, @a : f32[t, 2]
  %q = linear %y, @b : f32[t, 3]
  return %early, %p, %q
}
";

#[test]
fn patches_keep_names_and_order() {
    let mut g = parse(SMALL).unwrap();
    let report = drive(&mut g, &ALL).unwrap();
    let log: Vec<String> =
        report.applied.iter().map(|a| format!("{} at {}: {}", a.rule, a.node, a.precision)).collect();
    assert_eq!(log, ["fuse-add-norm at rms_norm %y: exact", "merge-twins at linear %p: exact"]);
    assert_eq!((report.count("merge-twins"), report.count("gather-early")), (1, 0));
    let want = "graph @g(%x: f32[t, 4], %r: f32[t, 4]) where t in 1..=8 {
  weight @a : f32[2, 4]
  weight @b : f32[3, 4]
  weight @n : f32[4]
  weight @a.b : f32[5, 4] = concat @a, @b
  %sum, %y = add_rms_norm %x, %r, @n {eps = 1e-5} : f32[t, 4], f32[t, 4]
  %early = activation %sum {act = silu} : f32[t, 4]
  %twins = linear %y, @a.b : f32[t, 5]
  %p = slice_cols %twins {len = 2, start = 0} : f32[t, 2]
  %q = slice_cols %twins {len = 3, start = 2} : f32[t, 3]
  return %early, %p, %q
}
";
    assert_eq!(g.to_string(), want);
}

#[test]
fn dead_nodes_and_weights_go_in_one_sweep() {
    let text = SMALL.replace("return %early, %p, %q", "return %early");
    let mut g = parse(&text).unwrap();
    assert_eq!(g.remove_dead(), (3, 3));
    assert_eq!(g.remove_dead(), (0, 0));
    let names: Vec<&str> = g.nodes().map(|(_, n)| g.value_name(n.outputs[0])).collect();
    assert_eq!(names, ["sum", "early"]);
    assert!(g.find("y").is_none() && g.find_weight("a").is_none());
}

fn rule(root: &'static str, apply: crate::driver::Apply) -> Rule {
    Rule { name: "bad-rule", precision: Precision::Exact, root, apply }
}

#[test]
fn bad_rules_are_refused_and_leave_the_graph() {
    let narrow = rule(Activate::NAME, |g, node, _| {
        let mut patch = Patch::new(g);
        let part = patch.add(SliceCols { start: 0, len: 2 }, &[g.input_of(node, 0)])?;
        patch.replace(g.output_of(node), part)?;
        Ok(Some(patch))
    });
    let cycle = rule(Add::NAME, |g, node, _| {
        let mut patch = Patch::new(g);
        let late = patch.add(Activate::default(), &[g.find("early").unwrap()])?;
        patch.replace(g.output_of(node), late)?;
        Ok(Some(patch))
    });
    let empty = rule(Activate::NAME, |g, _, _| Ok(Some(Patch::new(g))));
    let endless = rule(Activate::NAME, |g, node, _| {
        let mut patch = Patch::new(g);
        let same = patch.add(Activate::default(), &[g.input_of(node, 0)])?;
        patch.replace(g.output_of(node), same)?;
        Ok(Some(patch))
    });
    for (rule, want) in [
        (
            &narrow,
            "bad-rule at activation %early: patch refused: %early: patch refused: the facts change from f32[t, 4] to f32[t, 2]",
        ),
        (
            &cycle,
            "bad-rule at add %sum: patch refused: add %sum: patch refused: a new node needs a result that needs it",
        ),
        (
            &empty,
            "bad-rule at activation %early: patch refused: activation %early: patch refused: replaces nothing",
        ),
    ] {
        let mut g = parse(SMALL).unwrap();
        assert_eq!(drive(&mut g, &[rule]).unwrap_err().to_string(), want);
        assert_eq!(g.to_string(), SMALL);
    }
    let mut g = parse(SMALL).unwrap();
    let bug = drive(&mut g, &[&endless]).unwrap_err().to_string();
    assert!(
        bug.starts_with("bug: 144 applications without end, last bad-rule at activation %early"),
        "{bug}"
    );
}

#[test]
fn builders_refuse_what_does_not_fit() {
    let mut g = parse(SMALL).unwrap();
    let (x, p) = (g.find("x").unwrap(), g.find("p").unwrap());
    for (result, want) in [
        (g.push1(Activate::default(), &[x], "sum").map(drop), "%sum: defined twice"),
        (g.push1(Activate::default(), &[x], "a b").map(drop), "%a b: malformed name"),
        (g.push(Activate::default(), &[x], &["u", "v"]).map(drop), "activation %u: 1 results, 2 names"),
        (
            g.push1(Add::default(), &[x, p], "u").map(drop),
            "add %u: columns of a (4) differs from columns of b (2)",
        ),
        (g.symbol("t", 0, 1).map(drop), "t: symbol declared twice"),
    ] {
        assert_eq!(result.unwrap_err().to_string(), want);
    }
    assert_eq!(g.to_string(), SMALL);
}

/// A graph of `header`, `weights` and `nodes` that ends on `%y`.
fn body(weights: &str, nodes: &str) -> Graph {
    let head = "graph @g(%tokens: i32[t], %positions: i32[t], %s0: state) where t in 1..=64 {
  cache @kv : f16[layers=1, kv_heads=2, head_dim=4]
  weight @e : bf16[30, 12]
";
    let embed = "  %x = embedding %tokens, @e : bf16[t, 12]\n";
    parse(&format!("{head}{weights}{embed}{nodes}  return %y\n}}\n")).unwrap()
}

#[test]
fn fused_ops_are_what_they_stand_for() {
    let rope = "  weight @rope : f32[512, 2] = rope_table {dim = 2, positions = 512, theta = 100.0}\n";
    let qkv =
        format!("  weight @q : bf16[16, 12]\n  weight @k : bf16[8, 12]\n  weight @v : bf16[8, 12]\n{rope}");
    let attend = "  %y = attention %q, %s {head_dim = 4, heads = 4, kv_heads = 2, layer = 0, scale = 0.5} : f32[t, 16]\n";
    let mlp = "  weight @g : bf16[20, 12]\n  weight @u : bf16[20, 12]\n";
    let cases = [
        (
            body(
                &qkv,
                &format!(
                    "  %q0 = linear %x, @q : f32[t, 16]
  %k0 = linear %x, @k : f32[t, 8]
  %v = linear %x, @v : f32[t, 8]
  %q = rope %q0, %positions, @rope {{head_dim = 4, heads = 4, out = bf16, rotary_dim = 2}} : bf16[t, 16]
  %k = rope %k0, %positions, @rope {{head_dim = 4, heads = 2, rotary_dim = 2}} : f32[t, 8]
  %s = kv_append %k, %v, %s0 {{layer = 0}} : state
{attend}"
                ),
            ),
            body(
                &format!("{qkv}  weight @qkv : bf16[32, 12] = concat @q, @k, @v\n"),
                &format!(
                    "  %qkv = linear %x, @qkv : f32[t, 32]
  %q, %s = rope_append %qkv, %positions, %s0, @rope {{head_dim = 4, heads = 4, kv_heads = 2, layer = 0, out = bf16}} : bf16[t, 16], state
{attend}"
                ),
            ),
        ),
        (
            body(
                mlp,
                "  %g = linear %x, @g : f32[t, 20]
  %u = linear %x, @u : f32[t, 20]
  %a = activation %g {act = silu} : f32[t, 20]
  %y = mul %a, %u {out = bf16} : bf16[t, 20]
",
            ),
            body(
                &format!("{mlp}  weight @gu : bf16[64, 12] = interleave16 @g, @u\n"),
                "  %gu = linear %x, @gu : f32[t, 64]
  %y = glu %gu {act = silu, cols = 20, interleave = 16, out = bf16} : bf16[t, 20]
",
            ),
        ),
        (
            body(
                &format!("{mlp}  weight @gu : bf16[64, 12] = interleave16 @g, @u\n"),
                "  %gu = linear %x, @gu : f32[t, 64]
  %y = glu %gu {act = silu, cols = 20, interleave = 16, out = bf16} : bf16[t, 20]
",
            ),
            body(
                &format!("{mlp}  weight @gu : bf16[64, 12] = interleave16 @g, @u\n"),
                "  %y = linear_glu %x, @gu {act = silu, cols = 20, interleave = 16, out = bf16} : bf16[t, 20]\n",
            ),
        ),
    ];
    for (plain, fused) in cases {
        for seed in 0..4 {
            let weights = random_weights(&plain, seed);
            assert_eq!(
                compare(&plain, &fused, &weights, &Decoder::plain(seed).steps(), Precision::Exact),
                Ok(()),
                "{fused}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rules_keep_every_bit_on_random_graphs(d in decoders()) {
        let before = d.graph().unwrap();
        let mut after = before.clone();
        let report = drive(&mut after, &ALL).unwrap();
        prop_assert!(d.style.layer_norm.is_some() || report.count("fuse-add-norm") > 0);
        prop_assert_eq!(compare(&before, &after, &d.weights(&before), &d.steps(), Precision::Exact), Ok(()));
        let again = parse(&after.to_string()).unwrap();
        prop_assert_eq!(again.to_string(), after.to_string());
        after.remove_dead();
        prop_assert_eq!(compare(&before, &after, &d.weights(&before), &d.steps(), Precision::Exact), Ok(()));
    }
}
