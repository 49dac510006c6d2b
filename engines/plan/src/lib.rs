//! The engine plan: one file that holds the program, the memory plan and the weights; the only place where the
//! compiler and the runtime meet. FORMAT.md describes every byte.

pub mod schema;
