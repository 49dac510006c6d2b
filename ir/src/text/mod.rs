//! The text form. `print(parse(text)) == text` for text in canonical form; comments (`// ...`) are skipped.
//!
//! ```text
//! graph @NAME(%INPUT: FACTS, ...) where SYMBOL in MIN..=MAX, ... {
//!   cache @NAME : DTYPE[layers=N, kv_heads=N, head_dim=N]
//!   weight @NAME : FACTS
//!   weight @NAME : FACTS = tensor "checkpoint name"
//!   weight @NAME : FACTS = concat @A, @B
//!   weight @NAME : FACTS = interleave16 @A, @B
//!   weight @NAME : FACTS = rows @A {count = 8, len = 64, start = 0, stride = 192}
//!   weight @NAME : FACTS = transpose @A
//!   weight @NAME : f32[N] = plus @A {addend = 1.0}
//!   weight @NAME : FACTS = cast @A
//!   weight @NAME : FACTS = rope_table {dim = 64, positions = 8192, theta = 500000.0}
//!   %RESULT, ... = OP %A, @W, ... {ATTRIBUTE = VALUE, ...} : FACTS, ...
//!   return %RESULT, ...
//! }
//! ```

mod cursor;
mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use parse::parse;
