//! The tables that every step brings: one allocation, filled on the host and copied in few pieces.

use lathe_api::{StepLimits, StepPlan, TokenSource};
use lathe_device::{Sequence, StepTable, Symbols};
use lathe_plan::memory::{DEVICE_ALIGN, step_table_bytes};
use lathe_plan::schema::{Limits, MAX_CACHE_GROUPS};

use crate::plain::{put, put_words};

/// In the order in which they lie: those that a decode step fills wholly or nearly so stand together. Behind them the
/// block tables, one per cache group.
const ORDER: [StepTable; 5] = [
    StepTable::Sequences,
    StepTable::SampleRows,
    StepTable::RowSequence,
    StepTable::Positions,
    StepTable::Tokens,
];

/// Pieces at most.
const MAX_PIECES: usize = ORDER.len() + MAX_CACHE_GROUPS;

/// Unused bytes that are copied rather than start another copy: what a bus moves while a copy is set up.
const GAP: usize = 8 << 10;

/// Where the step tables lie within their allocation, and within its image on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLayout {
    offsets: [usize; ORDER.len()],
    blocks: usize,
    /// Bytes from one group's block table to the next.
    blocks_stride: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

/// Pieces to copy: start and length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    ranges: [(usize, usize); MAX_PIECES],
    n: usize,
}

impl Pieces {
    /// The pieces in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        self.ranges.into_iter().take(self.n)
    }

    fn add(&mut self, start: usize, len: usize) {
        if len == 0 {
            return;
        }
        if self.n > 0 {
            let (last, last_len) = &mut self.ranges[self.n - 1];
            if start <= *last + *last_len + GAP {
                *last_len = start + len - *last;
                return;
            }
        }
        self.ranges[self.n] = (start, len);
        self.n += 1;
    }
}

impl TableLayout {
    /// Room for the largest step, with blocks of `block` positions in each of `groups` cache groups. `None` where a size
    /// does not fit the address space.
    pub fn new(limits: &Limits, vocab_size: u32, block: u32, groups: usize) -> Option<Self> {
        let aligned = |table| {
            let bytes = step_table_bytes(table, limits, vocab_size, block);
            usize::try_from(bytes.checked_next_multiple_of(DEVICE_ALIGN)?).ok()
        };
        let mut layout = TableLayout { offsets: [0; ORDER.len()], blocks: 0, blocks_stride: 0, bytes: 0 };
        for (offset, table) in layout.offsets.iter_mut().zip(ORDER) {
            *offset = layout.bytes;
            layout.bytes = layout.bytes.checked_add(aligned(table)?)?;
        }
        layout.blocks = layout.bytes;
        layout.blocks_stride = aligned(StepTable::Blocks)?;
        layout.bytes = layout.bytes.checked_add(layout.blocks_stride.checked_mul(groups)?)?;
        Some(layout)
    }

    /// Offset of a table, of `Blocks` that of the first group; `None` for those that are not brought by `fill`.
    pub fn offset(&self, table: StepTable) -> Option<usize> {
        if table == StepTable::Blocks {
            return Some(self.blocks);
        }
        ORDER.iter().position(|t| *t == table).map(|i| self.offsets[i])
    }

    /// Bytes from one group's block table to the next.
    pub fn blocks_stride(&self) -> usize {
        self.blocks_stride
    }

