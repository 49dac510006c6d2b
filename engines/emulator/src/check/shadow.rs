//! Shadow memory: two records per four bytes, and the rules by which an access meets the accesses before it.
//!
//! Two accesses race if they share a byte, at least one writes, at least one is weak, and nothing orders them. Records
//! keep one writer and one reader (or "several"), which loses no race as long as a word is accessed as a whole. A word
//! whose bytes meet different parties is crowded: its bytes get records of their own in a table.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::record::{Party, Read, WHOLE, Write};

/// Where a record lies: shared between threads or not.
pub trait Slot: Sized {
    /// So many slots, all zero.
    fn zeroed(n: usize) -> Box<[[Self; 2]]>;
    /// The bits.
    fn get(&self) -> u64;
    /// Replaces `old`; false if it was something else.
    fn replace(&self, old: u64, new: u64) -> bool;
    /// Replaces whatever was there and returns it.
    fn swap(&self, new: u64) -> u64;
}

impl Slot for Cell<u64> {
    fn zeroed(n: usize) -> Box<[[Self; 2]]> {
        (0..n).map(|_| Default::default()).collect()
    }
    #[inline(always)]
    fn get(&self) -> u64 {
        Cell::get(self)
    }
    #[inline(always)]
    fn replace(&self, _: u64, new: u64) -> bool {
        self.set(new);
        true
    }
    fn swap(&self, new: u64) -> u64 {
        Cell::replace(self, new)
    }
}

impl Slot for AtomicU64 {
    fn zeroed(n: usize) -> Box<[[Self; 2]]> {
        // Zeroed by the system and untouched, so that shadow costs only where its memory is used.
        let plain = Box::into_raw(vec![[0u64; 2]; n].into_boxed_slice());
        // SAFETY: AtomicU64 has the size, alignment and bit validity of u64 on the targets with 64-bit atomics that
        // have the same alignment, which the assertion checks; the box is not used under its old type again.
        unsafe {
            const { assert!(align_of::<AtomicU64>() == align_of::<u64>()) };
            Box::from_raw(plain as *mut [[AtomicU64; 2]])
        }
    }
    #[inline(always)]
    fn get(&self) -> u64 {
        // A party publishes its own record before it looks at the other; both sides do so with read-modify-writes,
        // hence one of two concurrent parties sees the other.
        self.load(Ordering::SeqCst)
    }
    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
    fn swap(&self, new: u64) -> u64 {
        AtomicU64::swap(self, new, Ordering::SeqCst)
    }
}

/// How an earlier access stands to the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Same warp.
    Mine,
    /// It happened before.
    Before,
    /// Nothing orders them, both are of one block.
    Block,
    /// Nothing orders them, they are of different blocks or launches.
    Grid,
}

/// The present access as the rules see it.
pub trait Viewpoint {
    /// Who accesses.
    fn party(&self) -> Party;
    /// All accesses of smaller segments happened before.
    fn floor(&self) -> u32;
    /// How a segment that is neither the party's nor below the floor stands to it.
    fn relation(&self, segment: u32) -> Relation;
    /// True if a barrier of the whole block lies between the segment, which is of the same block, and the party.
    fn settled(&self, segment: u32) -> bool;
    /// True if the segment is of the party's own launch.
    fn of_this_launch(&self, segment: u32) -> bool;
    /// True if something other than barriers of the whole block has ordered the party since the last one; "several"
    /// readers may then be ordered though the record cannot tell.
    fn loosely_ordered(&self) -> bool;
}

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Nothing orders it and an earlier access.
    Race {
        /// The other.
        other: Party,
        /// True if the other wrote.
        wrote: bool,
        /// True if the record names a reader that may not be the one that conflicts.
        several: bool,
        /// How the other stands to the party.
        relation: Relation,
    },
    /// An asynchronous copy writes there and has not been waited for.
    Pending {
        /// Who issued it.
        other: Party,
    },
}

/// Shadow of a range of memory.
#[derive(Debug)]
pub struct Shadow<S> {
    words: Box<[[S; 2]]>,
    crowded: Mutex<HashMap<usize, [(Write, Read); 4]>>,
}

