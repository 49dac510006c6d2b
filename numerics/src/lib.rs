//! The numeric contract: what every engine, kernel and the interpreter agree on, so that one request has one answer.
//!
//! Everything here is a pure function of shapes and values: no batch size, thread count or machine fact enters.

pub mod activation;
pub mod contract;
pub mod dtype;
pub mod exp;
pub mod gating;
pub mod philox;
pub mod window;

pub use activation::Activation;
pub use contract::{ATTENTION_LEAF, ContractId, gemm_slices};
pub use dtype::DType;
pub use gating::Gating;
