//! What the shadow knows of four bytes, in two words of 64 bits: their last write and their last reads.
//!
//! A party is a segment (what one warp did between two synchronisations, numbered from 1 over the life of the checker),
//! a lane and an instruction. Both words hold a mask of the bytes that the access reached.

const SEGMENT_BITS: u32 = 30;
const PC_BITS: u32 = 18;
const PC: u32 = SEGMENT_BITS;
const LANE: u32 = PC + PC_BITS;
const MASK: u32 = LANE + 5;
const INIT: u32 = MASK + 4;

/// First segment number that does not fit a record.
pub const SEGMENT_END: u32 = 1 << SEGMENT_BITS;
/// All bytes of a word.
pub const WHOLE: u8 = 0xf;

/// Who accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its segment, not 0.
    pub segment: u32,
    /// Its lane.
    pub lane: u32,
    /// Its instruction.
    pub pc: u32,
    /// True for volatile, relaxed and atomic accesses, which do not race with each other.
    pub strong: bool,
}

impl Party {
    fn bits(self) -> u64 {
        let pc = self.pc.min((1 << PC_BITS) - 1);
        u64::from(self.segment) | u64::from(pc) << PC | u64::from(self.lane) << LANE
    }
}

macro_rules! flag {
    ($(#[$doc:meta])* $get:ident, $with:ident, $bit:expr) => {
        $(#[$doc])*
        pub const fn $get(self) -> bool {
            self.0 >> $bit & 1 == 1
        }
        /// The same with the flag set or not.
        pub const fn $with(self, on: bool) -> Self {
            Self(self.0 & !(1 << $bit) | (on as u64) << $bit)
        }
    };
}

macro_rules! record {
    ($name:ident, $strong:expr) => {
        impl $name {
            /// Segment of the access, 0 if there was none.
            pub const fn segment(self) -> u32 {
                self.0 as u32 & (SEGMENT_END - 1)
            }
            /// Bytes that it reached.
            pub const fn mask(self) -> u8 {
                (self.0 >> MASK) as u8 & WHOLE
            }
            /// The same, of other bytes.
            pub const fn with_mask(self, mask: u8) -> Self {
                Self(self.0 & !((WHOLE as u64) << MASK) | (mask as u64) << MASK)
            }
            /// Who.
            pub const fn party(self) -> Party {
                Party {
                    segment: self.segment(),
                    lane: (self.0 >> LANE) as u32 & 31,
                    pc: (self.0 >> PC) as u32 & ((1 << PC_BITS) - 1),
                    strong: self.strong(),
                }
            }
            /// The same by another party.
            pub fn by(self, party: Party) -> Self {
                const WHO: u64 = (1 << MASK) - 1;
                Self(self.0 & !WHO | party.bits()).with_strong(party.strong)
            }
            flag!(
                /// True if the party (all parties of several) accessed strongly.
                strong,
                with_strong,
                $strong
            );
        }
    };
}

/// The last write of a word, and which bytes hold defined data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Write(pub u64);

record!(Write, 61);

impl Write {
    /// Bytes with defined contents.
    pub const fn init(self) -> u8 {
        (self.0 >> INIT) as u8 & WHOLE
    }
    /// The same with other bytes defined.
    pub const fn with_init(self, init: u8) -> Self {
        Self(self.0 & !((WHOLE as u64) << INIT) | (init as u64) << INIT)
    }
    flag!(
        /// True if the write is an asynchronous copy that its thread has not waited for.
        pending,
        with_pending,
        62
    );
    flag!(
        /// True if the word has too many parties for one record; its bytes have records of their own elsewhere.
        crowded,
        with_crowded,
        63
    );
}

/// The last reads of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read(pub u64);

record!(Read, 59);

impl Read {
    flag!(
        /// True if several warps of a block have read since its last barrier; the record names the latest.
        warps,
        with_warps,
        57
    );
    flag!(
        /// True if several blocks have read; the record names one.
        blocks,
        with_blocks,
        58
    );
    /// Stands in for the record of a word that is crowded.
    pub const CROWDED: Read = Read(1 << 63);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let party = Party { segment: SEGMENT_END - 1, lane: 31, pc: (1 << PC_BITS) - 1, strong: true };
        let full = Write(0).by(party).with_mask(15).with_init(15).with_pending(true).with_crowded(true);
        assert_eq!(full.0, !0);
        let none = Party { segment: 0, lane: 0, pc: 0, strong: false };
        assert_eq!(full.by(none).with_mask(0).with_init(0).with_pending(false).with_crowded(false).0, 0);
        for other in [
            Party { segment: 5, ..none },
            Party { lane: 7, ..none },
            Party { pc: 99, ..none },
            Party { strong: true, ..none },
        ] {
            assert_eq!(Write(0).by(other).party(), other);
            assert_eq!(full.by(other).party(), other);
            assert_eq!(Read(0).by(other).with_mask(9).with_warps(true).party(), other);
        }
        let r = Read(0).by(party).with_mask(0b1010);
        assert_eq!((r.mask(), r.warps(), r.blocks(), r.strong()), (0b1010, false, false, true));
        assert_eq!((r.with_warps(true).warps(), r.with_blocks(true).blocks()), (true, true));
        assert_eq!(Write(0).with_init(0b0110).init(), 0b0110);
    }

    #[test]
    fn an_instruction_too_far_is_the_last() {
        let far = Party { segment: 1, lane: 0, pc: u32::MAX, strong: false };
        assert_eq!(Write(0).by(far).party().pc, (1 << PC_BITS) - 1);
        assert_eq!(Write(0).by(far).mask(), 0);
    }
}