/// What an access leaves of a record: the new record, or the word must be crowded first.
enum Step<T> {
    Keep,
    Set(T),
    Crowd,
}

fn seen<V: Viewpoint>(view: &V, segment: u32) -> Relation {
    if segment < view.floor() {
        Relation::Before
    } else if segment == view.party().segment {
        Relation::Mine
    } else {
        view.relation(segment)
    }
}

#[inline(always)]
fn next_read<V: Viewpoint>(r: Read, mask: u8, view: &V) -> Step<Read> {
    let party = view.party();
    let segment = r.segment();
    if segment == party.segment {
        let all = r.mask() | mask;
        let strong = r.strong() && party.strong;
        let alike = !r.warps() && !r.blocks() && strong == r.strong();
        return if all == r.mask() && strong == r.strong() {
            Step::Keep
        } else if alike || r.mask() == mask {
            Step::Set(r.with_mask(all).with_strong(strong))
        } else {
            Step::Crowd
        };
    }
    let fresh = Read(0).by(party).with_mask(mask);
    if segment < view.floor() {
        return Step::Set(fresh);
    }
    // "Several" are always of the named reader's launch: those of an earlier one are ordered all together.
    let here = view.of_this_launch(segment);
    let blocks = r.blocks() && here;
    if blocks && mask & !r.mask() == 0 && (party.strong || !r.strong()) {
        return Step::Keep;
    }
    let strong = party.strong && r.strong();
    let warps = r.warps() && here && !view.settled(segment);
    let several = warps || blocks;
    match view.relation(segment) {
        Relation::Mine | Relation::Before if r.mask() == mask || !several && r.mask() & !mask == 0 => {
            Step::Set(fresh.with_blocks(blocks).with_warps(warps))
        }
        Relation::Block if r.mask() == mask => {
            Step::Set(fresh.with_blocks(blocks).with_warps(true).with_strong(strong))
        }
        Relation::Grid if here && r.mask() == mask => Step::Set(r.with_blocks(true).with_strong(strong)),
        _ => Step::Crowd,
    }
}

fn race<V: Viewpoint>(view: &V, segment: u32, other: Party, wrote: bool) -> Option<Conflict> {
    let relation = seen(view, segment);
    match relation {
        Relation::Mine | Relation::Before => None,
        Relation::Block | Relation::Grid => Some(Conflict::Race { other, wrote, several: false, relation }),
    }
}

/// Does a write by the party race with the recorded reads?
#[inline(always)]
fn against_reads<V: Viewpoint>(r: Read, mask: u8, view: &V) -> Option<Conflict> {
    let party = view.party();
    let segment = r.segment();
    if r.mask() & mask == 0 || segment < view.floor() || (r.strong() && party.strong) {
        return None;
    }
    if let Some(conflict) = race(view, segment, r.party(), false) {
        return Some(conflict);
    }
    // The named reader is ordered; the others of "several" are too if their launch is over, and unless they share its
    // epoch or are of other blocks.
    if !(r.blocks() || r.warps()) || view.loosely_ordered() || !view.of_this_launch(segment) {
        None
    } else if r.blocks() {
        Some(Conflict::Race { other: r.party(), wrote: false, several: true, relation: Relation::Grid })
    } else if r.warps() && !view.settled(segment) {
        Some(Conflict::Race { other: r.party(), wrote: false, several: true, relation: Relation::Block })
    } else {
        None
    }
}

/// Does an access by the party meet the recorded write?
#[inline(always)]
fn against_write<V: Viewpoint>(w: Write, mask: u8, view: &V) -> Option<Conflict> {
    if w.mask() & mask == 0 {
        return None;
    }
    if w.pending() {
        return Some(Conflict::Pending { other: w.party() });
    }
    let segment = w.segment();
    if segment < view.floor() || segment == view.party().segment || (w.strong() && view.party().strong) {
        return None;
    }
    race(view, segment, w.party(), true)
}