    /// Writes a checked step, padded to `symbols`, into `image`; says what to copy.
    pub fn fill(&self, image: &mut [u8], step: &StepPlan, limits: &StepLimits, symbols: &Symbols) -> Pieces {
        let [t, s, r] = [symbols.tokens, symbols.sequences, symbols.rows].map(|n| n as usize);
        let [sequences, sample_rows, row_sequence, positions, tokens] = self.offsets;
        put_words(
            &mut image[tokens..][..t * 4],
            step.tokens
                .iter()
                .map(|token| match *token {
                    TokenSource::Literal(id) => id.cast_signed(),
                    TokenSource::Row(row) => -1 - row.cast_signed(),
                })
                .chain(std::iter::repeat(0)),
        );
        put_words(
            &mut image[positions..][..t * 4],
            step.positions.iter().copied().chain(std::iter::repeat(0)),
        );
        let rows_of = |(i, len): (usize, u32)| std::iter::repeat_n(i as i32, len as usize);
        put_words(
            &mut image[row_sequence..][..t * 4],
            step.seqs.iter().map(|seq| seq.q_len).enumerate().flat_map(rows_of).chain(std::iter::repeat(-1)),
        );
        put_words(
            &mut image[sample_rows..][..r * 4],
            step.rows.iter().map(|row| row.row).chain(std::iter::repeat(0)),
        );
        let mut n_blocks = 0;
        for (i, seq) in step.seqs.iter().enumerate() {
            let used = limits.blocks_of(seq.kv_len);
            for (group, blocks) in step.blocks.iter().enumerate() {
                let table = &blocks[seq.blocks_start as usize..][..used];
                let at = self.blocks + group * self.blocks_stride + n_blocks * 4;
                put_words(&mut image[at..], table.iter().copied());
            }
            let row = Sequence {
                q_start: seq.q_start.cast_signed(),
                q_len: seq.q_len.cast_signed(),
                kv_len: seq.kv_len.cast_signed(),
                blocks_start: n_blocks as i32,
            };
            put(&mut image[sequences..], i, &row);
            n_blocks += used;
        }
        for i in step.seqs.len()..s {
            put(&mut image[sequences..], i, &Sequence::default());
        }
        let mut pieces = Pieces::default();
        let used = [s * size_of::<Sequence>(), r * 4, t * 4, t * 4, t * 4];
        for (offset, bytes) in self.offsets.into_iter().zip(used) {
            pieces.add(offset, bytes);
        }
        for group in 0..step.blocks.len() {
            pieces.add(self.blocks + group * self.blocks_stride, n_blocks * 4);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use lathe_api::{BlockGroup, NO_BLOCK, SampleRow, SamplingParams, SeqStep, Slot, Wanted};

    use super::*;
    use crate::plain::get;

    const LIMITS: Limits =
        Limits { max_batch: 4, max_num_tokens: 4096, max_sample_rows: 4, max_seq_len: 64, kv_tokens: 256 };

    fn step() -> StepPlan {
        let seq = |slot, q_start, q_len, kv_len, blocks_start| SeqStep {
            slot: Slot(slot),
            q_start,
            q_len,
            kv_len,
            blocks_start,
            blocks_len: 2,
            adapter: None,
        };
        let row = |row| SampleRow {
            row,
            slot: Slot(1),
            position: 0,
            wanted: Wanted::Sample,
            params: SamplingParams::default(),
            top_logprobs: None,
            suppress_stops: false,
        };
        StepPlan {
            tokens: vec![TokenSource::Literal(9), TokenSource::Row(2), TokenSource::Literal(3)],
            positions: vec![15, 16, 4],
            seqs: vec![seq(3, 0, 2, 17, 2), seq(1, 2, 1, 5, 0)],
            blocks: vec![vec![7, 8, 5, 6], vec![2, 3, NO_BLOCK, 1]],
            rows: vec![row(2)],
        }
    }

    fn limits() -> StepLimits {
        StepLimits {
            n_embeddings: 10,
            vocab_size: 10,
            max_batch: 4,
            max_num_tokens: 4096,
            max_sample_rows: 4,
            max_seq_len: 64,
            groups: vec![
                BlockGroup { n_blocks: 16, window: None },
                BlockGroup { n_blocks: 4, window: Some(1) },
            ],
            block_tokens: 16,
            max_logit_bias: 1,
            max_stop_ids: 1,
        }
    }

    #[test]
    fn a_step_is_padded_to_its_symbols() {
        let layout = TableLayout::new(&LIMITS, 10, 16, 2).unwrap();
        let mut image = vec![0xee; layout.bytes];
        let symbols = Symbols { tokens: 5, sequences: 4, rows: 2, decode: false, sm_count: 1 };
        layout.fill(&mut image, &step(), &limits(), &symbols);
        let words = |table, n: usize| -> Vec<i32> {
            let at = layout.offset(table).unwrap();
            image[at..].as_chunks().0[..n].iter().map(|b: &[u8; 4]| i32::from_ne_bytes(*b)).collect()
        };
        let untouched = i32::from_ne_bytes([0xee; 4]);
        assert_eq!(words(StepTable::Tokens, 6), [9, -3, 3, 0, 0, untouched]);
        assert_eq!(words(StepTable::Positions, 6), [15, 16, 4, 0, 0, untouched]);
        assert_eq!(words(StepTable::RowSequence, 6), [0, 0, 1, -1, -1, untouched]);
        assert_eq!(words(StepTable::SampleRows, 3), [2, 0, untouched]);
        // Two blocks of the first sequence, the one that the second needs.
        assert_eq!(words(StepTable::Blocks, 4), [5, 6, 7, untouched]);
        let second = layout.offset(StepTable::Blocks).unwrap() + layout.blocks_stride();
        let words_of = |at: usize| i32::from_ne_bytes(image[second + at * 4..][..4].try_into().unwrap());
        assert_eq!([0, 1, 2, 3].map(words_of), [-1, 1, 2, untouched]);
        let at = layout.offset(StepTable::Sequences).unwrap();
        let sequences: Vec<Sequence> = (0..4).map(|i| get(&image[at..], i)).collect();
        let first = Sequence { q_start: 0, q_len: 2, kv_len: 17, blocks_start: 0 };
        let second = Sequence { q_start: 2, q_len: 1, kv_len: 5, blocks_start: 2 };
        assert_eq!(sequences, [first, second, Sequence::default(), Sequence::default()]);
        assert_eq!(layout.offset(StepTable::Counts), None);
    }

    #[test]
    fn near_pieces_are_copied_as_one() {
        let small = Limits { max_num_tokens: 32, ..LIMITS };
        let symbols = Symbols { tokens: 3, sequences: 2, rows: 1, decode: false, sm_count: 1 };
        let pieces = |limits: &Limits| -> Vec<(usize, usize)> {
            let layout = TableLayout::new(limits, 10, 16, 2).unwrap();
            let mut image = vec![0; layout.bytes];
            layout.fill(&mut image, &step(), &self::limits(), &symbols).iter().collect()
        };
        let layout = TableLayout::new(&small, 10, 16, 2).unwrap();
        assert_eq!(pieces(&small), [(0, layout.offset(StepTable::Blocks).unwrap() + 256 + 3 * 4)]);
        // 16 KiB of tokens lie between the ends of the short tables.
        assert_eq!(
            pieces(&LIMITS),
            [(0, 512 + 12), (512 + 16384, 12), (512 + 2 * 16384, 12), (512 + 3 * 16384, 256 + 12)]
        );
    }

    #[test]
    fn the_report_counts_the_same_bytes() {
        let tables = ORDER.iter().chain(&[StepTable::Blocks, StepTable::Blocks]);
        let sum: u64 =
            tables.map(|t| step_table_bytes(*t, &LIMITS, 10, 16).next_multiple_of(DEVICE_ALIGN)).sum();
        assert_eq!(TableLayout::new(&LIMITS, 10, 16, 2).unwrap().bytes as u64, sum);
    }
}
