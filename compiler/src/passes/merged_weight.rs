//! What merging weights has in common: a name that people recognise, and whether the merge keeps every bit.

use lathe_ir::driver::Precision;
use lathe_ir::{Graph, WeightExpr, WeightId};
use lathe_numerics::gemm_slices;

/// A merged weight may be cut into other K slices than its parts were (`numerics::contract`). Then f32 sums move by a
/// few units in the last place, and where one lies at a rounding border of a 16-bit type, by half a unit of that type,
/// which later layers carry on.
pub const RESLICED: Precision = Precision::Numeric { bound: 2e-2 };

/// True if every part `[n, k]` is cut into as many K slices as the whole of `rows` rows.
pub fn keeps_slices(parts: impl IntoIterator<Item = usize>, rows: usize, k: usize) -> bool {
    parts.into_iter().all(|n| gemm_slices(n, k) == gemm_slices(rows, k))
}

/// The parts' common prefix and suffix with what differs joined between: `l0.q_proj`, `l0.k_proj`, `l0.v_proj` give
/// `l0.qkv_proj`. A suffix is added if something else has that name.
pub fn name(g: &Graph, of: &[WeightId], expr: &WeightExpr) -> String {
    let names: Vec<&str> = of.iter().map(|&w| g.weight_name(w)).collect();
    let base = joined(&names);
    let free = |name: &String| g.find_weight(name).is_none_or(|w| g.weight_data(w).expr == *expr);
    let suffixed = (1_u64..).map(|n| format!("{base}.{n}"));
    std::iter::once(base.clone()).chain(suffixed).find(free).unwrap_or(base)
}

fn joined(names: &[&str]) -> String {
    let Some((first, rest)) = names.split_first() else { return String::new() };
    let common = |same: &dyn Fn(&str, usize) -> bool, limit: usize| {
        (0..limit).take_while(|&i| rest.iter().all(|name| same(name, i))).count()
    };
    let byte = |name: &str, i: usize| name.as_bytes().get(i).copied();
    let back = |name: &str, i: usize| name.len().checked_sub(i + 1).and_then(|at| byte(name, at));
    let shortest = names.iter().map(|n| n.len()).min().unwrap_or(0);
    let prefix = common(&|name, i| byte(name, i) == byte(first, i), shortest);
    let suffix = common(&|name, i| back(name, i) == back(first, i), shortest - prefix);
    // Names are ASCII, so every byte is a character.
    let middles: Vec<&str> = names.iter().map(|n| &n[prefix..n.len() - suffix]).collect();
    let glue = if middles.iter().all(|m| m.len() <= 1) { "" } else { "_" };
    format!("{}{}{}", &first[..prefix], middles.join(glue), &first[first.len() - suffix..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_what_the_parts_share() {
        for (names, want) in [
            (&["l0.q_proj.weight", "l0.k_proj.weight", "l0.v_proj.weight"][..], "l0.qkv_proj.weight"),
            (&["l0.gate_proj.weight", "l0.up_proj.weight"], "l0.gate_up_proj.weight"),
            (&["a", "b"], "ab"),
            (&["w1", "w1"], "w1"),
            (&["x.w", "x.w.w"], "x.w_.w"),
        ] {
            assert_eq!(joined(names), want);
        }
    }
}