#[inline(always)]
fn next_write<V: Viewpoint>(w: Write, mask: u8, init: u8, pending: bool, view: &V) -> Step<Write> {
    let party = view.party();
    let segment = w.segment();
    let strong = party.strong && (segment != party.segment || w.strong());
    let fresh =
        w.by(party).with_strong(strong).with_init(w.init() & !mask | init & mask).with_pending(pending);
    if segment == party.segment {
        if w.pending() != pending && w.mask() & !mask != 0 {
            return Step::Crowd;
        }
        if w.strong() != party.strong && w.mask() != mask {
            return Step::Crowd;
        }
        return Step::Set(fresh.with_mask(w.mask() | mask));
    }
    let lost = w.mask() & !mask != 0;
    if lost && (segment >= view.floor() || w.pending()) {
        Step::Crowd
    } else {
        Step::Set(fresh.with_mask(mask))
    }
}

impl<S: Slot> Shadow<S> {
    /// Shadow of `bytes` bytes, all undefined and untouched.
    pub fn new(bytes: u64) -> Self {
        Shadow { words: S::zeroed(bytes.div_ceil(4) as usize), crowded: Mutex::default() }
    }

    /// A read of bytes `mask` of word `i`. Answers the bytes of `mask` that are undefined.
    #[inline(always)]
    pub fn read<V: Viewpoint>(&self, i: usize, mask: u8, view: &V) -> Result<u8, Conflict> {
        let [write, read] = &self.words[i];
        loop {
            let r = Read(read.get());
            if r == Read::CROWDED {
                return self.crowded_read(i, mask, view);
            }
            match next_read(r, mask, view) {
                Step::Keep => break,
                Step::Set(new) => {
                    if read.replace(r.0, new.0) {
                        break;
                    }
                }
                Step::Crowd => self.crowd(i),
            }
        }
        let w = Write(write.get());
        if w.crowded() {
            return self.crowded_read(i, mask, view);
        }
        match against_write(w, mask, view) {
            None => Ok(mask & !w.init()),
            Some(conflict) => Err(conflict),
        }
    }

    /// A write of bytes `mask` of word `i`, of which `init` are defined; `pending` if it is an asynchronous copy.
    #[inline(always)]
    pub fn write<V: Viewpoint>(
        &self,
        i: usize,
        mask: u8,
        init: u8,
        pending: bool,
        view: &V,
    ) -> Result<(), Conflict> {
        let [write, read] = &self.words[i];
        loop {
            let w = Write(write.get());
            if w.crowded() {
                return self.crowded_write(i, mask, init, pending, view);
            }
            if let Some(conflict) = against_write(w, mask, view) {
                return Err(conflict);
            }
            match next_write(w, mask, init, pending, view) {
                Step::Keep => break,
                Step::Set(new) => {
                    if write.replace(w.0, new.0) {
                        break;
                    }
                }
                Step::Crowd => self.crowd(i),
            }
        }
        let r = Read(read.get());
        if r == Read::CROWDED {
            return self.crowded_write(i, mask, init, pending, view);
        }
        against_reads(r, mask, view).map_or(Ok(()), Err)
    }

    /// An atomic operation on bytes `mask` of word `i` with a defined operand or not. Answers undefined bytes before.
    pub fn update<V: Viewpoint>(&self, i: usize, mask: u8, defined: bool, view: &V) -> Result<u8, Conflict> {
        let undefined = mask & !self.init(i);
        let init = if defined { mask & !undefined } else { 0 };
        self.write(i, mask, init, false, view)?;
        Ok(undefined)
    }

    /// The party waited for its asynchronous copy to bytes `mask` of word `i`: from here on it is a write by the party.
    pub fn complete(&self, i: usize, mask: u8, party: Party) {
        let done = |w: Write| if w.pending() { w.by(party).with_pending(false) } else { w };
        let w = Write(self.words[i][0].get());
        if !w.crowded() {
            if w.mask() & mask != 0 && self.words[i][0].replace(w.0, done(w).0) {
                return;
            }
            if w.mask() & mask == 0 {
                return;
            }
        }
        self.bytes(i, |bytes| {
            for (b, (w, _)) in bytes.iter_mut().enumerate() {
                if mask >> b & 1 == 1 {
                    *w = done(*w);
                }
            }
        });
    }

