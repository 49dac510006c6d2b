//! The last phase: weights are streamed, laid out and written, then the tables.
//!
//! Invariant: no tensor is ever held whole; a worker holds one block of one weight (`weights::BLOCK_BYTES`).
//! Invariant: the bytes of the plan depend on graph, source and options, never on the number of threads.

pub mod kernels;
pub mod rows;
mod transposed;
pub mod weights;

use lathe_ir::Graph;
use lathe_plan::{PlanWriter, Tables, WeightSpec, Written};

use crate::checkpoint::TensorSource;
use crate::emit::rows::Rows;
use crate::emit::weights::{StoredWeight, write_all};
use crate::error::Result;
use crate::options::{Observer, Options};
use crate::select::WeightTable;

/// Bytes that the tables are taken for when the free disk is checked, beside the tokenizer: a few hundred launches.
const TABLE_BYTES: u64 = 1 << 20;

/// Starts the plan file: reserves the disk and places the weights of `table`.
///
/// # Errors
/// A path that cannot be written, or a disk without room.
pub fn create(table: &WeightTable, tokenizer_bytes: usize, options: &Options) -> Result<PlanWriter> {
    let specs = table.uses().iter().map(|u| WeightSpec {
        name: u.entry.name.clone(),
        dtype: u.entry.dtype,
        shape: u.entry.shape.clone(),
        layout: u.entry.layout,
    });
    Ok(PlanWriter::create(&options.output, specs.collect(), tokenizer_bytes as u64 + TABLE_BYTES)?)
}

/// The weights of `table`, which are recipes of `graph`, as the plan stores them.
///
/// # Errors
/// A tensor that is absent or differs from its declaration.
pub fn stored_weights(
    graph: &Graph,
    table: &WeightTable,
    source: &dyn TensorSource,
) -> Result<Vec<StoredWeight>> {
    let stored = table.uses().iter().map(|u| {
        let rows = Rows::of_weight(graph, u.weight, source)?.cast(u.entry.dtype);
        Ok(StoredWeight {
            name: u.entry.name.clone(),
            shape: u.entry.shape.clone(),
            layout: u.entry.layout,
            rows,
        })
    });
    stored.collect()
}

/// Streams the weights of `table`, which are recipes of `graph`, into the plan.
///
/// # Errors
/// A tensor that is absent, differs from its declaration or cannot be read; a failed write.
pub fn write_weights(
    writer: &PlanWriter,
    graph: &Graph,
    table: &WeightTable,
    source: &dyn TensorSource,
    options: &Options,
    observer: &dyn Observer,
) -> Result<()> {
    let stored = stored_weights(graph, table, source)?;
    observer.will_write(stored.iter().map(StoredWeight::bytes).sum());
    write_all(&stored, source, options.threads, writer, observer)
}

/// Writes tables and header and gives the file its name.
///
/// # Errors
/// Tables that the plan's verifier refuses (a bug), or a failed write.
pub fn finish(writer: PlanWriter, tables: &Tables, observer: &dyn Observer) -> Result<Written> {
    let written = writer.finish(tables)?;
    observer.plan_renamed();
    Ok(written)
}
