//! The blocks of one cache group: a pool, and a table per slot.
//!
//! Entry `i` of a sequence's table is the block of positions `i * block..`, in every group; a table covers what is
//! scheduled, and without a window what was promised. In a group with a window, entries that no row to come sees are [`BlockId::NONE`] and their blocks are free again.
//!
//! Without a window a prompt takes its blocks at once when it is admitted. With one it takes them chunk by chunk, as
//! many as it needs at once are promised to it: nobody else may take them, so a prompt under way never waits.

use crate::{BlockId, BlockPool, GroupLimits, Limits, Slot};
use lathe_numerics::window::{blocks_at_once, first_block};

#[derive(Debug, Clone, Default)]
struct Table {
    entries: Vec<BlockId>,
    /// Leading entries that are `NONE`.
    n_gone: u32,
    /// Blocks that the slot's prompt may still take.
    n_promised: u32,
}

impl Table {
    fn n_held(&self) -> u32 {
        self.entries.len() as u32 - self.n_gone
    }

    fn held(&self) -> &[BlockId] {
        &self.entries[self.n_gone as usize..]
    }
}

/// What a sequence takes of a group when it is admitted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    /// Blocks of positions before the first that is computed, taken by reference.
    pub n_shared: u32,
    /// First position of which anything must be kept.
    pub kept_from: u32,
    /// Tokens that the prompt has once the next one is sampled.
    pub n_tokens: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Group {
    window: Option<u32>,
    block_tokens: u32,
    /// Most blocks that a sequence holds at once.
    at_once: u32,
    watermark: u32,
    pool: BlockPool,
    /// By slot; capacity for the longest sequence, so that growth does not allocate.
    tables: Vec<Table>,
    /// Sum over the tables.
    n_promised: u32,
}

impl Group {
    pub fn new(limits: &Limits, of: &GroupLimits) -> Self {
        let table = || Table {
            entries: Vec::with_capacity(limits.blocks_for(limits.max_seq_len) as usize),
            ..Table::default()
        };
        let at_once = limits.at_once(of);
        // Where every sequence has all that it can hold, none has to wait or yield for the sake of this group.
        let is_ample = of.window.is_some() && of.n_blocks / limits.max_batch >= at_once;
        Self {
            window: of.window,
            block_tokens: limits.block_tokens,
            at_once,
            watermark: if is_ample { 0 } else { (of.n_blocks / 100).max(1) },
            pool: BlockPool::new(of.n_blocks),
            tables: (0..limits.max_batch).map(|_| table()).collect(),
            n_promised: 0,
        }
    }

    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub fn table(&self, slot: Slot) -> &[BlockId] {
        self.tables.get(slot.0 as usize).map_or(&[], |table| &table.entries)
    }

    /// True if the slot has the blocks that the row at `start` sees before itself.
    pub fn has_prefix(&self, slot: Slot, start: u32) -> bool {
        self.tables[slot.0 as usize].n_gone <= first_block(start, self.window, self.block_tokens)
    }

    pub fn is_windowed(&self) -> bool {
        self.window.is_some()
    }

    fn n_blocks(&self, n_tokens: u32) -> u32 {
        n_tokens.div_ceil(self.block_tokens)
    }

    /// Blocks that a sequence holds at once between now and its `n_tokens`th token.
    fn need(&self, kept_from: u32, n_tokens: u32) -> u32 {
        let first = first_block(kept_from, self.window, self.block_tokens);
        (self.n_blocks(n_tokens) - first).min(self.at_once)
    }

    fn n_new(&self, new: Admission) -> u32 {
        let first = first_block(new.kept_from, self.window, self.block_tokens);
        self.need(new.kept_from, new.n_tokens) - new.n_shared.saturating_sub(first)
    }

    /// True if the sequence may come in; while others run, blocks stay free so that they can grow a little.
    pub fn admits(&self, new: Admission, alone: bool) -> bool {
        let kept = if alone { 0 } else { self.watermark };
        self.n_new(new).saturating_add(kept) <= self.pool.n_free() - self.n_promised
    }

