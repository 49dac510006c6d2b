//! The rewrites, one file each: what it does, what it needs, what it keeps, when it gives up.
//!
//! A new one is its file, its `mod` line, its place in `pipeline.rs` and its line in [`RULES`] or [`PASSES`].

mod attention_inputs;
mod fold_constants;
mod fuse_add_rms_norm;
mod fuse_combine_add;
mod fuse_linear_activation;
mod fuse_linear_add;
mod fuse_linear_glu;
mod fuse_norm_linear;
mod fuse_norm_linear_rope_append;
mod fuse_rope_append;
mod gather_sampled_rows;
mod merge_gate_up;
mod merge_qkv;
mod merged_weight;
mod remove_dead;

use lathe_ir::Graph;
use lathe_ir::driver::{Pass, Rule, drive};

pub use fold_constants::FOLD_CONSTANTS;
pub use fuse_add_rms_norm::FUSE_ADD_RMS_NORM;
pub use fuse_combine_add::FUSE_COMBINE_ADD;
pub use fuse_linear_activation::FUSE_LINEAR_ACTIVATION;
pub use fuse_linear_add::FUSE_LINEAR_ADD;
pub use fuse_linear_glu::FUSE_LINEAR_GLU;
pub use fuse_norm_linear::{FUSE_NORM_LINEAR, FUSE_NORM_LINEAR_GLU};
pub use fuse_norm_linear_rope_append::FUSE_NORM_LINEAR_ROPE_APPEND;
pub use fuse_rope_append::FUSE_ROPE_APPEND;
pub use gather_sampled_rows::GATHER_SAMPLED_ROWS;
pub use merge_gate_up::MERGE_GATE_UP;
pub use merge_qkv::MERGE_QKV;
pub use remove_dead::REMOVE_DEAD;

/// Every rule.
pub const RULES: &[&Rule] = &[
    &FUSE_ADD_RMS_NORM,
    &FUSE_COMBINE_ADD,
    &FUSE_LINEAR_ACTIVATION,
    &FUSE_LINEAR_ADD,
    &FUSE_LINEAR_GLU,
    &FUSE_NORM_LINEAR,
    &FUSE_NORM_LINEAR_ROPE_APPEND,
    &FUSE_NORM_LINEAR_GLU,
    &FUSE_ROPE_APPEND,
    &GATHER_SAMPLED_ROWS,
    &MERGE_GATE_UP,
    &MERGE_QKV,
];

/// Every whole-graph pass.
pub const PASSES: &[&Pass] = &[&FOLD_CONSTANTS, &REMOVE_DEAD];

/// Runs one rule or pass by name; for filetests.
///
/// # Errors
/// An unknown name, or what the rule or pass reports.
pub fn run_named(name: &str, graph: &mut Graph) -> Result<(), String> {
    if let Some(rule) = RULES.iter().find(|r| r.name == name) {
        return drive(graph, &[rule]).map(drop).map_err(|e| e.to_string());
    }
    match PASSES.iter().find(|p| p.name == name) {
        Some(pass) => (pass.run)(graph).map(drop).map_err(|e| e.to_string()),
        None => Err(format!("unknown pass {name}")),
    }
}