    /// Bytes of word `i` with defined contents.
    pub fn init(&self, i: usize) -> u8 {
        let w = Write(self.words[i][0].get());
        if w.crowded() {
            self.bytes(i, |bytes| bytes.iter().fold(0, |init, (w, _)| init | w.init()))
        } else {
            w.init()
        }
    }

    /// Forgets all parties of bytes `mask` of word `i` and makes them defined or not.
    pub fn reset(&self, i: usize, mask: u8, defined: bool) {
        let init = self.init(i) & !mask | if defined { mask } else { 0 };
        if Write(self.words[i][0].get()).crowded() {
            self.lock().remove(&i);
        }
        self.words[i][1].swap(0);
        self.words[i][0].swap(Write(0).with_init(init).0);
    }

    /// Forgets all parties and keeps what is defined.
    pub fn forget_parties(&self) {
        for i in 0..self.words.len() {
            if self.words[i][0].get() != 0 || self.words[i][1].get() != 0 {
                self.reset(i, 0, true);
            }
        }
    }

    /// Words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, [(Write, Read); 4]>> {
        self.crowded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each byte of a word records of its own.
    #[cold]
    fn crowd(&self, i: usize) {
        let mut table = self.lock();
        if Read(self.words[i][1].get()) == Read::CROWDED {
            return;
        }
        let r = Read(self.words[i][1].swap(Read::CROWDED.0));
        let mut w = Write(self.words[i][0].get());
        while !self.words[i][0].replace(w.0, w.with_crowded(true).0) {
            w = Write(self.words[i][0].get());
        }
        let mut bytes = [(Write(0), Read(0)); 4];
        for (b, (write, read)) in bytes.iter_mut().enumerate() {
            let bit = 1u8 << b;
            *write = if w.mask() & bit != 0 { w.with_mask(bit) } else { Write(0) }.with_init(w.init() & bit);
            if r.mask() & bit != 0 {
                *read = r.with_mask(bit);
            }
        }
        table.insert(i, bytes);
    }

    fn bytes<T>(&self, i: usize, f: impl FnOnce(&mut [(Write, Read); 4]) -> T) -> T {
        self.crowd(i);
        f(self.lock().entry(i).or_default())
    }

    #[cold]
    fn crowded_read<V: Viewpoint>(&self, i: usize, mask: u8, view: &V) -> Result<u8, Conflict> {
        self.bytes(i, |bytes| {
            let mut undefined = 0;
            for (b, (w, r)) in bytes.iter_mut().enumerate() {
                let bit = mask & 1 << b;
                if bit == 0 {
                    continue;
                }
                if let Step::Set(new) = next_read(*r, bit, view) {
                    *r = new;
                }
                if let Some(conflict) = against_write(*w, bit, view) {
                    return Err(conflict);
                }
                undefined |= bit & !w.init();
            }
            Ok(undefined)
        })
    }

    #[cold]
    fn crowded_write<V: Viewpoint>(
        &self,
        i: usize,
        mask: u8,
        init: u8,
        pending: bool,
        view: &V,
    ) -> Result<(), Conflict> {
        self.bytes(i, |bytes| {
            for (b, (w, r)) in bytes.iter_mut().enumerate() {
                let bit = mask & 1 << b;
                if bit == 0 {
                    continue;
                }
                if let Some(conflict) = against_write(*w, bit, view).or_else(|| against_reads(*r, bit, view))
                {
                    return Err(conflict);
                }
                if let Step::Set(new) = next_write(*w, bit, init & bit, pending, view) {
                    *w = new;
                }
            }
            Ok(())
        })
    }
}

/// The words and byte masks that `len` bytes from `at` on touch.
#[inline(always)]
pub fn words(at: u64, len: u64) -> impl Iterator<Item = (usize, u8)> {
    let end = at + len;
    (at / 4..end.div_ceil(4)).map(move |word| {
        let from = at.saturating_sub(word * 4).min(4);
        let to = (end - word * 4).min(4);
        (word as usize, (WHOLE << from) & (WHOLE >> (4 - to)))
    })
}
