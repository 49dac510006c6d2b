//! State of sequences that drawing needs, on the device: counts of ids, biases, stop ids. Binding writes a row of each.

use lathe_api::{Slot, SlotState};
use lathe_device::{DevicePtr, Driver, DriverError, HostBuffer, MAX_LOGIT_BIAS, MAX_STOP_IDS};

use crate::draw::SlotLists;
use crate::plain::put_words;

/// Bytes of a slot's bias list.
const BIAS_BYTES: usize = MAX_LOGIT_BIAS * 8;
/// Bytes of a slot's stop list.
const STOP_BYTES: usize = MAX_STOP_IDS * 4;
/// The bit of a count that says that the id is in the prompt.
const IN_PROMPT: u32 = 1 << 31;
/// Pinned bytes for rows on their way: a bind waits for the device only when more are bound while a step runs.
const RING_BYTES: usize = 16 << 20;

/// Where the slots' state lies.
#[derive(Clone, Copy, Debug)]
pub struct SlotTables {
    /// `u32[max_batch, vocab]`.
    pub counts: DevicePtr,
    /// `[max_batch, MAX_LOGIT_BIAS]` pairs.
    pub bias: DevicePtr,
    /// `i32[max_batch, MAX_STOP_IDS]`.
    pub stops: DevicePtr,
}

/// The slots, with rows to stage what is bound.
pub struct Slots {
    tables: SlotTables,
    vocab: usize,
    lists: Vec<SlotLists>,
    staging: Box<dyn HostBuffer>,
    row_bytes: usize,
    /// Per row of the ring: the ticket whose answers prove that its copies are done.
    done_with: Vec<u64>,
    next: usize,
}

impl Slots {
    /// State for `max_batch` slots of `vocab` ids.
    ///
    /// # Errors
    /// The driver's.
    pub fn new(
        driver: &mut dyn Driver,
        tables: SlotTables,
        max_batch: usize,
        vocab: usize,
    ) -> Result<Self, DriverError> {
        let row_bytes = vocab * 4 + BIAS_BYTES + STOP_BYTES;
        let rows = (RING_BYTES / row_bytes).clamp(2, max_batch.max(2));
        Ok(Slots {
            tables,
            vocab,
            lists: vec![SlotLists::default(); max_batch],
            staging: driver.host_buffer(rows * row_bytes)?,
            row_bytes,
            done_with: vec![0; rows],
            next: 0,
        })
    }

    /// Lengths of a bound slot's lists.
    pub fn lists(&self, slot: Slot) -> SlotLists {
        self.lists.get(slot.0 as usize).copied().unwrap_or_default()
    }

    /// Writes a checked state into a slot. `submitted` and `collected` are the last tickets that were.
    ///
    /// # Errors
    /// The driver's.
    pub fn bind(
        &mut self,
        driver: &mut dyn Driver,
        slot: Slot,
        state: &SlotState<'_>,
        submitted: u64,
        collected: u64,
    ) -> Result<(), DriverError> {
        let at = self.next;
        self.next = (at + 1) % self.done_with.len();
        if self.done_with[at] > collected {
            // Every row is on its way: this is the one place beside `collect` that waits.
            let event = driver.record()?;
            driver.wait(event)?;
        }
        let start = at * self.row_bytes;
        let row = &mut self.staging.bytes_mut()[start..start + self.row_bytes];
        let (counts, rest) = row.split_at_mut(self.vocab * 4);
        let (bias, stops) = rest.split_at_mut(BIAS_BYTES);
        count(counts, state);
        let pairs = state.logit_bias.iter().flat_map(|(id, by)| [*id, by.to_bits()]);
        put_words(bias, pairs);
        put_words(stops, state.stop_ids.iter().copied());
        let index = u64::from(slot.0);
        let pieces = [
            (self.tables.counts, counts.len(), 0, counts.len()),
            (self.tables.bias, BIAS_BYTES, counts.len(), state.logit_bias.len() * 8),
            (self.tables.stops, STOP_BYTES, counts.len() + BIAS_BYTES, state.stop_ids.len() * 4),
        ];
        for (table, stride, from, len) in pieces {
            if len > 0 {
                let to = table.add(index * stride as u64);
                // SAFETY: the row is written again only after a step that is submitted later was collected, or after
                // a wait.
                unsafe { driver.copy_to_device(to, &*self.staging, start + from, len) }?;
            }
        }
        self.done_with[at] = submitted + 1;
        if let Some(lists) = self.lists.get_mut(slot.0 as usize) {
            *lists =
                SlotLists { n_bias: state.logit_bias.len() as u32, n_stops: state.stop_ids.len() as u32 };
        }
        Ok(())
    }
}

/// Counts the ids of a state into a row `u32[vocab]`. Ids that no row of logits has are nobody's to penalise.
fn count(row: &mut [u8], state: &SlotState<'_>) {
    row.fill(0);
    let cells = row.as_chunks_mut::<4>().0;
    for id in state.output {
        if let Some(cell) = cells.get_mut(*id as usize) {
            *cell = (u32::from_ne_bytes(*cell) + 1).to_ne_bytes();
        }
    }
    for id in state.prompt {
        if let Some(cell) = cells.get_mut(*id as usize) {
            *cell = (u32::from_ne_bytes(*cell) | IN_PROMPT).to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_hold_outputs_and_the_prompt_s_bit() {
        let mut row = [0xffu8; 5 * 4];
        let state = SlotState { prompt: &[1, 1, 4, 77], output: &[1, 0, 0, 9], ..SlotState::default() };
        count(&mut row, &state);
        let cells: Vec<u32> = row.as_chunks().0.iter().map(|c: &[u8; 4]| u32::from_ne_bytes(*c)).collect();
        assert_eq!(cells, [2, IN_PROMPT | 1, 0, 0, IN_PROMPT]);
    }
}
