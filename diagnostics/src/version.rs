//! What `--version` says.

/// Commit that this build was made from, or `unknown` outside a checkout.
pub const COMMIT: &str = env!("LATHE_COMMIT");

/// `0.1.0 (commit abc, plan format 1.0, targets cpu, isa avx512)`.
pub fn version(plan_format: &str, targets: &[&str], isa: &str) -> String {
    format!(
        "{} (commit {COMMIT}, plan format {plan_format}, targets {}, isa {isa})",
        env!("CARGO_PKG_VERSION"),
        targets.join(" ")
    )
}
