//! Graph IR: ops, types, symbolic dims, text form, verifier, reference interpreter, patches.
//!
//! ```
//! use lathe_ir::{parse, verify};
//! let text = "graph @g(%x: f32[t, 4]) where t in 1..=8 {
//!   weight @w : f32[2, 4]
//!   %y = linear %x, @w : f32[t, 2]
//!   return %y
//! }
//! ";
//! let graph = parse(text)?;
//! verify(&graph)?;
//! assert_eq!(graph.to_string(), text);
//! # Ok::<(), lathe_ir::IrError>(())
//! ```

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod driver;
pub mod entity;
pub mod error;
pub mod facts;
pub mod filetest;
pub mod graph;
pub mod interp;
pub mod kv;
mod matmul;
pub mod op;
pub mod ops;
#[cfg(test)]
mod oracle_tests;
mod parallel;
pub mod patch;
#[cfg(test)]
mod rewrite_tests;
pub mod rope_table;
pub mod tensor;
mod text;
pub mod verify;
pub mod weight;

pub use driver::{Applied, Apply, Cx, Pass, Precision, Report, Rule, drive};
pub use entity::{Id, NodeId, SymbolId, ValueId, WeightId};
pub use error::{Fault, IrError};
pub use facts::{Bindings, Cache, Dim, Facts, Symbol};
pub use graph::{Def, Graph, Node, Uses};
pub use interp::{Batch, BatchSequence, Interpreter, Outputs, WeightSource};
pub use kv::KvState;
pub use op::{Cost, Operation};
pub use ops::Op;
pub use patch::Patch;
pub use rope_table::{RopeScaling, RopeTable};
pub use tensor::{Data, Tensor, Value};
pub use text::parse;
pub use verify::verify;
pub use weight::{RowPick, Weight, WeightExpr};
