//! Plans for tests: a small valid one, and files derived from a valid one by edits whose hashes are made right
//! again, so that the meaning is reached and not only the hash check.

mod mutate;
mod numbers;
mod small;
mod small_cuda;

#[cfg(test)]
pub(crate) use mutate::assemble;
pub use mutate::{Mutations, mutations, reseal};
pub use small::{small_plan, small_tables, small_weight_bytes, small_weights, write_small};
pub use small_cuda::{small_cuda_plan, small_cuda_tables, small_cuda_weights};
