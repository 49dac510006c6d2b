//! Benchmarks: kernels, engine, serving, peers side by side.

fn main() {}
