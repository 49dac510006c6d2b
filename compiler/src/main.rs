//! The compiler: import, passes, selection, memory plan, plan emission.

fn main() {}
