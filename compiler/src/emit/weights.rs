//! Weights on their way into the plan: read by rows, laid out, hashed and written, a few blocks in memory at a time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use lathe_kernels::cuda::mma16;
use lathe_kernels::gemm::{pack_panel, panel_bytes};
use lathe_numerics::DType;
use lathe_numerics::contract::PANEL;
use lathe_plan::PlanWriter;
use lathe_plan::schema::Layout;

use super::rows::Rows;
use crate::checkpoint::TensorSource;
use crate::error::{CompileError, Result};
use crate::options::Observer;

/// Bytes that a worker reads at a time: long enough for the disk, short enough for the second-level cache.
const BLOCK_BYTES: usize = 512 << 10;

/// A weight as the plan stores it.
#[derive(Clone, Debug)]
pub struct StoredWeight {
    /// The IR weight's name.
    pub name: String,
    /// Logical extents, `[n]` or `[n, k]`.
    pub shape: Vec<u64>,
    /// Order of the elements.
    pub layout: Layout,
    /// Its data; `rows.dtype` is the stored type.
    pub rows: Rows,
}

impl StoredWeight {
    /// Stored element type.
    pub fn dtype(&self) -> DType {
        self.rows.dtype
    }

    /// Stored bytes, padding of the layout included.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes(self.dtype(), &self.shape).unwrap_or(0)
    }

    /// Rows that are stored together, and the bytes of as many.
    pub fn group(&self) -> (usize, usize) {
        match self.layout {
            Layout::RowMajor => (1, self.rows.row_bytes()),
            Layout::Panel16 | Layout::Mma16 => {
                (PANEL, self.bytes() as usize / self.rows.rows.div_ceil(PANEL).max(1))
            }
        }
    }

    /// Hands the stored bytes to `put`, block after block, each of whole groups of rows.
    ///
    /// # Errors
    /// What the source or `put` say.
    pub fn stream(&self, source: &dyn TensorSource, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let row_bytes = self.rows.row_bytes();
        if row_bytes == 0 {
            return Ok(());
        }
        let n_rows = (BLOCK_BYTES / row_bytes).next_multiple_of(PANEL).max(PANEL);
        let mut block = vec![0; n_rows.min(self.rows.rows) * row_bytes];
        let mut packed = Vec::new();
        for start in (0..self.rows.rows).step_by(n_rows) {
            let end = (start + n_rows).min(self.rows.rows);
            let data = &mut block[..(end - start) * row_bytes];
            self.rows.read(source, start..end, data)?;
            let laid_out = match self.layout {
                Layout::RowMajor => &*data,
                Layout::Panel16 => {
                    self.pack_panels(data, &mut packed)?;
                    &packed[..]
                }
                Layout::Mma16 => {
                    self.pack_tiles(data, &mut packed)?;
                    &packed[..]
                }
            };
            put(laid_out)?;
        }
        Ok(())
    }

    fn pack_panels(&self, rows: &[u8], packed: &mut Vec<u8>) -> Result<()> {
        let (dtype, k) = (self.rows.dtype, self.rows.row_len);
        let row_bytes = self.rows.row_bytes();
        let panels = rows.chunks(PANEL * row_bytes);
        packed.resize(panels.len() * panel_bytes(dtype, k), 0);
        for (panel, out) in panels.zip(packed.chunks_exact_mut(panel_bytes(dtype, k))) {
            let views: Vec<&[u8]> = panel.chunks_exact(row_bytes).collect();
            pack_panel(dtype, &views, k, out)
                .map_err(|e| CompileError::Bug(format!("weight @{}: {e}", self.name)))?;
        }
        Ok(())
    }

    fn pack_tiles(&self, rows: &[u8], packed: &mut Vec<u8>) -> Result<()> {
        let k = self.rows.row_len;
        let row_bytes = self.rows.row_bytes();
        let tiles = rows.chunks(mma16::TILE * row_bytes);
        packed.resize(tiles.len() * mma16::tile_row_bytes(k), 0);
        for (tile, out) in tiles.zip(packed.chunks_exact_mut(mma16::tile_row_bytes(k))) {
            let views: Vec<&[u8]> = tile.chunks_exact(row_bytes).collect();
            mma16::pack_tile_row(&views, k, out)
                .map_err(|e| CompileError::Bug(format!("weight @{}: {e}", self.name)))?;
        }
        Ok(())
    }
}

/// Writes every weight on `threads` threads, the largest first so that no thread is left with a long tail.
///
/// # Errors
/// The error of the first weight, by index, that failed.
pub fn write_all(
    weights: &[StoredWeight],
    source: &dyn TensorSource,
    threads: usize,
    writer: &PlanWriter,
    observer: &dyn Observer,
) -> Result<()> {
    let mut queue: Vec<usize> = (0..weights.len()).collect();
    queue.sort_by_key(|&i| (std::cmp::Reverse(weights[i].bytes()), i));
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures: Mutex<Vec<(usize, CompileError)>> = Mutex::new(Vec::new());
    let work = || {
        while !failed.load(Ordering::Relaxed)
            && let Some(&index) = queue.get(next.fetch_add(1, Ordering::Relaxed))
        {
            if let Err(error) = write_one(index, &weights[index], source, writer, observer) {
                failed.store(true, Ordering::Relaxed);
                failures.lock().unwrap_or_else(PoisonError::into_inner).push((index, error));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, weights.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failures.into_iter().min_by_key(|(index, _)| *index) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

fn write_one(
    index: usize,
    weight: &StoredWeight,
    source: &dyn TensorSource,
    writer: &PlanWriter,
    observer: &dyn Observer,
) -> Result<()> {
    let mut sink = writer.weight(index)?;
    weight.stream(source, &mut |bytes| {
        sink.write(bytes)?;
        observer.wrote(bytes.len() as u64);
        Ok(())
    })?;
    Ok(sink.finish()?)
}