    /// Fills the table of a free slot, with the shared blocks from that of `parent`.
    pub fn admit(&mut self, slot: Slot, parent: Slot, new: Admission) {
        let first = first_block(new.kept_from, self.window, self.block_tokens);
        let n_new = self.n_new(new);
        for at in 0..new.n_shared {
            let block = if at < first { BlockId::NONE } else { self.table(parent)[at as usize] };
            if at >= first {
                self.pool.share(block);
            }
            self.tables[slot.0 as usize].entries.push(block);
        }
        let table = &mut self.tables[slot.0 as usize];
        table.n_gone = first.min(new.n_shared);
        table.n_promised = n_new;
        self.n_promised += n_new;
        if !self.is_windowed() {
            self.cover(slot, new.n_tokens, new.n_tokens);
        }
    }

    /// Gives the slot blocks for its first `n_tokens` tokens, and for `with_next` if they were promised: promised blocks,
    /// else such as nobody was promised. False: there are too few.
    pub fn cover(&mut self, slot: Slot, n_tokens: u32, with_next: u32) -> bool {
        let is_promised = self.tables[slot.0 as usize].n_promised > 0;
        let n_blocks = self.n_blocks(if is_promised { with_next } else { n_tokens }) as usize;
        let table = &mut self.tables[slot.0 as usize];
        while table.entries.len() < n_blocks {
            let n_promised = u32::from(table.n_promised > 0);
            if n_promised == 0 && self.pool.n_free() == self.n_promised {
                return false;
            }
            let Some(block) = self.pool.alloc() else { return false };
            table.entries.push(block);
            table.n_promised -= n_promised;
            self.n_promised -= n_promised;
        }
        true
    }

    /// Frees what no row from `kept_from` on sees. A prompt that is to reach `prompt_tokens` is promised what it needs
    /// from here; `None` ends the promise.
    pub fn advance(&mut self, slot: Slot, kept_from: u32, prompt_tokens: Option<u32>) {
        if !self.is_windowed() {
            return;
        }
        let first = first_block(kept_from, self.window, self.block_tokens) as usize;
        let need = prompt_tokens.map_or(0, |n_tokens| self.need(kept_from, n_tokens));
        let table = &mut self.tables[slot.0 as usize];
        let gone = table.n_gone as usize..first.min(table.entries.len());
        table.n_gone = table.n_gone.max(gone.end as u32);
        for entry in &mut table.entries[gone] {
            self.pool.release(std::mem::replace(entry, BlockId::NONE));
        }
        let n_promised = need.saturating_sub(table.n_held());
        self.n_promised = self.n_promised - table.n_promised + n_promised;
        table.n_promised = n_promised;
    }

    /// Empties the slot's table.
    pub fn free(&mut self, slot: Slot) {
        let table = &mut self.tables[slot.0 as usize];
        let n_gone = std::mem::take(&mut table.n_gone);
        self.n_promised -= std::mem::take(&mut table.n_promised);
        // Last block first, so that the free list hands them out again in position order.
        for block in table.entries.drain(..).skip(n_gone as usize).rev() {
            self.pool.release(block);
        }
    }

    /// References sum, nothing leaks, promises can be kept, no table holds more than it may. Allocates; for tests.
    pub fn verify(&self) -> Result<(), String> {
        self.pool.verify(self.tables.iter().map(Table::held))?;
        let n_promised: u32 = self.tables.iter().map(|table| table.n_promised).sum();
        if n_promised != self.n_promised || n_promised > self.pool.n_free() {
            return Err(format!("{n_promised} blocks promised, {} free", self.pool.n_free()));
        }
        for (slot, table) in self.tables.iter().enumerate() {
            if table.entries[..table.n_gone as usize].iter().any(|block| *block != BlockId::NONE) {
                return Err(format!("slot {slot}: a block before the window"));
            }
            if table.n_held() > self.at_once {
                return Err(format!("slot {slot}: {} blocks, {} at once", table.n_held(), self.at_once));
            }
        }
        Ok(())
    }

    /// What `verify` asks of a running sequence: blocks for `n_tokens`, and those that the row at `start` sees.
    pub fn holds(&self, slot: Slot, start: u32, n_tokens: u32) -> bool {
        let table = &self.tables[slot.0 as usize];
        table.entries.len() as u32 >= self.n_blocks(n_tokens) && self.has_prefix(slot, start)
    }
}

impl Limits {
    /// Most blocks of a group that one sequence holds at once.
    pub(crate) fn at_once(&self, group: &GroupLimits) -> u32 {
        group.window.map_or(u32::MAX, |window| blocks_at_once(window, self.max_num_tokens, self.block_tokens))
    }
}
