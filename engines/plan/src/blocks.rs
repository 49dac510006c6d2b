//! Writes in blocks of a large page, so that a file system with large folios keeps a fresh plan in large pages: mapping it
//! takes a fault per block instead of one per 64 KiB. Weights share blocks; a block is written when all of it is there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

/// A large page of every system that has them.
pub const BLOCK: u64 = 2 << 20;

/// Blocks of which some bytes are there.
#[derive(Debug, Default)]
pub struct Blocks(Mutex<HashMap<u64, Arc<Mutex<Partial>>>>);

#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    missing: u64,
}

impl Blocks {
    /// Takes `bytes` at `offset` of a file of `end` bytes. `wanted` says how many bytes of a range of the file will come; the
    /// others are zero.
    pub fn write(
        &self,
        file: &File,
        offset: u64,
        mut bytes: &[u8],
        end: u64,
        wanted: impl Fn(Range<u64>) -> u64,
    ) -> io::Result<()> {
        let mut at = offset;
        while !bytes.is_empty() {
            let start = at / BLOCK * BLOCK;
            let block = start..end.min(start + BLOCK);
            let (piece, rest) = bytes.split_at(bytes.len().min((block.end - at) as usize));
            if piece.len() as u64 == block.end - block.start {
                file.write_all_at(piece, at)?;
            } else {
                self.part(file, block, at, piece, &wanted)?;
            }
            at += piece.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// True when every block that was begun was written.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn part(
        &self,
        file: &File,
        block: Range<u64>,
        at: u64,
        piece: &[u8],
        wanted: &impl Fn(Range<u64>) -> u64,
    ) -> io::Result<()> {
        let begin = || {
            let bytes = vec![0; (block.end - block.start) as usize];
            Arc::new(Mutex::new(Partial { bytes, missing: wanted(block.clone()) }))
        };
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let partial = all().entry(block.start).or_insert_with(begin).clone();
        let mut partial = partial.lock().unwrap_or_else(PoisonError::into_inner);
        partial.bytes[(at - block.start) as usize..][..piece.len()].copy_from_slice(piece);
        partial.missing = partial.missing.saturating_sub(piece.len() as u64);
        if partial.missing > 0 {
            return Ok(());
        }
        all().remove(&block.start);
        file.write_all_at(&partial.bytes, block.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of three runs with gaps between them, from two threads, make the file that plain writes make.
    #[test]
    fn pieces_of_any_size_and_order_make_the_same_file() {
        let end = 5 * BLOCK + 77;
        let runs = [4096..BLOCK + 5, BLOCK + 64..BLOCK + 65, 2 * BLOCK - 3..end];
        let byte = |at: u64| (at % 251) as u8 + 1;
        let wanted = |range: Range<u64>| -> u64 {
            runs.iter().map(|r| r.end.min(range.end).saturating_sub(r.start.max(range.start))).sum()
        };
        for step in [1000, 65_536, BLOCK as usize, 3 * BLOCK as usize + 1] {
            let file = tempfile::tempfile().unwrap();
            let blocks = Blocks::default();
            std::thread::scope(|scope| {
                for run in runs.iter().rev() {
                    let (file, blocks, wanted) = (&file, &blocks, &wanted);
                    scope.spawn(move || {
                        let bytes: Vec<u8> = run.clone().map(byte).collect();
                        for (at, piece) in (run.start..).step_by(step).zip(bytes.chunks(step)) {
                            blocks.write(file, at, piece, end, wanted).unwrap();
                        }
                    });
                }
            });
            assert!(blocks.is_empty());
            let mut read = vec![0; end as usize];
            file.read_exact_at(&mut read, 0).unwrap();
            let expected = |at: u64| if runs.iter().any(|r| r.contains(&at)) { byte(at) } else { 0 };
            assert!(read.iter().zip(0..).all(|(b, at)| *b == expected(at)), "step {step}");
        }
    }
}
