//! Reference-counted KV blocks.

use crate::BlockId;

/// A fixed set of blocks. The free list is last in, first out: the same calls give the same blocks.
#[derive(Debug, Clone)]
pub struct BlockPool {
    references: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockPool {
    /// `n_blocks` free blocks; block 0 is handed out first.
    pub fn new(n_blocks: u32) -> Self {
        Self { references: vec![0; n_blocks as usize], free: (0..n_blocks).rev().map(BlockId).collect() }
    }

    /// A free block with one reference, or `None` when all are used.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.references[block.0 as usize] = 1;
        Some(block)
    }

    /// Adds a reference to a used block.
    ///
    /// # Panics
    /// When the block is free: two sequences would write over each other, so going on is worse.
    pub fn share(&mut self, block: BlockId) {
        let references = &mut self.references[block.0 as usize];
        assert!(*references > 0, "block {}: shared while free", block.0);
        *references += 1;
    }

    /// Drops a reference; the last one frees the block.
    ///
    /// # Panics
    /// When the block is free already, for the reason in [`BlockPool::share`].
    pub fn release(&mut self, block: BlockId) {
        let references = &mut self.references[block.0 as usize];
        assert!(*references > 0, "block {}: released while free", block.0);
        *references -= 1;
        if *references == 0 {
            self.free.push(block);
        }
    }

    /// Free blocks.
    pub fn n_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// All blocks.
    pub fn n_blocks(&self) -> u32 {
        self.references.len() as u32
    }

    /// References to a block; 0 when it is free.
    pub fn references(&self, block: BlockId) -> u32 {
        self.references[block.0 as usize]
    }

    /// Holds the pool against all tables that refer to it: every reference is one table entry, a table holds
    /// a block once, and exactly the blocks without an entry are free, once. Allocates; for tests.
    pub fn verify<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
        let mut entries = vec![0u32; self.references.len()];
        let mut last_table = vec![usize::MAX; self.references.len()];
        for (table, blocks) in tables.enumerate() {
            for block in blocks {
                let at = block.0 as usize;
                entries[at] += 1;
                if last_table[at] == table {
                    return Err(format!("block {at}: twice in one table"));
                }
                last_table[at] = table;
            }
        }
        if let Some(at) = (0..entries.len()).find(|&at| entries[at] != self.references[at]) {
            return Err(format!(
                "block {at}: {} references, {} table entries",
                self.references[at], entries[at]
            ));
        }
        let mut is_free = vec![false; self.references.len()];
        for block in &self.free {
            let at = block.0 as usize;
            if is_free[at] || entries[at] != 0 {
                return Err(format!("block {at}: free while used, or twice in the free list"));
            }
            is_free[at] = true;
        }
        match (0..entries.len()).find(|&at| entries[at] == 0 && !is_free[at]) {
            Some(at) => Err(format!("block {at}: leaked, neither free nor in a table")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_last_in_first_out() {
        let mut pool = BlockPool::new(3);
        let (a, b) = (pool.alloc().unwrap(), pool.alloc().unwrap());
        assert_eq!((a, b, pool.n_free()), (BlockId(0), BlockId(1), 1));
        pool.share(a);
        pool.release(a);
        assert_eq!((pool.references(a), pool.n_free()), (1, 1));
        pool.release(a);
        assert_eq!((pool.alloc(), pool.n_free()), (Some(a), 1));
        pool.alloc();
        assert_eq!(pool.alloc(), None);
    }

    #[test]
    fn verify_sees_every_kind_of_disorder() {
        let mut pool = BlockPool::new(2);
        let block = pool.alloc().unwrap();
        let check = |pool: &BlockPool, tables: &[&[BlockId]]| pool.verify(tables.iter().copied()).is_ok();
        assert!(check(&pool, &[&[block]]));
        assert!(!check(&pool, &[&[]]), "leak");
        assert!(!check(&pool, &[&[block], &[block]]), "two tables, one reference");
        assert!(!check(&pool, &[&[block], &[BlockId(1)]]), "free block in a table");
        pool.share(block);
        assert!(check(&pool, &[&[block], &[block]]));
        assert!(!check(&pool, &[&[block, block]]), "twice in one table");
    }
}
