//! What instructions do, by the words of the PTX manual: operands and results worked out by hand.

mod case;
mod convert;
mod float;
mod integer;
mod matrix;
mod memory;
mod warp;
